-- ARGV: me. Replies the seqs in `live`, those in `dead`, and seq, life, seq, life, … of those that were ever revived.
return {redis.call('HKEYS', key('live')), redis.call('HKEYS', key('dead')), redis.call('HGETALL', key('lives'))}

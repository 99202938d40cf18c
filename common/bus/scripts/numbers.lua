-- ARGV: me. Replies the seqs in `live` and those in `dead`.
return {redis.call('HKEYS', key('live')), redis.call('HKEYS', key('dead'))}

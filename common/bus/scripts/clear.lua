-- ARGV: me, topic. What others hold of it can no longer be handed off.
redis.call('DEL', key(ARGV[2]))
redis.call('SADD', key('topics'), ARGV[2])
return redis.call('XGROUP', 'CREATE', key(ARGV[2]), GROUP, '0', 'MKSTREAM')

-- ARGV: me, term, topic. What others hold of it can no longer be handed off.
local refused = fence(ARGV[2])
if refused then return refused end
redis.call('DEL', key(ARGV[3]))
redis.call('SADD', key('topics'), ARGV[3])
return redis.call('XGROUP', 'CREATE', key(ARGV[3]), GROUP, '0', 'MKSTREAM')

-- ARGV: me, teacher, digest. Replies the digest that was named first.
local first = redis.call('HGET', key('teachers'), ARGV[2])
if first then return first end
redis.call('HDEL', key('alone'), '') -- an allowed first write: a scorer may also begin on a full server
redis.call('HSET', key('teachers'), ARGV[2], ARGV[3])
return ARGV[3]

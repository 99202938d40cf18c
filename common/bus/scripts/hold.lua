-- ARGV: me, term, owner, lease ms. PEXPIRE is allowed at maxmemory.
local refused = fence(ARGV[2])
if refused then return refused end
local holder = redis.call('GET', key('learner'))
if holder == ARGV[3] then
  redis.call('PEXPIRE', key('learner'), ARGV[4])
elseif holder and tonumber(redis.call('HGET', key('state'), 'holder') or 0) >= tonumber(ARGV[2]) then
  return redis.error_reply('SUPERSEDED by ' .. holder)
else -- nobody, or one of a lower term that a rollback brought back
  redis.call('SET', key('learner'), ARGV[3], 'PX', ARGV[4])
  redis.call('HSET', key('state'), 'holder', ARGV[2])
end

-- ARGV: me, term, owner, lease ms. PEXPIRE is allowed at maxmemory.
local refused = fence(ARGV[2])
if refused then return refused end
local holder = redis.call('GET', key('learner'))
if holder == ARGV[3] then
  redis.call('PEXPIRE', key('learner'), ARGV[4])
elseif holder then
  return redis.error_reply('SUPERSEDED by ' .. holder)
else
  redis.call('SET', key('learner'), ARGV[3], 'PX', ARGV[4])
end

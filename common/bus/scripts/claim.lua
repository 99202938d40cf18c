-- ARGV: me, call, term, owner, lease ms, take over. The term must be higher than any seen.
return once(function()
  local seen = tonumber(redis.call('HGET', key('state'), 'term') or 0)
  if tonumber(ARGV[3]) <= seen then return redis.error_reply('SUPERSEDED ' .. string.format('%d', seen)) end
  local holder = redis.call('GET', key('learner'))
  if holder and holder ~= ARGV[4] and ARGV[6] == '0' then return redis.error_reply('LEARNER ' .. holder) end
  redis.call('HDEL', key('state'), '') -- an allowed first write: a learner may also begin on a full server
  redis.call('SET', key('learner'), ARGV[4], 'PX', ARGV[5])
  redis.call('HSET', key('state'), 'term', ARGV[3], 'holder', ARGV[3])
  return 1
end)

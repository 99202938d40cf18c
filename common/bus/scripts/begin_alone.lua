-- ARGV: me, call, topic, entry, seq, attempt. Replies how many lone tries there were before this one.
return once(function()
  local lone = ARGV[3] .. ' ' .. ARGV[4]
  if not owned(ARGV[3], ARGV[4], ARGV[5], ARGV[6]) then return tonumber(redis.call('HGET', key('alone'), lone) or 0) end
  redis.call('HDEL', key('alone'), '') -- an allowed first write: what follows must also work on a full server
  return redis.call('HINCRBY', key('alone'), lone, 1) - 1
end)

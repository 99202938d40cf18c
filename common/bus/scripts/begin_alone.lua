-- ARGV: me, call, topic, entry, seq, attempt. Replies how many lone tries there were before this one.
return once(function()
  local lone = ARGV[3] .. ' ' .. ARGV[4]
  if not owned(ARGV[3], ARGV[4], ARGV[5], ARGV[6]) then return tonumber(redis.call('HGET', key('alone'), lone) or 0) end
  return redis.call('HINCRBY', key('alone'), lone, 1) - 1
end)

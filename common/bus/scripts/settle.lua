-- ARGV: me, call, term, then per lease: topic, entry, seq, attempt. Replies how many were counted as applied.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local settled = 0
  for i = 4, #ARGV, 4 do
    local topic, entry, seq, attempt = unpack(ARGV, i, i + 3)
    if named(topic, entry, seq, attempt) then
      remove(topic, entry)
      redis.call('HDEL', key('live'), seq)
      settled = settled + 1
    end
  end
  if settled > 0 then redis.call('HINCRBY', key('state'), 'applied', settled) end
  return settled
end)

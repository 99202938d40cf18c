-- ARGV: me, call, term, then per lease: topic, entry, seq, attempt. Replies how many were counted as applied.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local leaving, settled, seqs, live = {}, {}, {}, said_of('live', 6, 4)
  for i = 4, #ARGV, 4 do
    local topic, entry, seq, attempt = unpack(ARGV, i, i + 3)
    if not settled[seq] and named(topic, entry, seq, attempt, live[seq]) then
      settled[seq] = true
      seqs[#seqs + 1] = seq
      collect(leaving, topic, entry)
    end
  end
  if #seqs == 0 then return 0 end
  remove_all(leaving)
  redis.call('HDEL', key('live'), unpack(seqs))
  redis.call('HINCRBY', key('state'), 'applied', #seqs)
  return #seqs
end)

-- ARGV: me, call, then per move: topic, entry, seq, attempt, next topic, payload. Replies 1 (done) or 0 (refused) for each.
return once(function()
  local out, leaving, moved, records, live = {}, {}, {}, {}, said_of('live', 5, 6)
  for i = 3, #ARGV, 6 do
    local topic, entry, seq, attempt, target, payload = unpack(ARGV, i, i + 5)
    local place = topic .. ' ' .. entry
    if not moved[place] and owned(topic, entry, seq, attempt, live[seq]) then
      local record = append(target, seq, attempt, payload)
      if in_ledger(target) then
        records[#records + 1] = seq
        records[#records + 1] = record
      end
      moved[place] = true
      collect(leaving, topic, entry)
      out[#out + 1] = 1
    else
      out[#out + 1] = 0
    end
  end
  remove_all(leaving)
  if #records > 0 then redis.call('HSET', key('live'), unpack(records)) end
  return out
end)

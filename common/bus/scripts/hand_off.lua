-- ARGV: me, call, then per move: topic, entry, seq, attempt, next topic, payload. Replies 1 (done) or 0 (refused) for each.
return once(function()
  local out = {}
  for i = 3, #ARGV, 6 do
    local topic, entry, seq, attempt, target, payload = unpack(ARGV, i, i + 5)
    if owned(topic, entry, seq, attempt) then
      add(target, seq, attempt, payload)
      remove(topic, entry)
      out[#out + 1] = 1
    else
      out[#out + 1] = 0
    end
  end
  return out
end)

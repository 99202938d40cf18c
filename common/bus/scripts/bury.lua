-- ARGV: me, call, then per burial: topic, entry, seq, attempt, reason. Replies 1 or 0 for each. Outside the ledger the entry is only dropped.
return once(function()
  local out = {}
  for i = 3, #ARGV, 5 do
    local topic, entry, seq, attempt, reason = unpack(ARGV, i, i + 4)
    local is_owned = owned(topic, entry, seq, attempt)
    if is_owned then
      local payload = payload_of(topic, entry) or ''
      remove(topic, entry) -- first: frees memory, so that a full server still buries
      if in_ledger(topic) then bury(seq, attempt, reason, payload) end
    end
    out[#out + 1] = is_owned and 1 or 0
  end
  return out
end)

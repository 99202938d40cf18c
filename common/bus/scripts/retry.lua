-- ARGV: me, call, max_attempts, then per retry: topic, entry, seq, attempt, ticket, reason. Replies 1 or 0 for each.
-- Outside the ledger a sample goes back to its own topic, and is dropped after max_attempts. Each revival gives as many more.
return once(function()
  local out = {}
  for i = 4, #ARGV, 6 do
    local topic, entry, seq, attempt, ticket, reason = unpack(ARGV, i, i + 5)
    local is_owned = owned(topic, entry, seq, attempt)
    if is_owned then
      local tries = in_ledger(topic) and 1 + life(seq) or 1
      if attempt + 1 < tries * ARGV[3] then
        add(in_ledger(topic) and 'tickets' or topic, seq, attempt + 1, ticket)
        redis.call('HINCRBY', key('retried'), reason, 1)
        remove(topic, entry)
      else
        local payload = payload_of(topic, entry) or ticket
        remove(topic, entry)
        if in_ledger(topic) then bury(seq, attempt, reason, payload) end
      end
    end
    out[#out + 1] = is_owned and 1 or 0
  end
  return out
end)

-- ARGV: me, call, term, then per ticket: seq, payload. Replies how many were added.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local added, highest = 0, tonumber(redis.call('HGET', key('state'), 'cursor') or 0)
  for i = 4, #ARGV, 2 do
    if absent(ARGV[i]) then
      add('tickets', ARGV[i], 0, ARGV[i + 1])
      added = added + 1
      highest = math.max(highest, ARGV[i] + 1)
    end
  end
  if added > 0 then redis.call('HSET', key('state'), 'cursor', highest) end
  return added
end)

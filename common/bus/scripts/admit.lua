-- ARGV: me, call, term, first, then per ticket: seq, payload. Compare-and-set on the cursor; replies the cursor.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local cursor = tonumber(redis.call('HGET', key('state'), 'cursor') or 0)
  if cursor ~= tonumber(ARGV[4]) then return cursor end
  for i = 5, #ARGV, 2 do
    if absent(ARGV[i]) then add('tickets', ARGV[i], 0, ARGV[i + 1]) end
    cursor = cursor + 1
  end
  redis.call('HSET', key('state'), 'cursor', cursor)
  return cursor
end)

-- ARGV: me, call, term, first, then per ticket: seq, payload. Compare-and-set on the cursor; replies the cursor.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local cursor = tonumber(redis.call('HGET', key('state'), 'cursor') or 0)
  if cursor ~= tonumber(ARGV[4]) then return cursor end
  local live, dead, records = said_of('live', 5, 2), said_of('dead', 5, 2), {}
  for i = 5, #ARGV, 2 do
    if not (live[ARGV[i]] or dead[ARGV[i]]) then
      records[#records + 1] = ARGV[i]
      records[#records + 1] = append('tickets', ARGV[i], 0, ARGV[i + 1])
    end
    cursor = cursor + 1
  end
  if #records > 0 then redis.call('HSET', key('live'), unpack(records)) end
  redis.call('HSET', key('state'), 'cursor', cursor)
  return cursor
end)

-- ARGV: me, call, then per revival: seq, attempt, ticket. Replies the seqs that were dead and are live now.
return once(function()
  local revived = {}
  for i = 3, #ARGV, 3 do
    local seq, attempt, ticket = unpack(ARGV, i, i + 2)
    local letter = redis.call('HGET', key('dead'), seq)
    if letter and tonumber(string.match(letter, '^%d+')) + 1 == tonumber(attempt) then
      add('tickets', seq, attempt, ticket)
      redis.call('HDEL', key('dead'), seq)
      redis.call('HINCRBY', key('lives'), seq, 1)
      revived[#revived + 1] = tonumber(seq)
    end
  end
  return revived
end)

-- ARGV: me, term, then per lease: topic, entry, seq, attempt. What `live` names and `dead` lacks stays: without it the ledger would not balance.
local refused = fence(ARGV[2])
if refused then return refused end
for i = 3, #ARGV, 4 do
  local topic, entry, seq, attempt = unpack(ARGV, i, i + 3)
  local is_named = named(topic, entry, seq, attempt)
  if not is_named or redis.call('HEXISTS', key('dead'), seq) == 1 then
    remove(topic, entry)
    if is_named then redis.call('HDEL', key('live'), seq) end
  end
end

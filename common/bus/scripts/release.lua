-- ARGV: me, then per lease: topic, entry. They go to the consumer `free`, from where the next lease takes them; no delivery and no lone try counts.
for i = 2, #ARGV, 2 do
  local topic, entry = ARGV[i], ARGV[i + 1]
  local pending = redis.pcall('XPENDING', key(topic), GROUP, entry, entry, 1, ME)
  if not pending.err and pending[1] then
    redis.call('XCLAIM', key(topic), GROUP, FREE, 0, entry, 'IDLE', 86400000, 'RETRYCOUNT', pending[1][4], 'JUSTID')
    local lone = topic .. ' ' .. entry
    if redis.call('HEXISTS', key('alone'), lone) == 1 then redis.call('HINCRBY', key('alone'), lone, -1) end
  end
end

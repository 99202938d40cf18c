-- ARGV: me, then per lease: topic, entry. Replies 1 (still mine, renewed) or 0 for each. JUSTID does not count as a delivery.
local out = {}
for i = 2, #ARGV, 2 do
  local topic, entry = ARGV[i], ARGV[i + 1]
  local pending = redis.pcall('XPENDING', key(topic), GROUP, entry, entry, 1, ME)
  local is_mine = not pending.err and pending[1]
  if is_mine then redis.call('XCLAIM', key(topic), GROUP, ME, 0, entry, 'JUSTID') end
  out[#out + 1] = is_mine and 1 or 0
end
return out

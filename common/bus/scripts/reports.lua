-- ARGV: me. Replies name, report, name, report, …; forgets a silent worker and its consumers once nothing is pending under its name, where the
-- caller may (an observer may not).
local function reap(name)
  local topics = redis.call('SMEMBERS', key('topics'))
  for _, topic in ipairs(topics) do
    local pending = redis.pcall('XPENDING', key(topic), GROUP, '-', '+', 1, name)
    if not pending.err and pending[1] then return end
  end
  for _, topic in ipairs(topics) do redis.pcall('XGROUP', 'DELCONSUMER', key(topic), GROUP, name) end
  redis.pcall('SREM', key('workers'), name)
end

local out = {}
for _, name in ipairs(redis.call('SMEMBERS', key('workers'))) do
  local report = redis.call('GET', key('report:' .. name))
  if report then
    out[#out + 1] = name
    out[#out + 1] = report
  else
    reap(name)
  end
end
return out

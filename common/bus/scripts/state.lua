-- ARGV: me. One consistent look: {state values, live, dead, retried, {topic, backlog, leased, oldest entry, …}, server, memory, persistence}.
local backlogs = {}
for _, topic in ipairs(redis.call('SMEMBERS', key('topics'))) do
  local leased, pending = 0, redis.pcall('XPENDING', key(topic), GROUP)
  if not pending.err then
    leased = pending[1]
    for _, consumer in ipairs(pending[4] or {}) do
      if consumer[1] == FREE then leased = leased - tonumber(consumer[2]) end
    end
  end
  local oldest = redis.call('XRANGE', key(topic), '-', '+', 'COUNT', 1)[1]
  for _, value in ipairs({topic, redis.call('XLEN', key(topic)), leased, oldest and oldest[1] or ''}) do backlogs[#backlogs + 1] = value end
end
return {
  redis.call('HMGET', key('state'), 'term', 'cursor', 'applied', 'incarnation'),
  redis.call('HLEN', key('live')),
  redis.call('HLEN', key('dead')),
  redis.call('HGETALL', key('retried')),
  backlogs,
  redis.call('INFO', 'server'),
  redis.call('INFO', 'memory'),
  redis.call('INFO', 'persistence'),
}

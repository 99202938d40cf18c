-- ARGV: me, force. Removes all of the run; replies who lives instead, if anybody does and `force` is not 1. What a nameless caller left expires.
local alive = {}
local learner = redis.call('GET', key('learner'))
if learner then alive[1] = learner end
local workers = redis.call('SMEMBERS', key('workers'))
for _, name in ipairs(workers) do
  if name ~= learner and redis.call('EXISTS', key('report:' .. name)) == 1 then alive[#alive + 1] = name end
end
if #alive > 0 and ARGV[2] ~= '1' then return alive end
for _, topic in ipairs({'tickets', 'scored', 'eval', 'evaluated', unpack(redis.call('SMEMBERS', key('topics')))}) do
  redis.call('DEL', key(topic))
end
for _, name in ipairs(workers) do redis.call('DEL', key('report:' .. name), key('calls:' .. name)) end
for _, name in ipairs({'state', 'live', 'dead', 'lives', 'retried', 'alone', 'teachers', 'topics', 'workers', 'weights', 'learner'}) do
  redis.call('DEL', key(name))
end
return {}

-- ARGV: me, term, cursor, applied, incarnation, number of gone, number of lives, gone seqs..., then per life: seq, life,
-- then per dead: seq, life, reason. Replies the cursor.
-- Every write here may be repeated. A live record whose entry is lost goes too, so that the seq can be admitted again.
local refused = fence(ARGV[2])
if refused then return refused end
local last_gone = 7 + ARGV[6]
local last_life = last_gone + 2 * ARGV[7]

local function place(seq)
  local record = redis.call('HGET', key('live'), seq)
  if record then return string.match(record, '^(%S+) (%d+) (.*)$') end
end

redis.call('HDEL', key('state'), 'reconciled') -- an allowed first write: what follows must also work on a full server
for _, topic in ipairs({'tickets', 'scored', unpack(redis.call('SMEMBERS', key('topics')))}) do
  local made = redis.pcall('XGROUP', 'CREATE', key(topic), GROUP, '0', 'MKSTREAM')
  if type(made) == 'table' and made.err and not string.find(made.err, 'BUSYGROUP') then return made end
  redis.call('SADD', key('topics'), topic)
end
for i = 8, last_gone do
  local entry, _, topic = place(ARGV[i])
  if entry then remove(topic, entry) end
  redis.call('HDEL', key('live'), ARGV[i])
  redis.call('HDEL', key('dead'), ARGV[i])
end
for i = last_gone + 1, last_life, 2 do
  if tonumber(ARGV[i + 1]) > life(ARGV[i]) then -- a death on the server was of a life before this one
    redis.call('HSET', key('lives'), ARGV[i], ARGV[i + 1])
    redis.call('HDEL', key('dead'), ARGV[i])
  end
end
for i = last_life + 1, #ARGV, 3 do
  local seq, died_in, reason = unpack(ARGV, i, i + 2)
  if tonumber(died_in) >= life(seq) then -- it has not been revived since
    local entry, attempt, topic = place(seq)
    local payload = entry and payload_of(topic, entry) or ''
    if entry then remove(topic, entry) end
    if redis.call('HEXISTS', key('dead'), seq) == 0 then bury(seq, attempt or 0, reason, payload) end
    redis.call('HDEL', key('live'), seq)
  end
end
for _, seq in ipairs(redis.call('HKEYS', key('live'))) do
  local entry, _, topic = place(seq)
  if not payload_of(topic, entry) then redis.call('HDEL', key('live'), seq) end
end
-- Whoever else has leases here is a learner of a lower term: they are free.
for _, topic in ipairs({'scored', 'evaluated'}) do
  local pending = redis.pcall('XPENDING', key(topic), GROUP, '-', '+', 100000)
  for _, one in ipairs(pending.err and {} or pending) do
    if one[2] ~= ME and one[2] ~= FREE then
      redis.call('XCLAIM', key(topic), GROUP, FREE, 0, one[1], 'IDLE', 86400000, 'RETRYCOUNT', one[4], 'JUSTID')
    end
  end
end
local cursor = math.max(tonumber(redis.call('HGET', key('state'), 'cursor') or 0), tonumber(ARGV[3]))
redis.call('HSET', key('state'), 'cursor', cursor, 'applied', ARGV[4])
redis.call('HSETNX', key('state'), 'incarnation', ARGV[5])
return cursor

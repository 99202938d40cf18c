-- ARGV: me, count, lease ms, sweep, reclaim, largest payload, number of topics, topics..., entries that I hold...
-- Topics in order; of each first what was released, with `sweep` what expired, with `reclaim` what is mine and not held, then what is new.
-- Replies {topic, entry, deliveries, fields} for each. Missing groups are made. What is no entry of ours, or longer than one can be, is thrown
-- out; where `live` names it, it goes to the dead letters without its payload.
local count, lease_ms, sweep, reclaim = tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', ARGV[5] == '1'
local largest, last = tonumber(ARGV[6]), 7 + ARGV[7]
local out, held = {}, {}
for i = last + 1, #ARGV do held[ARGV[i]] = true end

local function is_number(text) return #text <= 18 and string.find(text, '^%d+$') end

local function give(topic, entry, deliveries, fields)
  local is_ours = #fields == 6 or #fields == 8 and fields[7] == 'by' and #fields[8] <= 256
  is_ours = is_ours and fields[1] == 'seq' and fields[3] == 'attempt' and fields[5] == 'payload'
  is_ours = is_ours and is_number(fields[2]) and is_number(fields[4])
  if is_ours and #fields[6] <= largest then
    out[#out + 1] = {topic, entry, deliveries, fields}
    return
  end
  remove(topic, entry)
  if is_ours and in_ledger(topic) and named(topic, entry, fields[2], fields[4]) then
    bury(fields[2], fields[4], 'a payload of ' .. #fields[6] .. ' bytes, where ' .. largest .. ' are allowed', '')
  end
end

local function take(topic, entry, deliveries)
  local got = redis.call('XCLAIM', key(topic), GROUP, ME, 0, entry, 'RETRYCOUNT', deliveries)
  if got[1] then
    give(topic, entry, deliveries, got[1][2])
  else -- deleted, yet pending: Redis 6.2 says nil and leaves it there
    redis.call('XACK', key(topic), GROUP, entry)
  end
end

local function lease(topic)
  local stream = key(topic)
  local released = redis.pcall('XPENDING', stream, GROUP, '-', '+', count - #out, FREE)
  if released.err then
    redis.call('HDEL', key('alone'), '') -- an allowed first write: a worker may also begin on a full server
    local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
    redis.call('SADD', key('topics'), topic)
    released = {}
  end
  for _, one in ipairs(released) do take(topic, one[1], one[4]) end
  if reclaim then
    for _, one in ipairs(redis.call('XPENDING', stream, GROUP, '-', '+', 10000, ME)) do
      if #out < count and not held[topic .. ' ' .. one[1]] then take(topic, one[1], one[4]) end
    end
  end
  if sweep and #out < count then
    for _, one in ipairs(redis.call('XPENDING', stream, GROUP, 'IDLE', lease_ms, '-', '+', count - #out)) do
      take(topic, one[1], one[4] + 1)
    end
  end
  if #out < count then
    local new = redis.call('XREADGROUP', 'GROUP', GROUP, ME, 'COUNT', count - #out, 'STREAMS', stream, '>')
    for _, one in ipairs(new and new[1][2] or {}) do give(topic, one[1], 1, one[2]) end
  end
end

for i = 8, last do
  if #out < count then
    local failed = lease(ARGV[i])
    if failed then return failed end
  end
end
return out

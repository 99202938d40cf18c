-- Put before every script. KEYS[1] is the run's root "reflux:{run}:" (all keys of a run lie in one slot), ARGV[1] the calling worker's name.
-- Streams: the topics and `weights`. Hashes: state (cursor, term, applied, incarnation, reconciled, paused, holder = the term of
-- `learner`), live (seq -> "entry attempt topic"),
-- dead (seq -> "attempt length-of-reason reason+payload"), lives (seq -> how often it was revived), retried (reason -> count),
-- alone ("topic entry" -> tries), teachers (name -> digest), calls:<worker>.
-- Sets: topics, workers. Strings: learner, report:<worker>.
-- At maxmemory a server refuses only a script's first write, and only one that takes memory. So a script that adds begins with XADD: refused,
-- it has changed nothing. One that must also work on a full server begins by removing.
local ME, GROUP, FREE = ARGV[1], 'workers', 'free'

local function key(name) return KEYS[1] .. name end

-- A call repeated after a lost reply gets the first one's reply. ARGV[2] is the number of the worker's call; the last 64 are remembered.
local function once(body)
  local calls, slot = key('calls:' .. ME), ARGV[2] % 64
  local known = redis.call('HGET', calls, slot)
  if known then
    local call = cjson.decode(known)
    if call[1] == ARGV[2] then return call[2] end
  end
  local reply = body()
  if type(reply) == 'table' and reply.err then return reply end
  redis.pcall('HSET', calls, slot, cjson.encode({ARGV[2], reply}))
  redis.pcall('PEXPIRE', calls, 3600000)
  return reply
end

-- Refuses a lower term, remembers a higher one. Returns an error or nil.
local function fence(term)
  local seen = tonumber(redis.call('HGET', key('state'), 'term') or 0)
  if tonumber(term) < seen then return redis.error_reply('SUPERSEDED ' .. string.format('%d', seen)) end
  if tonumber(term) > seen then redis.call('HSET', key('state'), 'term', term) end
end

local function in_ledger(topic) return topic ~= 'eval' and topic ~= 'evaluated' end

-- What a hash says of the seqs that stand at every `stride`th argument from `first` on, in one call: seq -> value, or false.
local function said_of(hash, first, stride)
  local seqs, said = {}, {}
  for i = first, #ARGV, stride do seqs[#seqs + 1] = ARGV[i] end
  if #seqs == 0 then return said end
  for i, value in ipairs(redis.call('HMGET', key(hash), unpack(seqs))) do said[seqs[i]] = value end
  return said
end

-- `said`: what `live` says of the seq, where the caller has asked already.
local function named(topic, entry, seq, attempt, said)
  if said == nil then said = redis.call('HGET', key('live'), seq) end
  return said == entry .. ' ' .. attempt .. ' ' .. topic
end

-- How often the entry was delivered, if the caller owns it and `live` names it; else nil.
local function owned(topic, entry, seq, attempt, said)
  local pending = redis.pcall('XPENDING', key(topic), GROUP, entry, entry, 1, ME)
  if pending.err or not pending[1] then return nil end
  if in_ledger(topic) and not named(topic, entry, seq, attempt, said) then return nil end
  return pending[1][4]
end

local known_topics = {}

-- Appends to a topic; returns what `live` has to say of it.
local function append(topic, seq, attempt, payload)
  local entry = redis.call('XADD', key(topic), '*', 'seq', seq, 'attempt', attempt, 'payload', payload, 'by', ME)
  if not known_topics[topic] then redis.call('SADD', key('topics'), topic) end
  known_topics[topic] = true
  return entry .. ' ' .. attempt .. ' ' .. topic
end

local function add(topic, seq, attempt, payload)
  local record = append(topic, seq, attempt, payload)
  if in_ledger(topic) then redis.call('HSET', key('live'), seq, record) end
end

local function remove(topic, ...)
  redis.pcall('XACK', key(topic), GROUP, ...)
  redis.call('XDEL', key(topic), ...)
  if redis.call('EXISTS', key('alone')) == 1 then
    for _, entry in ipairs({...}) do redis.call('HDEL', key('alone'), topic .. ' ' .. entry) end
  end
end

-- `by_topic`: topic -> entries.
local function remove_all(by_topic)
  for topic, entries in pairs(by_topic) do remove(topic, unpack(entries)) end
end

local function collect(by_topic, topic, entry)
  by_topic[topic] = by_topic[topic] or {}
  table.insert(by_topic[topic], entry)
end

local function payload_of(topic, entry)
  local found = redis.call('XRANGE', key(topic), entry, entry)
  return found[1] and found[1][2][6]
end

local function bury(seq, attempt, reason, payload)
  redis.call('HSET', key('dead'), seq, attempt .. ' ' .. #reason .. ' ' .. reason .. payload)
  redis.call('HDEL', key('live'), seq)
end

local function life(seq) return tonumber(redis.call('HGET', key('lives'), seq) or 0) end

-- Neither live nor dead.
local function absent(seq)
  return redis.call('HEXISTS', key('live'), seq) == 0 and redis.call('HEXISTS', key('dead'), seq) == 0
end

-- ARGV: me, term, incarnation. Every seq below the cursor is in its place: an audit may insist on it until this server is lost or a higher
-- term begins. A no-op on another incarnation than the one that was reconciled.
local refused = fence(ARGV[2])
if refused then return refused end
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
if run_id .. ':' .. (redis.call('HGET', key('state'), 'incarnation') or '') ~= ARGV[3] then return end
redis.call('HDEL', key('state'), 'reconciled') -- an allowed first write on a full server
redis.call('HSET', key('state'), 'reconciled', ARGV[2] .. ' ' .. run_id)

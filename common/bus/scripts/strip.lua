-- ARGV: me, then seqs. Replies those that are dead; their letters keep attempt and reason. Begins by removing: works on a full server.
local stripped = {}
for i = 2, #ARGV do
  local letter = redis.call('HGET', key('dead'), ARGV[i])
  if letter then
    local attempt, length, rest = string.match(letter, '^(%d+) (%d+) (.*)$')
    redis.call('HDEL', key('dead'), ARGV[i])
    redis.call('HSET', key('dead'), ARGV[i], attempt .. ' ' .. length .. ' ' .. string.sub(rest, 1, length))
    stripped[#stripped + 1] = tonumber(ARGV[i])
  end
end
return stripped

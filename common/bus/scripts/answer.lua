-- ARGV: me, term, then per lease: topic, entry.
local refused = fence(ARGV[2])
if refused then return refused end
for i = 3, #ARGV, 2 do remove(ARGV[i], ARGV[i + 1]) end

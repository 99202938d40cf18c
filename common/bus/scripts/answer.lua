-- ARGV: me, then per lease: topic, entry.
for i = 2, #ARGV, 2 do remove(ARGV[i], ARGV[i + 1]) end

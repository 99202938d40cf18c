-- ARGV: me, call, topic, then per question: index, payload.
return once(function()
  for i = 4, #ARGV, 2 do add(ARGV[3], ARGV[i], 0, ARGV[i + 1]) end
  return 1
end)

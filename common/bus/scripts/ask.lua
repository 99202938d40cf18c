-- ARGV: me, call, term, topic, then per question: index, payload.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  for i = 5, #ARGV, 2 do add(ARGV[4], ARGV[i], 0, ARGV[i + 1]) end
  return 1
end)

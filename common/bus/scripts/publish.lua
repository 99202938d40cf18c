-- ARGV: me, call, term, keep, manifest. Replies the entry on the weights log.
return once(function()
  local refused = fence(ARGV[3])
  if refused then return refused end
  local entry = redis.call('XADD', key('weights'), '*', 'manifest', ARGV[5])
  redis.call('XTRIM', key('weights'), 'MAXLEN', ARGV[4])
  return entry
end)

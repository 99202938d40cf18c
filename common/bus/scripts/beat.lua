-- ARGV: me, name, report, ttl ms.
redis.call('HDEL', key('alone'), '') -- an allowed first write: a full server still keeps reports
redis.call('SET', key('report:' .. ARGV[2]), ARGV[3], 'PX', ARGV[4])
redis.call('SADD', key('workers'), ARGV[2])

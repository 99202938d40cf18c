-- ARGV: me, owner.
if redis.call('GET', key('learner')) == ARGV[2] then redis.call('DEL', key('learner')) end

#!lua flags=no-writes
-- The generations of a thread, in order.
--
-- KEYS  1 line  2 all
-- Returns {{generation in the line …}, {every generation that is remembered …}}
if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY a replica does not judge')
end
return {redis.call('ZRANGE', KEYS[1], '0', '-1'), redis.call('ZRANGE', KEYS[2], '0', '-1')}

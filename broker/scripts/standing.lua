#!lua flags=no-writes
-- What a line needs to know of a generation in it.
--
-- KEYS  1 record
-- Returns {} when there is none
--         {state, '1' if it waits for its turn, '1' if it was accepted, '1' if it is held, age ms, tenant, priority, ttl ms}
if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY a replica does not judge')
end
local r = redis.call('HMGET', KEYS[1], 'state', 'waits', 'lease', 'created_ms', 'tenant', 'priority', 'ttl_ms')
if not r[1] then return {} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {r[1], r[2] or '', redis.call('PTTL', KEYS[1]) < 0 and '1' or '', tonumber(r[3] or '0') > now and '1' or '',
        string.format('%.0f', now - tonumber(r[4] or '0')), r[5], r[6], r[7] or '0'}

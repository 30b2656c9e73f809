#!lua flags=no-writes
-- How a provider stands: its circuit, and who runs and waits.
--
-- KEYS  1 throttle  2 running  3 asked
-- Returns {closed, open or half_open, calls that run, holders that wait}
if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY a replica does not judge')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local later = '(' .. string.format('%.0f', now)
local open_until = tonumber(redis.call('HGET', KEYS[1], 'open_until') or '')
local circuit = 'closed'
if open_until then circuit = open_until > now and 'open' or 'half_open' end
return {circuit, redis.call('ZCOUNT', KEYS[2], later, '+inf'), redis.call('ZCOUNT', KEYS[3], later, '+inf')}

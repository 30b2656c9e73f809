#!lua flags=allow-oom
-- Renew a lease, and learn whether a cancel is stored.
--
-- KEYS  1 record    ARGV  1 epoch  2 owner  3 lease ms
-- Returns {renewed, cancel flag} {fenced, epoch} {ended, state} {gone}
-- A record that is older than its writer (rolled back) is left for the next append to mend.
local ENDED = {completed = true, failed = true, cancelled = true}
local r = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'state', 'cancel')
if not r[1] then return {'gone'} end
local stored, epoch = tonumber(r[1]), tonumber(ARGV[1])
if r[3] == 'deleted' or stored > epoch or (stored == epoch and r[2] ~= ARGV[2]) then return {'fenced', r[1]} end
if ENDED[r[3]] then return {'ended', r[3]} end
if stored == epoch then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], 'lease', string.format('%.0f', now + tonumber(ARGV[3])))
end
return {'renewed', r[4] or ''}

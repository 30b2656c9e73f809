#!lua flags=allow-oom
-- Renew a lease, learn whether a cancel is stored, and notice that nobody has been reading for too long.
--
-- KEYS  1 record  2 viewers  3 log
-- ARGV  1 epoch  2 owner  3 lease ms  4 ms after which a process that said nothing has no viewers
--       5 '1' if the holder's connection had no break for as long: an outage makes viewers look gone
-- Returns {renewed, cancel flag} {fenced, epoch} {ended, state} {gone}
-- A record that is older than its writer (rolled back) is left for the next append to mend.
local ENDED = {completed = true, failed = true, cancelled = true}
local r = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'state', 'cancel', 'grace_ms', 'unattended_ms')
if not r[1] then return {'gone'} end
local stored, epoch = tonumber(r[1]), tonumber(ARGV[1])
if r[3] == 'deleted' or stored > epoch or (stored == epoch and r[2] ~= ARGV[2]) then return {'fenced', r[1]} end
if ENDED[r[3]] then return {'ended', r[3]} end
local cancel = r[4] or ''
if stored == epoch then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local tail = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
  redis.call('HSET', KEYS[1], 'lease', string.format('%.0f', now + tonumber(ARGV[3])))
  if tail[1] then redis.call('HSET', KEYS[1], 'head', tail[1][1]) end
  if r[5] and r[5] ~= '' and cancel == '' then
    local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')) * 1000
    local attended = redis.call('ZCOUNT', KEYS[2], string.format('%.0f', now - tonumber(ARGV[4])), '+inf') > 0
    local since = tonumber(r[6] or '')
    if attended or ARGV[5] ~= '1' or uptime < tonumber(ARGV[4]) then
      if since then redis.call('HDEL', KEYS[1], 'unattended_ms') end
    elseif not since then
      redis.call('HSET', KEYS[1], 'unattended_ms', string.format('%.0f', now))
    elseif now - since >= tonumber(r[5]) then
      cancel = 'abandoned'
      redis.call('HSET', KEYS[1], 'cancel', cancel, 'cancel_ms', string.format('%.0f', now))
      redis.call('HDEL', KEYS[1], 'pass')
    end
  end
end
return {'renewed', cancel}

#!lua
-- Add to the output tokens that a tenant has had today.
--
-- KEYS  1 spent    ARGV  1 tokens; 0 only asks, less than 0 takes back an estimate
-- Returns {tokens today, ms until the day (UTC) ends}
local DAY_MS = 86400000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local day = string.format('%.0f', math.floor(now / DAY_MS))
if redis.call('HGET', KEYS[1], 'day') ~= day then
  redis.call('HSET', KEYS[1], 'day', day, 'tokens', '0')
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', 2 * DAY_MS))
end
local spent = redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[1])
if spent < 0 then
  redis.call('HSET', KEYS[1], 'tokens', '0')
  spent = 0
end
return {string.format('%.0f', spent), string.format('%.0f', DAY_MS - now % DAY_MS)}

#!lua
-- Take deliveries that are due, each for a while: one that is neither taken out nor put off by then is due again.
--
-- KEYS  1 deliveries of the endpoint    ARGV  1 most  2 ms that they are the taker's
-- Returns {ms until the next one is due or -1; generation, generation …}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', '0', ARGV[1])
for _, generation in ipairs(due) do
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), generation)
end
local next_due = redis.call('ZRANGE', KEYS[1], '0', '0', 'WITHSCORES')
local wait = '-1'
if next_due[2] then wait = string.format('%.0f', math.max(0, tonumber(next_due[2]) - now)) end
table.insert(due, 1, wait)
return due

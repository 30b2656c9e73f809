#!lua
-- Take hints out of the queue into flight.
--
-- KEYS  1 ready interactive  2 ready batch  3 later  4 tags  5 clock  6 wake
-- ARGV  1 most hints  2 ms after which a hint in flight is looked at again  3 of how many turns one goes to batch
-- Returns {ms until the next hint in flight or delayed is due, or -1; hint, hint …}
--
-- Hints whose time has come go to the front of their class, uncharged: they had their turn. While both classes wait, one
-- turn in N is batch's, so that neither starves.
local CLASSES = {'interactive', 'batch'}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most = tonumber(ARGV[1])

local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', '0', ARGV[1])
for _, hint in ipairs(due) do
  local class = string.sub(hint, 1, 1) == 'b' and 2 or 1
  local front = tonumber(redis.call('HGET', KEYS[5], CLASSES[class]) or '0') - 1
  redis.call('ZREM', KEYS[3], hint)
  redis.call('ZADD', KEYS[class], 'NX', string.format('%.17g', front), hint)
end

local taken = {}
while #taken < most do
  local class
  local waiting = {redis.call('ZCARD', KEYS[1]), redis.call('ZCARD', KEYS[2])}
  if waiting[1] > 0 and waiting[2] > 0 then
    class = redis.call('HINCRBY', KEYS[5], 'turn', '1') % tonumber(ARGV[3]) == 0 and 2 or 1
  elseif waiting[1] > 0 then class = 1
  elseif waiting[2] > 0 then class = 2
  else break end
  local popped = redis.call('ZPOPMIN', KEYS[class])
  local hint, tag = popped[1], tonumber(popped[2])
  local virtual = math.max(tonumber(redis.call('HGET', KEYS[5], CLASSES[class]) or '0'), tag)
  redis.call('HSET', KEYS[5], CLASSES[class], string.format('%.17g', virtual))
  local account = CLASSES[class] .. ':' .. string.match(hint, '^%a:[^:]+:(.*)$')
  local finish = redis.call('HGET', KEYS[4], account)
  if finish and tonumber(finish) <= virtual then redis.call('HDEL', KEYS[4], account) end
  redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ARGV[2])), hint)
  taken[#taken + 1] = hint
end

-- Tokens beyond the hints that still wait would only wake workers for nothing.
local waiting = redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if waiting == 0 then redis.call('DEL', KEYS[6])
elseif redis.call('LLEN', KEYS[6]) > waiting then redis.call('LTRIM', KEYS[6], '0', string.format('%.0f', waiting - 1)) end

local next_due = redis.call('ZRANGE', KEYS[3], '0', '0', 'WITHSCORES')
local wait = '-1'
if next_due[2] then wait = string.format('%.0f', math.max(0, tonumber(next_due[2]) - now)) end
table.insert(taken, 1, wait)
return taken

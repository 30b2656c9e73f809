#!lua
-- Say when hints in flight are to be looked at again: after a renewal, after a delay.
--
-- KEYS  1 later  2 ready interactive  3 ready batch  4 wake    ARGV  1 ms from now  2.. hints
-- Returns 1
-- A hint that the queue has lost is added: the holder of a lease keeps its hint alive with the lease. One that is to be
-- looked at sooner than a sleeping worker would look by itself wakes one, which then sleeps until the hint is due.
local IDLE_MS = 1000
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1]))
for i = 2, #ARGV do
  redis.call('ZREM', KEYS[2], ARGV[i])
  redis.call('ZREM', KEYS[3], ARGV[i])
  redis.call('ZADD', KEYS[1], due, ARGV[i])
  if tonumber(ARGV[1]) < IDLE_MS then redis.call('RPUSH', KEYS[4], '1') end
end
return 1

#!lua flags=allow-oom
-- A process says that it has viewers of a generation, or that the last one has left.
--
-- KEYS  1 viewers  2 record    ARGV  1 process  2 '1' it has viewers, '0' it has none  3 ms after which the key may go
-- Returns 1
--
-- Buys: whoever comes is seen, however soon it leaves again: the time without viewers begins anew.
local time = redis.call('TIME')
if ARGV[2] == '1' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('HDEL', KEYS[2], 'unattended_ms')
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1

#!lua flags=allow-oom
-- Calls still run: renew the slots of those that have one.
--
-- KEYS  1 throttle  2 running  3 calls  4 probes  5 waiting  6 asked
-- ARGV  1 lease ms  2 ms until unused keys may go  3.. holders
-- Returns 1
-- A slot that somebody else may have by now is not taken back. `GT`, because a debt of tokens may need longer.
local time = redis.call('TIME')
local deadline = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1]))
for i = 3, #ARGV do redis.call('ZADD', KEYS[2], 'XX', deadline, ARGV[i]) end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2], 'GT') end
return 1

#!lua
-- Put a delivery that nobody tries any more on the list of its tenant; the oldest fall off its end.
--
-- KEYS  1 dead deliveries of the tenant    ARGV  1 most that are kept  2 delivery
-- Returns 1
redis.call('ZADD', KEYS[1], '0', ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], '0', string.format('%.0f', -tonumber(ARGV[1]) - 1))
return 1

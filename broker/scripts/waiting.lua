#!lua
-- How many hints wait for a worker.
--
-- KEYS  1 ready interactive  2 ready batch
-- Returns their number
return redis.call('ZCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2])

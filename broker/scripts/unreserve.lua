#!lua
-- Take back the first step of a submit that its thread refused, once its record is withdrawn: free the idempotency key, if
-- it still stands for this generation.
--
-- KEYS  1 idempotency key  2 index    ARGV  1 generation
-- Returns 1
local known = redis.call('GET', KEYS[1])
if known and string.match(known, '^%S+ (%S+)$') == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('ZREM', KEYS[2], ARGV[1])
return 1

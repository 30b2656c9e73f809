#!lua
-- Put a hint into the queue, unless it is there already.
--
-- KEYS  1 ready set of the hint's class  2 later  3 tags  4 clock  5 wake
-- ARGV  1 class  2 tenant  3 weight of the tenant  4 hint
-- Returns 1 if it was added, 0 if the queue has it
--
-- Start-time fair queueing: a hint's tag is the later of the class's virtual time and the finish tag of the same
-- tenant's hint before it; that one lasts 1/weight. Hints go out in order of their tags, so a tenant with ten thousand
-- of them is ten thousand units ahead of itself, and of nobody else.
if redis.call('ZSCORE', KEYS[2], ARGV[4]) or redis.call('ZSCORE', KEYS[1], ARGV[4]) then return 0 end
local account = ARGV[1] .. ':' .. ARGV[2]
local tag = math.max(tonumber(redis.call('HGET', KEYS[4], ARGV[1]) or '0'),
                     tonumber(redis.call('HGET', KEYS[3], account) or '0'))
redis.call('ZADD', KEYS[1], string.format('%.17g', tag), ARGV[4])
redis.call('HSET', KEYS[3], account, string.format('%.17g', tag + 1 / tonumber(ARGV[3])))
if redis.call('LLEN', KEYS[5]) < redis.call('ZCARD', KEYS[1]) then redis.call('RPUSH', KEYS[5], '1') end
return 1

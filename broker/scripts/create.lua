#!lua
-- Store a submitted generation, if its id is new.
--
-- KEYS  1 record  2 log  3 request
-- ARGV  1 request JSON  2 ms to live until the hint is confirmed
--       3 '1' if there may have been a record of this id before, which the store has lost: its first claim then jumps
--       4.. record fields and values
-- Returns {created, created ms} {exists, state, created ms, 1 if its log is there}
--
-- The log exists from here on, empty (a missing key in a slot that is moving makes scripts fail), and nothing of it
-- outlives the hour in which its submitter crashed before the queue knew of it.
local known = redis.call('HMGET', KEYS[1], 'state', 'created_ms')
if known[1] then return {'exists', known[1], known[2] or '0', redis.call('EXISTS', KEYS[2])} end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
if ARGV[3] == '1' then replid = '' end
local fields = {'epoch', '0', 'owner', '', 'lease', '0', 'state', 'queued', 'history', replid, 'attempt', '0',
                'charge', '1', 'head', '0-0', 'created_ms', now}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('SET', KEYS[3], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[2], 'none', '$', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[2], 'none')
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return {'created', now}

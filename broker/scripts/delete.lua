#!lua flags=allow-oom
-- Erase a generation's prompt and log, and leave a tombstone.
--
-- KEYS  1 record  2 log  3 request    ARGV  1 tombstone ms  2 live channel
-- Returns {deleted, upstream mark or '', ms that its holder may still live} {gone}
--
-- Buys: a worker that still writes is fenced by the tombstone's epoch; a record with this id is never made again while
-- the tombstone lives. The message without a position tells attached viewers. Where to read on at the provider stays:
-- whoever claims it next has the answer stopped there.
local ENDED = {completed = true, failed = true, cancelled = true}
local r = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'tenant', 'priority', 'upstream', 'lease')
if not r[1] then return {'gone'} end
if r[2] == 'deleted' then return {'deleted', r[5] or '', '0'} end
local time = redis.call('TIME')
local left = math.max(0, tonumber(r[6] or '0') - time[1] * 1000 - math.floor(time[2] / 1000))
local upstream = not ENDED[r[2]] and r[5] or ''
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', tonumber(r[1]) + 1), 'owner', '', 'state', 'deleted',
           'tenant', r[3], 'priority', r[4], 'history', '', 'upstream', upstream)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('SPUBLISH', ARGV[2], cmsgpack.pack({'deleted'}))
return {'deleted', upstream, string.format('%.0f', left)}

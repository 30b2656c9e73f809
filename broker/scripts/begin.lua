#!lua
-- The turn of a generation has come in its thread: it may be claimed.
--
-- KEYS  1 record
-- Returns {begun} {unconfirmed} {ended, state} {gone}
-- May be repeated. A submit that nobody has been told of is left alone: its submitter comes again, or it expires.
local ENDED = {completed = true, failed = true, cancelled = true, deleted = true}
local r = redis.call('HMGET', KEYS[1], 'state', 'waits')
if not r[1] then return {'gone'} end
if ENDED[r[1]] then return {'ended', r[1]} end
if r[2] and redis.call('PTTL', KEYS[1]) >= 0 then return {'unconfirmed'} end
redis.call('HDEL', KEYS[1], 'waits')
return {'begun'}

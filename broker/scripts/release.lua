#!lua
-- Give a lease back before the end: a hand-over, or a failed attempt that will be tried again.
--
-- KEYS  1 record    ARGV  1 epoch  2 owner  3 state: queued or retrying  4 charge: '1' if the next claim is a new attempt
-- Returns {released} {cancelled, reason} {fenced, epoch} {ended, state} {gone}
-- May be repeated. The epoch stays, the owner goes: who released can write nothing more.
local ENDED = {completed = true, failed = true, cancelled = true}
local r = redis.call('HMGET', KEYS[1], 'epoch', 'owner', 'state', 'cancel')
if not r[1] then return {'gone'} end
if r[3] == 'deleted' or r[1] ~= ARGV[1] or (r[2] ~= ARGV[2] and r[2] ~= '') then return {'fenced', r[1]} end
if ENDED[r[3]] then return {'ended', r[3]} end
-- A stored cancel is ended by who holds the lease: given back, it would wait for the next claim.
if r[2] ~= '' and r[4] and r[4] ~= '' then return {'cancelled', r[4]} end
redis.call('HSET', KEYS[1], 'owner', '', 'lease', '0', 'state', ARGV[3], 'charge', ARGV[4])
redis.call('HDEL', KEYS[1], 'pass')
return {'released'}

#!lua
-- The queue knows of the generation: nothing of it expires before its terminal event.
--
-- KEYS  1 record  2 log  3 request
-- Returns {confirmed} {ended, state} {gone}
-- A worker may have finished it already; the expiry that the terminal event set then stays.
local ENDED = {completed = true, failed = true, cancelled = true, deleted = true}
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {'gone'} end
if ENDED[state] then return {'ended', state} end
for i = 1, 3 do redis.call('PERSIST', KEYS[i]) end
return {'confirmed'}

#!lua flags=allow-oom
-- Take back the record of a submit that its thread refused, unless somebody else has had it accepted meanwhile.
--
-- KEYS  1 record  2 log  3 request
-- Returns {withdrawn} {kept}
local r = redis.call('HMGET', KEYS[1], 'epoch', 'waits')
if not r[1] then return {'withdrawn'} end
if r[1] ~= '0' or r[2] ~= '1' or redis.call('PTTL', KEYS[1]) < 0 then return {'kept'} end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return {'withdrawn'}

#!lua
-- Note in a record how the delivery of its end to one endpoint went.
--
-- KEYS  1 record
-- ARGV  1 endpoint  2 outcome: '' a try that failed, 'done', else why nobody tries any more  3 '1': all of it anew
-- Returns {noted, tries} {gone}
--
-- What was delivered stays so: the note of a slower worker changes nothing.
local field = 'hook:' .. ARGV[1]
local r = redis.call('HMGET', KEYS[1], 'state', field)
if not r[1] or r[1] == 'deleted' then return {'gone'} end
local tries, outcome = string.match(r[2] or '0 ', '^(%d+) (.*)$')
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], field, '0 ')
  return {'noted', '0'}
end
if outcome == 'done' then return {'noted', tries} end
tries = string.format('%.0f', tonumber(tries) + 1)
redis.call('HSET', KEYS[1], field, tries .. ' ' .. ARGV[2])
return {'noted', tries}

#!lua
-- Say when the ends of generations are to be told to an endpoint.
--
-- KEYS  1 deliveries of the endpoint    ARGV  1 ms from now  2 '1': leave those alone that are there  3.. generations
-- Returns how many were new
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1]))
local fresh = 0
for i = 3, #ARGV do
  if ARGV[2] == '1' then fresh = fresh + redis.call('ZADD', KEYS[1], 'NX', due, ARGV[i])
  else fresh = fresh + redis.call('ZADD', KEYS[1], due, ARGV[i]) end
end
return fresh

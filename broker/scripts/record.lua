#!lua flags=no-writes
-- The whole record of a generation, but for the results of its tools.
--
-- KEYS  1 record  2 log
-- Returns {now ms, ttl ms or -1, field, value, field, value …}; the first two alone when there is none. `head` is the log's
-- own last entry, as long as the log is there.
if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY a replica does not judge')
end
local time = redis.call('TIME')
local out = {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)),
             string.format('%.0f', redis.call('PTTL', KEYS[1]))}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 5) ~= 'call:' then
    out[#out + 1] = all[i]
    out[#out + 1] = all[i + 1]
  end
end
local tail = all[1] and redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if tail then
  out[#out + 1] = 'head'
  out[#out + 1] = tail[1]
end
return out

#!lua
-- Put back a generation that the store has lost: its record and the first events of its log.
--
-- KEYS  1 record  2 log  3 request
-- ARGV  1 request JSON  2 live channel  3 lease ms  4 n: how many record fields follow  5.. n field, value pairs
--       then id, field, payload of each event, none of them terminal
-- Returns {rebuilt} {exists}
--
-- Only the holder of the lease may ask for it, and only under the conditions of worker.writer. A tombstone is a record:
-- what was deleted stays deleted. `history` is left empty, so the next claim jumps: the store may have forgotten some.
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists'} end
local fields = tonumber(ARGV[4])
local time = redis.call('TIME')
local lease = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3]))
redis.call('UNLINK', KEYS[2])
redis.call('HSET', KEYS[1], 'state', 'running', 'history', '', 'charge', '0', 'lease', lease,
           unpack(ARGV, 5, 4 + 2 * fields))
redis.call('SET', KEYS[3], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[2], 'none', '$', 'MKSTREAM')
redis.call('XGROUP', 'DESTROY', KEYS[2], 'none')
local message, head = {'0-0'}, '0-0'
for i = 5 + 2 * fields, #ARGV, 3 do
  redis.call('XADD', KEYS[2], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  local n = #message
  message[n + 1], message[n + 2], message[n + 3] = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  head = ARGV[i]
end
redis.call('HSET', KEYS[1], 'head', head)
redis.call('SPUBLISH', ARGV[2], cmsgpack.pack(message))
return {'rebuilt'}

#!lua
-- Give a lease back while the client runs the tools that the model called.
--
-- KEYS  1 record    ARGV  1 epoch  2 owner  3 ms that the client has
-- Returns {paused} {ready} {cancelled, reason} {fenced, epoch} {ended, state} {gone}
--
-- The ids of the calls are in the record already: they were noted with the event that told the client of them, so no
-- result can come too early. Where all of them came in the meantime the answer is `ready`: the state is `queued`, and
-- the next claim may follow at once. May be repeated.
local ENDED = {completed = true, failed = true, cancelled = true}
local record = KEYS[1]
local r = redis.call('HMGET', record, 'epoch', 'owner', 'state', 'cancel', 'pending')
if not r[1] then return {'gone'} end
if r[3] == 'deleted' or r[1] ~= ARGV[1] or (r[2] ~= ARGV[2] and r[2] ~= '') then return {'fenced', r[1]} end
if ENDED[r[3]] then return {'ended', r[3]} end
if r[2] ~= '' and r[4] and r[4] ~= '' then return {'cancelled', r[4]} end
if r[2] == '' then return {r[3] == 'waiting_for_tools' and 'paused' or 'ready'} end
local missing = false
for _, id in ipairs(cjson.decode(r[5] or '[]')) do
  if redis.call('HEXISTS', record, 'call:' .. id) == 0 then missing = true end
end
local time = redis.call('TIME')
local until_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3]))
redis.call('HSET', record, 'owner', '', 'lease', '0', 'charge', '0', 'tools_until', until_ms,
           'state', missing and 'waiting_for_tools' or 'queued')
redis.call('HDEL', record, 'pass')
return {missing and 'paused' or 'ready'}

#!lua
-- Store what the client's tools gave back. All of it or nothing.
--
-- KEYS  1 record    ARGV  1.. call id, result JSON of each call
-- Returns {accepted, how many were new, how many are still owed} {conflict, call id} {unknown, call id}
--         {not_waiting, state} {ended, state} {gone}
--
-- The first result of a call counts: the same one again is accepted and changes nothing, another one is a conflict. With
-- the last one a paused generation is `queued`; its hint is the caller's to add, each time it hears of 0 owed.
local ENDED = {completed = true, failed = true, cancelled = true}
local record = KEYS[1]
local r = redis.call('HMGET', record, 'epoch', 'state', 'pending')
if not r[1] or r[2] == 'deleted' then return {'gone'} end
local owed, pending = {}, r[3] and r[3] ~= '' and cjson.decode(r[3]) or {}
for _, id in ipairs(pending) do owed[id] = true end

local fresh = {}
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', record, 'call:' .. ARGV[i])
  if known then
    if known ~= ARGV[i + 1] then return {'conflict', ARGV[i]} end
  elseif not owed[ARGV[i]] then
    if ENDED[r[2]] then return {'ended', r[2]} end
    if #pending == 0 then return {'not_waiting', r[2]} end
    return {'unknown', ARGV[i]}
  else
    fresh[#fresh + 1] = 'call:' .. ARGV[i]
    fresh[#fresh + 1] = ARGV[i + 1]
  end
end
if #fresh > 0 then
  if ENDED[r[2]] then return {'ended', r[2]} end
  redis.call('HSET', record, unpack(fresh))
end
local left = 0
for _, id in ipairs(pending) do
  if redis.call('HEXISTS', record, 'call:' .. id) == 0 then left = left + 1 end
end
if left == 0 and r[2] == 'waiting_for_tools' then redis.call('HSET', record, 'state', 'queued') end
return {'accepted', string.format('%.0f', #fresh / 2), string.format('%.0f', left)}

#!lua flags=no-writes
-- Read a page of a log after a position, and verify that the log holds that position.
--
-- KEYS  1 record  2 log    ARGV  1 cursor  2 most entries  3 most bytes of payload (one entry at least)
-- With 0 entries only the verdict is given; the entries are read beside it, in the same transaction (broker.store).
-- Returns {unknown} {deleted, tenant} {expired, tenant} {lost, tenant}
--         {held or rewound, tenant, state, attempt, last, cancel flag, lease live, grace ms or '', entries}
--
-- Buys: unknown, deleted, expired, lost and merely empty never look alike; a cursor is compared by its whole id, so a
-- position that another epoch wrote reads `rewound` (its entries are none). Runs on the primary only.
local ENDED = {completed = true, failed = true, cancelled = true}
local function seq_of(id) return tonumber(string.match(id, '^%d+')) end

if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
  return redis.error_reply('READONLY a replica does not judge')
end
local r = redis.call('HMGET', KEYS[1], 'tenant', 'state', 'attempt', 'head', 'cancel', 'lease', 'grace_ms')
if not r[1] then return {'unknown'} end
if r[2] == 'deleted' then return {'deleted', r[1]} end
local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local last = tail[1] and tail[1][1] or '0-0'
if ENDED[r[2]] then
  if last == '0-0' then return {'expired', r[1]} end
elseif seq_of(last) < seq_of(r[4] or '0-0') then
  return {'lost', r[1]}
end

local entries = {}
local verdict = 'held'
if ARGV[1] == '0-0' then
  if ARGV[2] ~= '0' then entries = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[2]) end
elseif ARGV[1] ~= last then
  entries = redis.call('XRANGE', KEYS[2], ARGV[1], '+', 'COUNT', string.format('%.0f', tonumber(ARGV[2]) + 1))
  if entries[1] and entries[1][1] == ARGV[1] then
    table.remove(entries, 1)
  else
    verdict, entries = 'rewound', {}
  end
end
local size, most = 0, tonumber(ARGV[3])
for i, entry in ipairs(entries) do
  size = size + #entry[2][2]
  if size > most and i > 1 then
    for k = #entries, i, -1 do entries[k] = nil end
    break
  end
end
local time = redis.call('TIME')
local live = tonumber(r[6] or '0') > time[1] * 1000 + math.floor(time[2] / 1000)
return {verdict, r[1], r[2], r[3], last, r[5] or '', live and '1' or '0', r[7] or '', entries}

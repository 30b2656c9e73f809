#!lua flags=no-writes
-- Read a page of a log after a position, and verify that the log holds that position.
--
-- KEYS  1 record  2 log    ARGV  1 cursor  2 most entries  3 most bytes of payload (one entry at least)
-- With 0 entries only the verdict is given; the entries are read beside it, in the same transaction (broker.store).
-- The first entry may be a joined one that the cursor is inside of (broker.joined): some of its events are behind it.
-- Returns {unknown} {deleted, tenant} {expired, tenant} {lost, tenant}
--         {held or rewound, tenant, state, attempt, last, cancel flag, lease live, grace ms or '', entries}
--
-- Buys: unknown, deleted, expired, lost and merely empty never look alike; a cursor is compared by its whole id, so a
-- position that another epoch wrote reads `rewound` (its entries are none). Entries are fetched in growing steps: large
-- ones beyond the bound would only be dropped. Runs on the primary only.
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

-- Whether an entry, the first that does not sort before the cursor, is the cursor's or a joined one that holds it.
local function holds(entry, cursor)
  if entry[1] == cursor then return true end
  local lengths = entry[2][4]
  return lengths and string.match(entry[1], '%-.*') == string.match(cursor, '%-.*')
    and seq_of(cursor) > seq_of(entry[1]) - #lengths
end

local entries, verdict, from, most = {}, 'held', ARGV[1], tonumber(ARGV[2])
if from == '0-0' then
  from = '-'
elseif from == last then
  most = 0
else
  local first = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
  if not first or not holds(first, from) then
    verdict, most = 'rewound', 0
  elseif first[1] == from then
    from = '(' .. from
  end
end
local n, size, bound, step = 0, 0, tonumber(ARGV[3]), 8
while n < most do
  local asked = math.min(step, most - n)
  local found = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', string.format('%.0f', asked))
  for i = 1, #found do
    size = size + #found[i][2][2]
    if size > bound and n > 0 then
      most = 0
      break
    end
    n = n + 1
    entries[n] = found[i]
  end
  if #found < asked then break end
  from, step = '(' .. found[asked][1], 4 * step
end
local time = redis.call('TIME')
local live = tonumber(r[6] or '0') > time[1] * 1000 + math.floor(time[2] / 1000)
return {verdict, r[1], r[2], r[3], last, r[5] or '', live and '1' or '0', r[7] or '', entries}

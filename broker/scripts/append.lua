#!lua
-- Append events to a log: fence, duplicate check, entries and notification in one atomic step.
--
-- KEYS  1 record  2 log  3 request
-- ARGV  1 epoch  2 owner  3 prev: position before the first event  4 live channel
--       5 n: how many record fields are noted with these events  6.. n field, value pairs
--       then id, field, payload of each event; none: only ask whether the log still ends at prev
--
-- Returns {appended, head, stored now, cancel flag}
--         {gone} {fenced, epoch} {closed, last} {cancelled, last, flag} {behind, last} {diverged, last}
--
-- Buys: seqs are dense; an event that is sent again is never stored twice, because the stream's own last entry is
-- compared by its whole id with prev and with the ids of the batch, in that order; what is noted in the record is stored
-- exactly if the events are; a later claim shuts out every earlier writer; a terminal event is the last one. Loaded a
-- second time with flags=allow-oom for appends that end in a terminal event, so that a full store can still end what it
-- holds.
--
-- What comes next from the same holder is a matter for `extend`, which goes by the record's field `pass`: set here.
local FIRST = 6 + 2 * ARGV[5]
local TERMINAL = {completed = true, failed = true, cancelled = true}
local record, log = KEYS[1], KEYS[2]
local count = (#ARGV - FIRST + 1) / 3

local function seq_of(id) return tonumber(string.match(id, '^%d+')) end
local function id_at(i) return ARGV[FIRST + 3 * i] end
local function field_at(i) return ARGV[FIRST + 3 * i + 1] end
local function payload_at(i) return ARGV[FIRST + 3 * i + 2] end

local r = redis.call('HMGET', record, 'epoch', 'owner', 'state', 'cancel', 'ttl_ms', 'stub_ms', 'hooks')
if not r[1] then return {'gone'} end
local stored_epoch, epoch = tonumber(r[1]), tonumber(ARGV[1])
if r[3] == 'deleted' or stored_epoch > epoch or (stored_epoch == epoch and r[2] ~= ARGV[2]) then
  return {'fenced', r[1]}
end

local tail = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
local last, last_field = '0-0', ''
if tail[1] then last, last_field = tail[1][1], tail[1][2][1] end

-- How many events of the batch are stored already; nil when the log does not end where this writer has been.
local skip
if last == ARGV[3] then
  skip = 0
else
  for i = count - 1, 0, -1 do
    if id_at(i) == last then skip = i + 1; break end
  end
end
-- An ended record without a log: the log's time is over, and nobody puts it back.
if TERMINAL[r[3]] and last == '0-0' then return {'closed', last} end
if skip and skip == count then return {'appended', last, '0', r[4] or ''} end
if TERMINAL[last_field] then return {'closed', last} end

-- The record is older than its writer (the store was rolled back): it learns of the claim it forgot. Its history
-- is unknown then, so the next claim will jump.
local function adopt()
  if stored_epoch < epoch then
    redis.call('HSET', record, 'epoch', ARGV[1], 'owner', ARGV[2], 'state', 'running', 'history', '')
    redis.call('HDEL', record, 'pass')
  end
end

if not skip then
  adopt()
  if seq_of(last) < seq_of(ARGV[3]) then return {'behind', last} end
  return {'diverged', last}
end

local expected = seq_of(last)
for i = skip, count - 1 do
  expected = expected + 1
  if seq_of(id_at(i)) ~= expected then
    return redis.error_reply('HOLE ' .. id_at(i) .. ' does not follow seq ' .. string.format('%.0f', expected - 1))
  end
  if TERMINAL[field_at(i)] and i < count - 1 then return redis.error_reply('HOLE events after a terminal one') end
end
local final = field_at(count - 1)
if r[4] and r[4] ~= '' and TERMINAL[final] and final ~= 'cancelled' then
  adopt()
  return {'cancelled', last, r[4]}
end

local code = final == 'failed' and cjson.decode(payload_at(count - 1)).code

adopt()
local message = {last}
for i = skip, count - 1 do
  redis.call('XADD', log, id_at(i), field_at(i), payload_at(i))
  local n = #message
  message[n + 1], message[n + 2], message[n + 3] = id_at(i), field_at(i), payload_at(i)
end
local head = id_at(count - 1)
if FIRST > 6 then redis.call('HSET', record, unpack(ARGV, 6, FIRST - 1)) end
if TERMINAL[final] then
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', record, 'head', head, 'state', final, 'ended_ms', now, 'lease', '0')
  redis.call('HDEL', record, 'pass')
  if r[7] and r[7] ~= '' then redis.call('HSET', record, 'end', payload_at(count - 1)) end
  if code then redis.call('HSET', record, 'failure', code) end
  redis.call('PEXPIRE', log, r[5])
  redis.call('PEXPIRE', KEYS[3], r[5])
  redis.call('PEXPIRE', record, r[6])
elseif r[4] and r[4] ~= '' then
  redis.call('HSET', record, 'head', head)
else
  redis.call('HSET', record, 'head', head, 'pass', ARGV[1] .. ' ' .. ARGV[2])
end
redis.call('SPUBLISH', ARGV[4], cmsgpack.pack(message))
return {'appended', head, string.format('%.0f', count - skip), r[4] or ''}

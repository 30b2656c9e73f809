#!lua
-- Claim a generation: the one place that decides who may write it, and under which epoch.
--
-- KEYS  1 record  2 log  3 request
-- ARGV  1 owner: random, one a claim  2 lease ms  3 floor: the epoch must rise above it  4 jump: random, 2^20..2^31
--       5 '1' if the claimer may take over a lapsed lease (it saw neither a break nor a loss of data for a lease)
--       6 owner of a lease that the claimer itself holds and replaces, or ''
--
-- Returns {claimed, epoch, attempt, cancel flag, created ms, first claimed ms, now ms, tenant, request, upstream mark,
--          '1' if the client's time for its tools was over, {call id, result or '' of each call the client was asked for},
--          id of the log's last entry, or 0-0}
--         {busy, ms to wait} {lapsed, ms to wait} {waits, thread} {ended, state, upstream mark, thread} {gone}
--
-- Buys: epochs only rise and are never used twice, even after the store forgot claims: `history` is the replication
-- id under which this record was last claimed or made, and when the server's own is another (or the record had to
-- be rebuilt) the epoch jumps by a random number. A claim that is repeated with the same owner gives the same epoch.
-- `attempt` rises for a lapsed lease and where the last holder said so (`charge`), for nothing else.
local ENDED = {completed = true, failed = true, cancelled = true, deleted = true}
local record = KEYS[1]
local r = redis.call('HMGET', record, 'epoch', 'owner', 'lease', 'state', 'history', 'attempt', 'charge', 'cancel',
                     'created_ms', 'started_ms', 'tenant', 'upstream', 'pending', 'tools_until', 'overdue', 'waits', 'thread')
if not r[1] then return {'gone'} end
if ENDED[r[4]] then return {'ended', r[4], r[12] or '', r[17] or ''} end
-- Not its turn in its thread. The holder of a lease that the store has forgotten began when it was.
if r[16] and ARGV[6] == '' then return {'waits', r[17] or ''} end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner, lease_ms = r[2] or '', tonumber(ARGV[2])
local epoch, attempt = tonumber(r[1]), tonumber(r[6] or '0')
local charged = r[7] == '1'
local overdue = r[15] or '0'

-- The client runs the tools: until the last result, or the end of its time, there is nothing to do.
if r[4] == 'waiting_for_tools' then
  local left = tonumber(r[14] or '0') - now
  if left > 0 then return {'busy', string.format('%.0f', left)} end
end

local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
local head = tail[1] and tail[1][1] or '0-0'
if owner ~= ARGV[1] or owner == '' then
  if owner ~= '' and owner ~= ARGV[6] then
    local left = tonumber(r[3] or '0') - now
    if left > 0 then return {'busy', string.format('%.0f', left)} end
    local uptime = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')) * 1000
    if ARGV[5] ~= '1' or uptime < lease_ms then return {'lapsed', ARGV[2]} end
    charged = true
  end
  local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
  epoch = math.max(epoch, tonumber(ARGV[3])) + 1
  if replid == '' or replid ~= r[5] then epoch = epoch + tonumber(ARGV[4]) end
  if charged then attempt = attempt + 1 end
  overdue = r[4] == 'waiting_for_tools' and '1' or '0'
  redis.call('HSET', record, 'epoch', string.format('%.0f', epoch), 'owner', ARGV[1], 'state', 'running',
             'history', replid, 'attempt', string.format('%.0f', attempt), 'charge', '0', 'overdue', overdue)
  redis.call('HDEL', record, 'pass', 'unattended_ms', 'waits')  -- nobody looked while nobody held it
  redis.call('HSETNX', record, 'started_ms', string.format('%.0f', now))
  -- Whoever holds the lease decides what the log is: what the record remembered beyond its end is given up.
  redis.call('HSET', record, 'head', head)
end
redis.call('HSET', record, 'lease', string.format('%.0f', now + lease_ms))
for i = 1, 3 do redis.call('PERSIST', KEYS[i]) end
local now_ms = string.format('%.0f', now)
local calls = {}
if r[13] and r[13] ~= '' then
  for _, id in ipairs(cjson.decode(r[13])) do
    calls[#calls + 1] = id
    calls[#calls + 1] = redis.call('HGET', record, 'call:' .. id) or ''
  end
end
return {'claimed', string.format('%.0f', epoch), string.format('%.0f', attempt), r[8] or '', r[9] or '0',
        r[10] or now_ms, now_ms, r[11], redis.call('GET', KEYS[3]) or '', r[12] or '',
        overdue, calls, head}

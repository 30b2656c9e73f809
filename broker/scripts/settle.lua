#!lua flags=allow-oom
-- A call has ended, or its holder waits no longer: free its place, correct its tokens, judge the provider by it.
--
-- KEYS  1 throttle  2 running  3 calls  4 probes  5 waiting  6 asked
-- ARGV  1 holder  2 ok, failed or neutral  3 tokens it used, or ''  4 ms for which nobody is to come again, or 0
--       5 ms until unused keys may go  6 tokens a minute, or ''
--       7 breaker window ms  8 calls it needs to judge  9 share of failures that opens it  10 open ms  11 random, 0..1
--       12 claim: which of its holder's this call is
-- Returns {settled, what it did to the circuit: opened, closed or ''} {unknown}
--
-- Buys: a call is settled once: what is not running changes nothing, and a worker that lost its holder to a later claim
-- settles nothing of that one's. Each call remembers the round it began in, and
-- every opening and closing begins another one, so a call from before an outage does not judge what is after it. With
-- the circuit not closed, calls of the present round are probes: none but them is admitted then.
local MINUTE_MS = 60000
local LONGEST_DEBT_MS = 600000  -- a count that cannot be right does not close a provider for hours
local SLOTS = 10       -- the window is counted in so many parts
local DOUBLINGS = 3    -- 8 times as long at most
local JITTER = 0.25    -- at most so much longer
local SLOT_FIELDS = {'w0', 'w1', 'w2', 'w3', 'w4', 'w5', 'w6', 'w7', 'w8', 'w9'}

local throttle, running, calls, probes, waiting, asked = unpack(KEYS)
local holder, outcome, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[5])
local estimate, began, claim = string.match(redis.call('HGET', calls, holder) or '', '^(%d+) (%d+) (%d+)$')
if claim and claim ~= ARGV[12] then return {'unknown'} end
redis.call('ZREM', waiting, holder)
redis.call('ZREM', asked, holder)
if not estimate then return {'unknown'} end
redis.call('HDEL', calls, holder)
redis.call('ZREM', running, holder)
redis.call('ZREM', probes, holder)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local function set(...) redis.call('HSET', throttle, ...) end
local t = redis.call('HMGET', throttle, 'round', 'open_until', 'reopened', 'hold_until', 'tokens_full',
                     unpack(SLOT_FIELDS))
local round, reopened = tonumber(t[1] or '0'), tonumber(t[3] or '0')
local did = ''

local tokens_full = math.max(tonumber(t[5] or '0'), now)
if ARGV[3] ~= '' and ARGV[6] ~= '' then
  local more_ms = (tonumber(ARGV[3]) - tonumber(estimate)) * MINUTE_MS / tonumber(ARGV[6])
  tokens_full = math.min(tokens_full + more_ms, now + LONGEST_DEBT_MS)
  set('tokens_full', string.format('%.3f', tokens_full))
end
if ARGV[4] ~= '0' then set('hold_until', whole(math.max(tonumber(t[4] or '0'), now + tonumber(ARGV[4])))) end

local function turn(to)
  redis.call('HDEL', throttle, unpack(SLOT_FIELDS))
  set('round', whole(round + 1))
  did = to
end
local function open(times)
  local open_ms = tonumber(ARGV[10]) * 2 ^ math.min(times, DOUBLINGS) * (1 + JITTER * tonumber(ARGV[11]))
  set('open_until', whole(now + open_ms), 'reopened', whole(times))
  turn('opened')
end
if tonumber(began) == round and outcome ~= 'neutral' then
  local failed = outcome == 'failed'
  if t[2] then
    if failed then
      open(reopened + 1)
    else
      redis.call('HDEL', throttle, 'open_until', 'reopened')
      turn('closed')
    end
  else
    local slot_now = math.floor(now * SLOTS / tonumber(ARGV[7]))
    local settled, failures, settled_now, failures_now = 1, failed and 1 or 0, 1, failed and 1 or 0
    for i = 1, SLOTS do
      local slot, some, bad = string.match(t[5 + i] or '', '^(%d+) (%d+) (%d+)$')
      if slot and tonumber(slot) > slot_now - SLOTS then
        settled, failures = settled + some, failures + bad
        if tonumber(slot) == slot_now then settled_now, failures_now = settled_now + some, failures_now + bad end
      end
    end
    if settled >= tonumber(ARGV[8]) and failures >= tonumber(ARGV[9]) * settled then
      open(0)
    else
      local counted = {whole(slot_now), whole(settled_now), whole(failures_now)}
      set(SLOT_FIELDS[slot_now % SLOTS + 1], table.concat(counted, ' '))
    end
  end
end
ttl_ms = math.max(ttl_ms, tokens_full - now + MINUTE_MS)
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], whole(ttl_ms)) end
return {'settled', did}

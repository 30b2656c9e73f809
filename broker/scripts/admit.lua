#!lua
-- Let a call to a provider begin, or say how long its holder should wait, or refuse a retry.
--
-- KEYS  1 throttle  2 running  3 calls  4 probes  5 waiting  6 asked
-- ARGV  1 holder: one a call  2 tokens it may use  3 '1' if it is a retry  4 lease ms  5 ms until unused keys may go
--       6 most calls at once, or ''  7 requests a minute, or ''  8 tokens a minute, or ''
--       9 share of first calls that may be retried  10 retries a minute beside it
--       11 most probes at once  12 ms for which a probe counts as one  13 claim: which of its holder's this call is
-- Returns {admitted} {wait, reason, ms} {refused, reason}
--
-- Buys: a holder that is admitted twice takes one slot, one request and its tokens once. A slot whose holder says
-- nothing for a lease is free again, and one that an earlier claim of its holder left, at once: that worker is lost, and
-- this is another call, which counts as one. Whoever waits keeps its turn while it asks: a ticket's score is the sum of tokens
-- asked for before it, so its rank says how many calls go first, and its distance from the first ticket how many
-- tokens. Tickets that went out of turn are in that sum until the first one goes: it errs towards waiting.
-- A bucket is one number (GCRA): the time at which it will be full again. It holds a minute's worth.
local MINUTE_MS = 60000
local SLOT_MS, SLOTS = 10000, 6  -- the minute that retries are counted in
local GRACE_MS = 3000            -- a ticket outlives the hint of its last wait by this
local PLACE_MS = 50              -- hint for each call before this one
local LONGEST_PLACE_MS = 1000
local LONGEST_BUCKET_MS = 5000   -- a longer wait is told in parts: a holder that is gone keeps its turn no longer
local PROBE_MS = 500             -- hint while probes decide

local throttle, running, calls, probes, waiting, asked = unpack(KEYS)
local holder, tokens, retry = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local lease_ms, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local most_calls, requests_a_minute, tokens_a_minute = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number) return string.format('%.0f', number) end
local function expire()
  for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], whole(ttl_ms)) end
end

-- What is over: calls whose holder vanished, turns of holders that no longer ask.
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', whole(now))) do redis.call('HDEL', calls, gone) end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', asked, '-inf', whole(now))) do redis.call('ZREM', waiting, gone) end
for _, key in ipairs({running, asked, probes}) do redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now)) end
local claim = tonumber(ARGV[13])
if redis.call('ZSCORE', running, holder) then
  local held = tonumber(string.match(redis.call('HGET', calls, holder) or '', '^%d+ %d+ (%d+)$') or ARGV[13])
  if held == claim then return {'admitted'} end
  if held > claim then return {'wait', 'concurrency', whole(LONGEST_PLACE_MS)} end  -- it is lost, and will hear of it
  redis.call('ZREM', running, holder)
  redis.call('ZREM', probes, holder)
  redis.call('HDEL', calls, holder)
end

local t = redis.call('HMGET', throttle, 'round', 'open_until', 'hold_until', 'requests_full', 'tokens_full', 'tickets',
                     'm0', 'm1', 'm2', 'm3', 'm4', 'm5')
local round, open_until, hold_until = t[1] or '0', tonumber(t[2] or ''), tonumber(t[3] or '0')
local requests_full, tokens_full = math.max(tonumber(t[4] or '0'), now), math.max(tonumber(t[5] or '0'), now)
ttl_ms = math.max(ttl_ms, tokens_full - now + MINUTE_MS)

local function wait(reason, ms)
  ms = math.max(1, math.ceil(ms))
  redis.call('ZADD', asked, 'XX', whole(now + ms + GRACE_MS), holder)
  return {'wait', reason, whole(ms)}
end

-- The retry budget. A retry is paid for when it is admitted; one that may not be paid for does not wait either.
local slot_now = math.floor(now / SLOT_MS)
local firsts, retries, firsts_now, retries_now = 0, 0, 0, 0
for i = 7, 6 + SLOTS do
  local slot, first, again = string.match(t[i] or '', '^(%d+) (%d+) (%d+)$')
  if slot and tonumber(slot) > slot_now - SLOTS then
    firsts, retries = firsts + first, retries + again
    if tonumber(slot) == slot_now then firsts_now, retries_now = tonumber(first), tonumber(again) end
  end
end
if retry and retries + 1 > tonumber(ARGV[10]) + tonumber(ARGV[9]) * firsts then
  redis.call('ZREM', waiting, holder)
  redis.call('ZREM', asked, holder)
  return {'refused', 'retry_budget'}
end

if hold_until > now then return wait('retry_after', hold_until - now) end
if open_until then
  if open_until > now then return wait('circuit_open', open_until - now) end
  if redis.call('ZCARD', probes) >= tonumber(ARGV[11]) then return wait('circuit_open', PROBE_MS) end
end

-- The limits. Those who hold an earlier ticket come first.
local rank = redis.call('ZRANK', waiting, holder)
local ticket = rank and tonumber(redis.call('ZSCORE', waiting, holder))
if not rank then
  rank = redis.call('ZCARD', waiting)
  ticket = rank > 0 and tonumber(t[6] or '0') or 0
end
local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
local tokens_before = first[2] and ticket - tonumber(first[2]) or 0

-- Until the bucket holds what goes first and then this; one that is larger than the bucket needs it full.
local function until_filled(full, before_ms, own_ms)
  return math.min(full + before_ms + math.min(own_ms, MINUTE_MS) - MINUTE_MS - now, LONGEST_BUCKET_MS)
end
local reason, ms = nil, 0
local function also(other, other_ms)
  if other_ms > ms then reason, ms = other, other_ms end
end
if most_calls then
  local over = rank - (most_calls - redis.call('ZCARD', running)) + 1  -- 1: the next one
  also('concurrency', math.min(over * PLACE_MS, LONGEST_PLACE_MS))
end
local request_ms = requests_a_minute and MINUTE_MS / requests_a_minute
if request_ms then also('requests', until_filled(requests_full, rank * request_ms, request_ms)) end
local token_ms = tokens_a_minute and MINUTE_MS / tokens_a_minute
if token_ms then also('tokens', until_filled(tokens_full, tokens_before * token_ms, tokens * token_ms)) end
if reason then
  if not redis.call('ZSCORE', waiting, holder) then
    redis.call('ZADD', waiting, whole(ticket), holder)
    redis.call('ZADD', asked, whole(now), holder)
    redis.call('HSET', throttle, 'tickets', whole(ticket + math.max(tokens, 1)))
  end
  local answer = wait(reason, ms)
  expire()
  return answer
end

redis.call('ZREM', waiting, holder)
redis.call('ZREM', asked, holder)
redis.call('ZADD', running, whole(now + lease_ms), holder)
redis.call('HSET', calls, holder, table.concat({whole(tokens), round, ARGV[13]}, ' '))
if open_until then redis.call('ZADD', probes, whole(now + tonumber(ARGV[12])), holder) end
if retry then retries_now = retries_now + 1 else firsts_now = firsts_now + 1 end
local counted = {whole(slot_now), whole(firsts_now), whole(retries_now)}
local fields = {'m' .. whole(slot_now % SLOTS), table.concat(counted, ' ')}
if request_ms then
  fields[#fields + 1], fields[#fields + 2] = 'requests_full', string.format('%.3f', requests_full + request_ms)
end
if token_ms then
  tokens_full = tokens_full + tokens * token_ms
  ttl_ms = math.max(ttl_ms, tokens_full - now + MINUTE_MS)
  fields[#fields + 1], fields[#fields + 2] = 'tokens_full', string.format('%.3f', tokens_full)
end
redis.call('HSET', throttle, unpack(fields))
expire()
return {'admitted'}

#!lua
-- Take a place in the line of a thread.
--
-- KEYS  1 line  2 all
-- ARGV  1 generation  2 '1' if only where nobody else is in the line  3 most places  4 ms that `all` is kept at least
--       5 when it was made, in ms, for one whose place was lost; '' for a new one  6.. generations that have ended
-- Returns {joined, generation ahead, generation ahead …} {occupied, generation in the line …} {full}
--
-- Buys: order. A new one stands behind everybody, whatever clocks say; one whose place was lost stands where its age puts
-- it. Who has a place keeps it, so this may be repeated. The generations that the caller knows to have ended lose
-- theirs first, so that `occupied` and the order are judged without them, in the same step.
local line, all, id = KEYS[1], KEYS[2], ARGV[1]
if #ARGV > 5 then redis.call('ZREM', line, unpack(ARGV, 6)) end
if not redis.call('ZSCORE', line, id) then
  local score
  if ARGV[5] ~= '' then
    score = tonumber(ARGV[5])
  else
    local members = redis.call('ZRANGE', line, '0', '-1')
    if ARGV[2] == '1' and #members > 0 then return {'occupied', unpack(members)} end
    if #members >= tonumber(ARGV[3]) then return {'full'} end
    local time = redis.call('TIME')
    score = time[1] * 1000 + math.floor(time[2] / 1000)
    local last = redis.call('ZRANGE', all, '-1', '-1', 'WITHSCORES')
    if last[2] then score = math.max(score, tonumber(last[2]) + 1) end
    last = redis.call('ZRANGE', line, '-1', '-1', 'WITHSCORES')
    if last[2] then score = math.max(score, tonumber(last[2]) + 1) end
  end
  redis.call('ZADD', line, string.format('%.0f', score), id)
  redis.call('ZADD', all, 'NX', string.format('%.0f', score), id)
  redis.call('ZREMRANGEBYRANK', all, '0', '-501')
  local keep = math.max(tonumber(ARGV[4]), redis.call('PTTL', all))
  redis.call('PEXPIRE', all, string.format('%.0f', keep))
end
local rank = redis.call('ZRANK', line, id)
if rank == 0 then return {'joined'} end
return {'joined', unpack(redis.call('ZRANGE', line, '0', string.format('%.0f', rank - 1)))}

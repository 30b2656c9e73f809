#!lua
-- Seal a log that has ended: store the same events in fewer entries (broker.joined).
--
-- KEYS  1 record  2 log
-- ARGV  1 position of the terminal event
--       then id, field, payload, lengths of each entry; no lengths ('') where it stands for one event
-- Returns {sealed} {joined, entries in the log: it is not the log of single events that was meant} {other, last or ''}
--
-- Buys: what is replaced is the log that ends in that very event, whole, each of its events an entry, and by as many
-- events, numbered as they were; so every position that it held it holds still. It keeps its time to live. Whoever
-- reads sees one log or the other, and so do replicas and files: there is nothing between.
local ENDED = {completed = true, failed = true, cancelled = true}
local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if not tail or tail[1] ~= ARGV[1] or not ENDED[tail[2][1]] or not ENDED[redis.call('HGET', KEYS[1], 'state')] then
  return {'other', tail and tail[1] or ''}
end
local seq = 0
for i = 2, #ARGV, 4 do
  seq = seq + math.max(1, #ARGV[i + 3])
  if tonumber(string.match(ARGV[i], '^(%d+)-%d+$')) ~= seq then
    return redis.error_reply('HOLE ' .. ARGV[i] .. ' is not the end of its events')
  end
end
if ARGV[#ARGV - 3] ~= ARGV[1] then return redis.error_reply('HOLE the end is missing') end
local length = redis.call('XLEN', KEYS[2])
if length ~= seq then return {'joined', string.format('%.0f', length)} end

local left = redis.call('PTTL', KEYS[2])
redis.call('UNLINK', KEYS[2])
for i = 2, #ARGV, 4 do
  if ARGV[i + 3] == '' then
    redis.call('XADD', KEYS[2], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  else
    redis.call('XADD', KEYS[2], ARGV[i], ARGV[i + 1], ARGV[i + 2], 'c', ARGV[i + 3])
  end
end
if left >= 0 then redis.call('PEXPIRE', KEYS[2], string.format('%.0f', left)) end
return {'sealed'}

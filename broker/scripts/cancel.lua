#!lua flags=allow-oom
-- Cancel a generation: store the wish, or end it at once where no worker could.
--
-- KEYS  1 record  2 log  3 request
-- ARGV  1 reason  2 ms after which a worker that was asked is no longer waited for  3 jump  4 live channel
-- Returns {requested} {cancelled, head, upstream mark or ''} {ended, state} {gone}
--
-- Buys: once this answers `requested` or `cancelled`, the only terminal event that the log can get is `cancelled`. With
-- no live lease (queued, between attempts, holder lost) the event is written here, under a higher epoch, so that
-- no former holder writes behind it.
local ENDED = {completed = true, failed = true, cancelled = true}
local record, log = KEYS[1], KEYS[2]
local r = redis.call('HMGET', record, 'epoch', 'state', 'lease', 'cancel', 'cancel_ms', 'history', 'ttl_ms', 'stub_ms',
                     'upstream', 'hooks')
if not r[1] or r[2] == 'deleted' then return {'gone'} end
if ENDED[r[2]] then return {'ended', r[2]} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reason = r[4] or ''
local overdue = reason ~= '' and now - tonumber(r[5]) >= tonumber(ARGV[2])
if tonumber(r[3] or '0') > now and not overdue then
  if reason == '' then
    redis.call('HSET', record, 'cancel', ARGV[1], 'cancel_ms', string.format('%.0f', now))
    redis.call('HDEL', record, 'pass')
  end
  return {'requested'}
end
if reason == '' then reason = ARGV[1] end

local tail = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
local last = tail[1] and tail[1][1] or '0-0'
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
local epoch = tonumber(r[1]) + 1
if replid == '' or replid ~= r[6] then epoch = epoch + tonumber(ARGV[3]) end
epoch = string.format('%.0f', epoch)
local head = string.format('%.0f', tonumber(string.match(last, '^%d+')) + 1) .. '-' .. epoch
local payload = '{"reason":"' .. reason .. '"}'
redis.call('XADD', log, head, 'cancelled', payload)
redis.call('HSET', record, 'epoch', epoch, 'owner', '', 'lease', '0', 'history', replid, 'head', head,
           'state', 'cancelled', 'ended_ms', string.format('%.0f', now), 'cancel', reason)
redis.call('HDEL', record, 'pass')
if r[10] and r[10] ~= '' then redis.call('HSET', record, 'end', payload) end
redis.call('PEXPIRE', log, r[7])
redis.call('PEXPIRE', KEYS[3], r[7])
redis.call('PEXPIRE', record, r[8])
redis.call('SPUBLISH', ARGV[4], cmsgpack.pack({last, head, 'cancelled', payload}))
return {'cancelled', head, r[9] or ''}

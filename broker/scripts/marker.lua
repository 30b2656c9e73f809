#!lua
-- How long ago this node may have lost data, ms.
--
-- KEYS  1 the node's marker
-- Returns ms since the marker was made, or made anew
--
-- The marker holds the run id of the server that it was made on. Where it is missing (everything was lost) or names another
-- run (a restart, a failover: what was not replicated or synced is lost), it is made now.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
local known, since = string.match(redis.call('GET', KEYS[1]) or '', '^(%x*) (%d+)$')
if known ~= run then
  since = string.format('%.0f', now)
  redis.call('SET', KEYS[1], run .. ' ' .. since)
end
return string.format('%.0f', now - tonumber(since))

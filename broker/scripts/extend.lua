#!lua
-- Append the next delta of a running log, for who stored its last entry: nearly every append there is.
--
-- KEYS  1 record  2 log
-- ARGV  1 pass: "epoch owner"  2 live channel  3 seq of the last entry  4 seq of the delta, one more  5 "-epoch" of both
--       6 field, of one letter  7 payload
--
-- Returns 1: stored and published; 0: not for this script, nothing was done, and `append` will tell.
--
-- Buys: all that `append` buys, for two look-ups. The record's field `pass` is the epoch and owner of who stored the
-- log's last entry: `append` sets it, and every script that changes epoch, owner or state or stores a cancel takes it
-- away. So the log needs no look at its last entry: a writer has one entry a seq, and a log that is as long as its
-- writer says ends where its writer says. A delta that is sent again finds a longer log.
-- The message is text, "prev id field payload".
local last, seq = tonumber(ARGV[3]), tonumber(ARGV[4])
if #ARGV[6] ~= 1 or seq ~= last + 1 then return redis.error_reply('HOLE ' .. ARGV[4] .. ' is not the next delta') end
if redis.call('HGET', KEYS[1], 'pass') ~= ARGV[1] or redis.call('XLEN', KEYS[2]) ~= last then return 0 end
local id = ARGV[4] .. ARGV[5]
redis.call('XADD', KEYS[2], id, ARGV[6], ARGV[7])
redis.call('SPUBLISH', ARGV[2], ARGV[3] .. ARGV[5] .. ' ' .. id .. ' ' .. ARGV[6] .. ' ' .. ARGV[7])
return 1

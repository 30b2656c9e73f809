#!lua
-- First step of a submit: bind an idempotency key to a generation id, and list the id under its tenant.
--
-- KEYS  1 idempotency key  2 index
-- ARGV  1 generation  2 fingerprint or '' for no key  3 ms to keep the key  4 '1' if only a known key is let in
-- Returns {reserved} {known, fingerprint, generation} {refused}
--
-- Buys: what is refused was never bound, so nobody who came with the same key meanwhile goes on under it.
if ARGV[2] ~= '' then
  local known = redis.call('GET', KEYS[1])
  if known then
    local fingerprint, generation = string.match(known, '^(%S+) (%S+)$')
    return {'known', fingerprint, generation}
  end
end
if ARGV[4] == '1' then return {'refused'} end
if ARGV[2] ~= '' then
  redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
end
redis.call('ZADD', KEYS[2], '0', ARGV[1])
return {'reserved'}

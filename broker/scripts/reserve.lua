#!lua
-- First step of a submit: bind an idempotency key to a generation id, and list the id under its tenant.
--
-- KEYS  1 idempotency key  2 index    ARGV  1 generation  2 fingerprint or '' for no key  3 ms to keep the key
-- Returns {reserved} {known, fingerprint, generation}
if ARGV[2] ~= '' then
  local known = redis.call('GET', KEYS[1])
  if known then
    local fingerprint, generation = string.match(known, '^(%S+) (%S+)$')
    return {'known', fingerprint, generation}
  end
  redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
end
redis.call('ZADD', KEYS[2], '0', ARGV[1])
return {'reserved'}

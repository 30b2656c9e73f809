#!lua flags=allow-oom
-- Give up the places of generations that have ended, and say who is in the line of their thread now.
--
-- KEYS  1 line  2 all    ARGV  1 most to say  2 ms that `all` is kept at least  3.. generations; none: only say
-- Returns {generation in the line, in order …}
--
-- Compare and remove: each by its own id, so it may be repeated, and done by anyone who meets an ended generation. It
-- stays among `all`, in its order.
for i = 3, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('ZADD', KEYS[2], score, ARGV[i])
    redis.call('ZREMRANGEBYRANK', KEYS[2], '0', '-501')
    local keep = math.max(tonumber(ARGV[2]), redis.call('PTTL', KEYS[2]))
    redis.call('PEXPIRE', KEYS[2], string.format('%.0f', keep))
  end
end
return redis.call('ZRANGE', KEYS[1], '0', string.format('%.0f', tonumber(ARGV[1]) - 1))

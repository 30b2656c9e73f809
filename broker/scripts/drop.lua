#!lua flags=allow-oom
-- Forget hints: their generations have ended.
--
-- KEYS  1 later  2 ready interactive  3 ready batch    ARGV  1.. hints
-- Returns 1
for i = 1, #ARGV do
  for k = 1, 3 do redis.call('ZREM', KEYS[k], ARGV[i]) end
end
return 1

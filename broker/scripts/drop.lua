#!lua flags=allow-oom
-- Forget hints: their generations have ended.
--
-- KEYS  1 later  2 ready interactive  3 ready batch  4 totals    ARGV  1 a total to be raised by one, or ''  2.. hints
-- Returns 1
for i = 2, #ARGV do
  for k = 1, 3 do redis.call('ZREM', KEYS[k], ARGV[i]) end
end
if ARGV[1] ~= '' then redis.call('HINCRBY', KEYS[4], ARGV[1], '1') end
return 1

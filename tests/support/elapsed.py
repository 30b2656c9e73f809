"""Lets time pass for a provider's throttle: Redis' clock cannot be moved, so what is stored is moved into the past."""

from __future__ import annotations

from typing import Final

from broker.keys import Keys

#: KEYS  throttle and the sets whose scores are times; ARGV  ms, parts of a minute, parts of the breaker's window
LAPSE: Final = """
local throttle, ms = KEYS[1], tonumber(ARGV[1])
for i = 2, #KEYS do
  for _, member in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do redis.call('ZINCRBY', KEYS[i], -ms, member) end
end
for _, field in ipairs({'open_until', 'hold_until', 'requests_full', 'tokens_full'}) do
  local at = redis.call('HGET', throttle, field)
  if at then redis.call('HSET', throttle, field, string.format('%.3f', tonumber(at) - ms)) end
end
for letter, slots in pairs({m = {6, tonumber(ARGV[2])}, w = {10, tonumber(ARGV[3])}}) do
  local moved = {}
  for i = 0, slots[1] - 1 do
    local slot, rest = string.match(redis.call('HGET', throttle, letter .. i) or '', '^(%d+) (.*)$')
    if slot then
      redis.call('HDEL', throttle, letter .. i)
      moved[#moved + 1] = {tonumber(slot) - slots[2], rest}
    end
  end
  for _, slot in ipairs(moved) do
    redis.call('HSET', throttle, letter .. (slot[1] % slots[1]), string.format('%.0f ', slot[1]) .. slot[2])
  end
end
"""

_MINUTE_PART_MS: Final = 10_000
_WINDOW_PARTS: Final = 10


class Elapsed:
    """The time that has passed for one provider; counters move by whole parts, as often as they are full."""

    def __init__(self, keys: Keys, provider: str, *, window_ms: int) -> None:
        self._keys = [key(provider) for key in (keys.throttle, keys.running, keys.probes, keys.asked)]
        self._window_part_ms = window_ms // _WINDOW_PARTS
        self.ms = 0

    def more(self, ms: int) -> tuple[str | int, ...]:
        """What to EVAL, so that so much more has passed."""
        before, self.ms = self.ms, self.ms + ms
        parts = [self.ms // width - before // width for width in (_MINUTE_PART_MS, self._window_part_ms)]
        return (LAPSE, len(self._keys), *self._keys, ms, *parts)

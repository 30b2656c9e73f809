"""Has this process stood still? Tells an outage of the store from a sleep of our own.

A worker that was paused (SIGSTOP, a laptop's lid, a frozen container) and finds its generation gone must not put it
back: it slept through whatever happened to it. One that was awake, and whose store was away, must. CLOCK_BOOTTIME
counts suspended time too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

_BEAT_SECONDS: Final = 1.0
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Pulse:
    """A heartbeat of the event loop. A gap longer than `tolerance` seconds is a standstill."""

    def __init__(self, *, tolerance: float) -> None:
        self._tolerance = tolerance
        self._last = self.now()
        self._stood_still_at = float("-inf")

    @staticmethod
    def now() -> float:
        """Seconds of a clock that goes on while the machine sleeps."""
        return time.clock_gettime(_CLOCK)

    def stood_still_since(self, moment: float) -> bool:
        """Whether there was a standstill that ended after `moment`. Sees one that ended just now, too."""
        self._beat()
        return self._stood_still_at > moment

    async def run(self) -> None:
        """Beat, once a second."""
        while True:
            self._beat()
            await asyncio.sleep(_BEAT_SECONDS)

    def _beat(self) -> None:
        now = self.now()
        if now - self._last > self._tolerance + _BEAT_SECONDS:
            self._stood_still_at = now
        self._last = now

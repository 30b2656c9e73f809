"""How long a subscription connection may be left unread. A loop with little to do reads at once: a token is never late.

In a busy one every waking costs about as much as a token, and hundreds of them come in the time in which no reader
sees a difference. So the busier the loop, the longer it leaves the connection alone (the kernel and the server keep
what comes), up to 10 ms, and takes in at once what has come by then. Pure but for its two clocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: How often the pause is thought over.
_LOOK_SECONDS: Final = 0.1
#: The share of its core at which the thread of the loop is busy, and at which it is not any more. They lie apart: a
#: pause makes the same load cheaper, and must not end by that.
_BUSY: Final = 0.25
_QUIET: Final = 0.08
#: Messages a second that are worth a pause, and how many must come together then: a loop may be busy with something
#: else, or with many readers of few messages.
_MANY: Final = 200
_TOGETHER: Final = 2
_STEP_SECONDS: Final = 0.002
_MOST_SECONDS: Final = 0.01


class Pace:
    """Asked after each read how long to wait until the next one."""

    __slots__ = ("_clock", "_looked_at", "_messages", "_reads", "_seconds", "_spent", "_spent_then")

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        """`clock` gives seconds, `spent` those of CPU that the calling thread has used."""
        self._clock = clock
        self._spent = spent
        self._seconds = 0.0
        self._looked_at = clock()
        self._spent_then = spent()
        self._reads = self._messages = 0  # since then

    def pause(self, messages: int) -> float:
        """Seconds to leave the connection unread, after a read that brought so many messages."""
        self._reads += 1
        self._messages += messages
        now = self._clock()
        gone = now - self._looked_at
        if gone >= _LOOK_SECONDS:
            spent = self._spent()
            share = (spent - self._spent_then) / gone
            self._looked_at, self._spent_then = now, spent
            alone = self._messages < _TOGETHER * self._reads
            if share < _QUIET or (self._seconds and alone):
                self._seconds = max(self._seconds - _STEP_SECONDS, 0.0)
            elif share > _BUSY and self._messages > _MANY * gone:
                self._seconds = min(self._seconds + _STEP_SECONDS, _MOST_SECONDS)
            self._reads = self._messages = 0
        return self._seconds

"""Ends a block when its provider is silent for too long, or the generation's time is over.

A sign of life is one assignment to `last`: it comes with every token, and moving a timer each time would cost more than
all that is done with the token. The timer looks at `last` only when it fires.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class Watch:
    """An asynchronous context; raises `TimeoutError` out of its block. Times are of `time.monotonic`."""

    def __init__(self, *, end: float, stall_seconds: float) -> None:
        self.last = time.monotonic()  # the last sign of life; set by who reads
        self.end = end
        self.stall_seconds = stall_seconds
        self._paused = False
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self.last = time.monotonic()
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disarm()
        await self._timeout.__aexit__(kind, exc, traceback)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block lasts it is not the provider that is waited for: only `end` counts."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False
            self.last = time.monotonic()
            self._disarm()
            self._arm()

    def expire(self) -> None:
        """End the block now, as if time were over."""
        self._timeout.reschedule(asyncio.get_running_loop().time())

    @property
    def _due(self) -> float:
        return self.end if self._paused else min(self.end, self.last + self.stall_seconds)

    def _arm(self) -> None:
        delay = max(0.0, self._due - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if time.monotonic() >= self._due:
            self.expire()
        else:
            self._arm()

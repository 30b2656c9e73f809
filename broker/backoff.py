"""Delays between tries: random up to a bound that doubles, so that many who wait for one thing do not come at once; and
loops that go on whatever happens in them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from broker.errors import StoreUnavailable, where

Result = TypeVar("Result")

_log = structlog.get_logger("legato.broker")

#: How long a loop with a defect is left alone.
_DEFECT_SECONDS: Final = 0.1


class Backoff:
    """The delays of one series of tries, in seconds."""

    def __init__(self, *, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._bound = first

    def next(self) -> float:
        """How long to wait now."""
        bound, self._bound = self._bound, min(self._bound * 2, self._most)
        return random.uniform(0, bound)

    def reset(self) -> None:
        """It worked: the next series starts small."""
        self._bound = self._first


async def until_available(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call that may be repeated, as often as it takes until the store is there."""
    backoff = Backoff(first=0.05, most=2.0)
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(backoff.next())


async def unharmed(loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop that a process lives by. A defect in it is logged, and it starts again: it must not end the process,
    or leave it running without the loop."""
    while True:
        try:
            await loop()
        except Exception as exc:  # noqa: BLE001 - see above
            _log.error("loop_defect", loop=loop.__qualname__, **where(exc))
            await asyncio.sleep(_DEFECT_SECONDS)

"""Delays between tries: random up to a bound that doubles, so that many who wait for one thing do not come at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from broker.errors import StoreUnavailable

Result = TypeVar("Result")


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

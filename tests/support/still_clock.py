"""A clock for the scripts that ask for the time: it stands still, but for what a test lets pass.

Redis' own cannot be moved, and goes on while a test's process stands still. So the scripts of a store are given this
time in their text. What Redis forgets by itself (`PEXPIRE`) still goes by its own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1

from broker.scripts import Script
from broker.store import Store
from broker.wire import Arg, Reply

_ASKS = b"redis.call('TIME')"


class StillClock:
    """The time of the scripts that `store` runs from now on, in ms. It begins within the parts that minutes and windows
    are counted in, and not where one of them does."""

    def __init__(self, store: Store) -> None:
        self.ms = 1_795_000_004_321
        pipe = store.pipe

        async def timed(script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Reply:
            return await pipe(self._timed(script), keys, args)

        store.pipe = timed  # type: ignore[method-assign]

    def _timed(self, script: Script) -> Script:
        seconds, ms = divmod(self.ms, 1000)
        source = script.source.replace(_ASKS, b"{%d, %d}" % (seconds, ms * 1000))
        return Script(script.name, source, sha1(source, usedforsecurity=False).hexdigest().encode())

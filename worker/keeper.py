"""Keeps the logs of generations that have ended, for a while: puts back what the store forgets of them, and seals them.

A client saw `completed`; then the store fails over to a replica that had not heard of it. Whoever wrote the log looks
again after 1, 5 and 30 seconds, and whenever its store has come back, and heals it as if it were still running.
Bounded in time (`LEGATO_HEAL_SECONDS`) and in memory (`LEGATO_HEAL_BYTES`, oldest first out).

A log that was found whole is sealed: it takes the store a third of the memory then, and costs its readers next to
nothing. Nobody depends on that: one that is not sealed, for whatever reason, says the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from broker.errors import LeaseLost, StoreError
from worker.writer import Writer

_log = structlog.get_logger("legato.worker")

#: Seconds after the end at which a log is looked at.
_CHECKS: Final = (1.0, 5.0, 30.0)
_TICK_SECONDS: Final = 0.25

#: One look at a log takes no longer than this; the store is away then, and its return brings the next one.
_LOOK_SECONDS: Final = 10.0
_LOOKS_AT_ONCE: Final = 50


@dataclass(slots=True)
class _Kept:
    writer: Writer
    ended_at: float
    size: int
    checks: int = 0
    due: bool = False
    sealed: bool = False  # or not worth it


class Keeper:
    """The ended logs of one worker. Run `run()` beside its runs."""

    def __init__(self, *, heal_seconds: float, heal_bytes: int) -> None:
        self._heal_seconds = heal_seconds
        self._heal_bytes = heal_bytes
        self._kept: dict[str, _Kept] = {}  # in order of their ends
        self._size = 0

    def keep(self, writer: Writer) -> None:
        """Keep the log of a generation that has just ended."""
        self._drop(writer.lease.generation)
        size = writer.memory_bytes
        self._kept[writer.lease.generation] = _Kept(writer, asyncio.get_running_loop().time(), size)
        self._size += size
        while self._size > self._heal_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def store_returned(self) -> None:
        """A server answers again after a break: look at everything."""
        for kept in self._kept.values():
            kept.due = True

    async def first_checks(self) -> None:
        """Wait until every kept log was looked at once: what a leaving worker owes."""
        while any(kept.checks == 0 for kept in self._kept.values()):
            await asyncio.sleep(_TICK_SECONDS)

    async def run(self) -> None:
        """Look at what is due; forget what is old."""
        turns = asyncio.Semaphore(_LOOKS_AT_ONCE)
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            for generation, kept in list(self._kept.items()):
                if now - kept.ended_at > self._heal_seconds:
                    self._drop(generation)
            due = [kept for kept in self._kept.values() if kept.due or self._is_time(kept, now)]
            await asyncio.gather(*(self._look(kept, turns) for kept in due))

    @staticmethod
    def _is_time(kept: _Kept, now: float) -> bool:
        return kept.checks < len(_CHECKS) and now - kept.ended_at >= _CHECKS[kept.checks]

    async def _look(self, kept: _Kept, turns: asyncio.Semaphore) -> None:
        async with turns:
            whole = await self._is_whole(kept)
            kept.checks += 1  # who leaves waits for this, and not for the sealing
            if whole and not kept.sealed:
                await self._seal(kept)

    async def _is_whole(self, kept: _Kept) -> bool:
        """Put back what is missing. False where that could not be done, or is not ours to do."""
        generation = kept.writer.lease.generation
        kept.due = False
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                healed = await kept.writer.verify()
        except (StoreError, TimeoutError):
            kept.due = True
            return False
        except LeaseLost:
            self._drop(generation)
            return False
        if healed:
            _log.warning("log_healed", generation=generation, entries=healed)
            kept.sealed = False
        return True

    @staticmethod
    async def _seal(kept: _Kept) -> None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await kept.writer.seal()
        except (StoreError, TimeoutError) as exc:
            _log.debug("log_not_sealed", generation=kept.writer.lease.generation, error=str(exc))
        else:
            kept.sealed = True

    def _drop(self, generation: str) -> None:
        kept = self._kept.pop(generation, None)
        if kept is not None:
            self._size -= kept.size

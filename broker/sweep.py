"""The sweep: now and then, somebody looks through everything for what a crash or the store has left behind.

Nothing waits for it in ordinary life. It finds jobs whose hint the queue has lost, threads whose line is lost or stands
still, and entries of indexes whose record is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from broker.errors import StoreError
from broker.records import Records
from broker.store import Store

_log = structlog.get_logger("legato.broker")

#: A sweep looks at so many records at once, and pauses so many seconds in between.
_SWEEP_STEP: Final = 100
_SWEEP_PACE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep found: hints put back, index entries forgotten."""

    orphans: int
    stale: int


class Sweeper:
    """Sweeps one store."""

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._keys = store.keys
        self._records = records

    async def sweep(self) -> Swept:
        """Look through every record for hints and places that are lost, through every line, and through every index
        for entries whose record is gone. Slow on purpose (`_SWEEP_PACE`), and by one process at a time."""
        turn_ms = round(self._store.settings.sweep_seconds * 1000)
        if not await self._store.take_turn(self._keys.sweeper(), turn_ms):
            return Swept(orphans=0, stale=0)
        orphans = stale = 0
        generations: list[str] = []
        async for key in self._store.scan(self._keys.records_pattern()):
            generations.append(self._keys.generation_of_record(key))
            if len(generations) == _SWEEP_STEP:
                orphans += await self._adopt_all(generations)
                generations = []
        orphans += await self._adopt_all(generations)
        async for line in self._store.scan(self._keys.lines_pattern()):
            await self._records.threads.advance_line(line)
        async for index in self._store.scan(self._keys.indexes_pattern()):
            below = ""
            while ids := await self._store.range_descending(index, below, _SWEEP_STEP):
                below = ids[-1]
                records = await asyncio.gather(*(self._records.find(generation) for generation in ids))
                gone = self._records.forgettable(ids, records)
                if gone:
                    await self._store.remove(index, gone)
                    stale += len(gone)
                await asyncio.sleep(_SWEEP_PACE)
        return Swept(orphans=orphans, stale=stale)

    async def _adopt_all(self, generations: Sequence[str]) -> int:
        adopting = (self._records.adopt_orphan(generation, sweeping=True) for generation in generations)
        adopted = 0
        for generation, found in zip(generations, await asyncio.gather(*adopting, return_exceptions=True), strict=True):
            if isinstance(found, bool):
                adopted += found
            elif isinstance(found, StoreError):
                raise found
            else:  # a record of another version, say: the others are looked at all the same
                _log.error("record_defect", generation=generation, error=repr(found)[:300])
        await asyncio.sleep(_SWEEP_PACE)
        return adopted

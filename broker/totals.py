"""Counters over all processes of a deployment, kept in the store: what no single process could add up."""

from __future__ import annotations

from enum import Enum

import structlog

from broker.errors import StoreError
from broker.store import Store

_log = structlog.get_logger("legato.broker")


class Total(Enum):
    """What is counted."""

    ENDED_COMPLETED = "ended_completed"
    ENDED_FAILED = "ended_failed"
    ENDED_CANCELLED = "ended_cancelled"
    ABANDONED = "abandoned"  # cancelled because nobody was reading
    TOKENS_UNSPENT = "tokens_unspent"  # that abandoned ones could still have used: their limit less what they wrote
    HANDED_OVER = "handed_over"  # given to another worker by one that was leaving
    WEBHOOKS_DELIVERED = "webhooks_delivered"
    WEBHOOKS_DEAD = "webhooks_dead"  # given up: tried too often, or refused for good
    RETRIED = "retried"  # attempts that failed and were tried again


class Totals:
    """The counters, over one store. Losing a count is no reason to fail: what cannot be counted is logged."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.keys.totals()

    async def add(self, total: Total, amount: int = 1) -> None:
        """Count something."""
        try:
            await self._store.add_to_counter(self._key, total.value, amount)
        except StoreError as exc:
            _log.warning("not_counted", total=total.value, amount=amount, error=str(exc))

    async def read(self) -> dict[Total, int]:
        """Everything counted so far. Raises `StoreUnavailable`."""
        found = await self._store.counters(self._key)
        return {total: found.get(total.value, 0) for total in Total}

"""Renews what a worker has while it runs something: leases, hints, places in lines and under the providers' limits.

The leases come first, and each for itself: a server that hangs must not cost what it does not hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from broker.errors import Closed, Fenced, StoreError
from broker.lease import Ended, Lost, Missing, Renewed
from broker.queue import Hint, Queue
from broker.threads import Threads
from worker.means import Means
from worker.run import Run

_log = structlog.get_logger("legato.worker")

#: A run that had no answer of the store for this long asks for one: that is how it learns of a cancel.
_POLL_SECONDS: Final = 0.5
_TICK_SECONDS: Final = 0.1


class Renewals:
    """Of what stands in `runs`, by generation: the worker puts it there, and takes it out. Both loops run beside it."""

    def __init__(self, runs: Mapping[str, tuple[Run, Hint]], *, queue: Queue, threads: Threads, means: Means) -> None:
        self._runs = runs
        self._queue = queue
        self._threads = threads
        self._leases = means.leases
        self._throttle = means.throttle
        self._pulse = means.pulse
        self._settings = means.settings
        self._data_lost = False  # since the hints and places of what runs here were renewed

    def store_returned(self) -> None:
        """A server answers again after a break: hints and places that it has lost are put back at once."""
        self._data_lost = True

    async def renew_loop(self) -> None:
        """Renew every lease well before its time, and poll for cancels where no append brings the answer."""
        term = self._settings.lease_seconds / 3
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._pulse.now()
            asking = [run for run, _ in self._runs.values() if self._is_due(run, now, term)]
            for run in asking:
                # Not waited for: a shard that hangs must not cost the others their leases.
                run.renewing = asyncio.create_task(self._renew(run), name=f"renew {run.generation}")

    async def hint_loop(self) -> None:
        """Renew the hints of what runs here, and its places in the lines of threads and under the providers' limits.
        Beside the leases, never before them: a server that hangs must not cost what it does not hold."""
        term = self._settings.lease_seconds / 3
        hints_at = self._pulse.now()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self._pulse.now()
            if self._runs and (now - hints_at >= term or self._data_lost):
                hints_at, self._data_lost = now, False
                try:
                    await self._queue.look_again([hint for _, hint in self._runs.values()], self._settings.lease_ms)
                    await self._keep_places()
                    await self._keep_calls()
                except StoreError as exc:
                    _log.warning("queue_unavailable", error=str(exc))

    async def _keep_places(self) -> None:
        """What runs here keeps its place in the line of its thread, also where the store has lost it."""
        keeping = [
            self._threads.keep_place(
                run.lease.tenant, run.lease.request.thread, run.generation, ttl_seconds=run.lease.request.ttl_seconds
            )
            for run, _ in self._runs.values()
            if run.lease.request.thread is not None
        ]
        await asyncio.gather(*keeping)

    async def _keep_calls(self) -> None:
        """Calls of providers that still run keep their place under the shared limits."""
        holders: dict[str, list[str]] = {}
        for run, _ in self._runs.values():
            held = run.attempt.admission.held if run.attempt is not None else None
            if held is not None:
                holders.setdefault(held[0], []).append(held[1])
        for provider, names in holders.items():
            await self._throttle.keep(provider, names)

    @staticmethod
    def _is_due(run: Run, now: float, term: float) -> bool:
        if run.writer is None or (run.renewing is not None and not run.renewing.done()):
            return False
        if run.lease.request.grace_seconds is not None:
            term = min(term, _POLL_SECONDS)  # the renewal is also the look at who is reading
        return now - run.renewed_at >= term or now - max(run.writer.answered_at, run.renewed_at) >= _POLL_SECONDS

    async def _renew(self, run: Run) -> None:
        writer = run.writer
        if writer is None:
            return
        lease = run.lease
        try:
            answer = await self._leases.renew(lease)
        except StoreError:
            return  # the writer meets the same outage, and waits for its end
        if lease is not run.lease:
            return  # the writer claimed anew meanwhile
        run.renewed_at = self._pulse.now()
        match answer:
            case Renewed(cancel=reason):
                writer.answered_at = run.renewed_at
                writer.cancel(reason)
            case Lost():
                writer.lose(Fenced("a later claim, or a delete, has taken the generation"))
            case Ended():
                if not (writer.entries and writer.entries[-1].is_terminal):
                    writer.lose(Closed("the log has its end already"))
            case Missing():
                writer.ask()

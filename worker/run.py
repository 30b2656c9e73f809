"""One claimed generation, from its claim to its end: provider → events → log.

One task group a run, two tasks in it: `writer.run` appends, `attempt.run` reads the provider. Cancel order matters:
when the lease is lost the writer raises, and the group cancels the attempt, which closes the provider's connection at
once; when the generation is cancelled only the attempt is, and the writer still stores the end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

import structlog

from broker.backoff import until_available
from broker.errors import GenerationExpired, GenerationUnknown, LeaseLost
from broker.events import Cancelled, CancelReason, Status
from broker.lease import Lease, Paused
from broker.position import BEGINNING
from worker.attempt import Attempt, Later, Left
from worker.conversation import ForTools
from worker.means import Means
from worker.writer import Writer

_log = structlog.get_logger("legato.worker")


class Outcome(Enum):
    """What is left to do for whoever started the run."""

    ENDED = "ended"  # the terminal event is stored: forget the hint
    LATER = "later"  # lease given back: look again after `delay_ms`
    PAUSED = "paused"  # the same, or as soon as the client has answered
    HANDED_OVER = "handed_over"  # lease given back: look again at once
    LOST = "lost"  # somebody else has it: do nothing


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    outcome: Outcome
    delay_ms: int = 0
    failed: bool = False  # an attempt failed, and another one follows


class Run:
    """A run of one lease. `execute()` once."""

    def __init__(self, lease: Lease, means: Means) -> None:
        self.generation = lease.generation
        self.writer: Writer | None = None
        self.attempt: Attempt | None = None
        self.renewed_at = means.pulse.now()
        self.renewing: asyncio.Task[None] | None = None  # a renewal under way
        self._lease = lease
        self._means = means
        self._producing: asyncio.Task[Left] | None = None
        self._handing_over = False

    @property
    def lease(self) -> Lease:
        """The lease held now; a rolled-back store may have made the writer claim a newer one."""
        return self.writer.lease if self.writer else self._lease

    def hand_over(self) -> None:
        """Stop here, and let another worker go on: this process is leaving."""
        self._handing_over = True
        self._stop_producing()

    async def execute(self) -> Result:
        """Run to an end, of whatever kind. Raises `GenerationUnknown` or `GenerationExpired` when it is gone."""
        means = self._means
        inherited = []
        if self._lease.head != BEGINNING:
            inherited = await until_available(lambda: means.log.read_all(self.generation))
        writer = self.writer = Writer(
            self._lease,
            inherited,
            log=means.log,
            leases=means.leases,
            pulse=means.pulse,
            heal_seconds=means.settings.heal_seconds,
            on_cancel=self._stop_producing,
        )
        attempt = self.attempt = Attempt(self._lease, writer, means)
        result = Result(Outcome.LOST)
        try:
            async with asyncio.TaskGroup() as group:
                appending = group.create_task(writer.run(), name=f"append {self.generation}")
                self._producing = group.create_task(attempt.run(), name=f"produce {self.generation}")
                writer.cancel(self._lease.cancel)
                if self._handing_over:
                    self._stop_producing()
                result = await self._finish(writer, attempt, len(inherited))
                if result.outcome is not Outcome.ENDED:
                    appending.cancel()
        except* LeaseLost as lost:
            _log.info("lease_lost", generation=self.generation, why=type(lost.exceptions[0]).__name__)
        gone = result.outcome is Outcome.LOST
        over = result.outcome is Outcome.ENDED or (gone and attempt.is_kept_upstream and await self._is_over())
        await attempt.settle(ended=over)
        return result

    async def _finish(self, writer: Writer, attempt: Attempt, inherited: int) -> Result:
        """Wait for the attempt, and see that what it left is stored."""
        assert self._producing is not None  # noqa: S101 - set in execute, for the type checker
        await asyncio.wait([self._producing])
        stopped = self._producing.cancelled()
        left = None if stopped else self._producing.result()
        ended = bool(writer.entries) and writer.entries[-1].is_terminal
        if writer.cancel_reason is not None:
            if not ended:
                attempt.end(Cancelled(reason=writer.cancel_reason, usage=attempt.usage))
            await writer.flushed()
            return Result(Outcome.ENDED)
        if ended:
            await writer.flushed()
            return Result(Outcome.ENDED)
        if stopped and len(writer.entries) > inherited:
            # Only behind events of its own: an epoch starts with `started` or `reset`.
            writer.add(Status(phase="waiting", detail={"reason": "handed_over"}))
        await writer.flushed()
        match left:
            case ForTools(seconds=seconds):
                return await self._pause(writer, attempt, seconds)
            case Later(delay_ms=delay_ms, failed=failed):
                result = Result(Outcome.LATER, delay_ms, failed)
            case None:
                result = Result(Outcome.HANDED_OVER)
        released = await until_available(lambda: self._means.leases.release(writer.lease, failed_attempt=result.failed))
        if isinstance(released, str):
            return await self._cancelled(writer, attempt, released)
        return result if released else Result(Outcome.LOST)

    async def _is_over(self) -> bool:
        """With the lease lost: nobody will go on, for the generation is erased, or somebody else has ended it."""
        try:
            found = await until_available(lambda: self._means.log.read_all(self.generation))
        except (GenerationUnknown, GenerationExpired):
            return True
        return bool(found) and found[-1].is_terminal

    async def _pause(self, writer: Writer, attempt: Attempt, seconds: float) -> Result:
        """Give the lease back until the client's tools have their results."""
        paused = await until_available(lambda: self._means.leases.pause(writer.lease, seconds=seconds))
        match paused:
            case Paused.WAITING:
                return Result(Outcome.PAUSED, round(1000 * seconds))
            case Paused.READY:
                return Result(Outcome.LATER, 0)
            case Paused.LOST:
                return Result(Outcome.LOST)
            case str():
                return await self._cancelled(writer, attempt, paused)

    async def _cancelled(self, writer: Writer, attempt: Attempt, reason: str) -> Result:
        """A cancel came while the lease was to be given back: it was not, and this is the end."""
        attempt.end(Cancelled(reason=CancelReason(reason), usage=attempt.usage))
        await writer.flushed()
        return Result(Outcome.ENDED)

    def _stop_producing(self) -> None:
        if self._producing is not None:
            self._producing.cancel()

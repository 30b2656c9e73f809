"""One claimed generation, from its claim to its end: provider → events → log.

One task group a run, two tasks in it: `writer.run` appends, `_produce` reads the provider. Cancel order matters: when
the lease is lost the writer raises, and the group cancels the producer, which closes the provider's connection at
once; when the generation is cancelled only the producer is, and the writer still stores the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import orjson
import structlog

from broker.backoff import until_available
from broker.errors import LeaseLost, ProviderError
from broker.events import (
    Cancelled,
    CancelReason,
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Failed,
    FailureCode,
    Reset,
    Started,
    Status,
    Usage,
    UsageReport,
)
from broker.generation import Recovery
from broker.lease import Lease, Leases
from broker.log import Log
from broker.settings import Settings
from worker.providers.base import Call, Finish, Mark, Provider
from worker.pulse import Pulse
from worker.writer import Writer

_log = structlog.get_logger("legato.worker")


class Outcome(Enum):
    """What is left to do for whoever started the run."""

    ENDED = "ended"  # the terminal event is stored: forget the hint
    RETRY = "retry"  # lease given back: look again after `delay_ms`
    HANDED_OVER = "handed_over"  # lease given back: look again at once
    LOST = "lost"  # somebody else has it: do nothing


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    outcome: Outcome
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class _Retry:
    delay_ms: int


class Run:
    """A run of one lease. `execute()` once."""

    def __init__(
        self,
        lease: Lease,
        *,
        log: Log,
        leases: Leases,
        providers: Mapping[str, Provider],
        pulse: Pulse,
        settings: Settings,
    ) -> None:
        self.generation = lease.generation
        self.writer: Writer | None = None
        self.renewed_at = pulse.now()
        self.renewing: asyncio.Task[None] | None = None  # a renewal under way
        self._pulse = pulse
        self._claimed_at = pulse.now()
        self._lease = lease
        self._request = lease.request
        self._log = log
        self._leases = leases
        self._providers = providers
        self._settings = settings
        self._producing: asyncio.Task[_Retry | None] | None = None
        self._handing_over = False
        self._inherited = 0  # entries that were there when this run began
        self._shown = False
        self._characters = 0
        self._usage: Usage | None = None

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
        inherited = await until_available(lambda: self._log.read_all(self.generation))
        writer = self.writer = Writer(
            self._lease,
            inherited,
            log=self._log,
            leases=self._leases,
            pulse=self._pulse,
            heal_seconds=self._settings.heal_seconds,
            on_cancel=self._stop_producing,
        )
        self._inherited = len(inherited)
        result = Result(Outcome.LOST)
        try:
            async with asyncio.TaskGroup() as group:
                appending = group.create_task(writer.run(), name=f"append {self.generation}")
                self._producing = group.create_task(self._produce(writer), name=f"produce {self.generation}")
                writer.cancel(self._lease.cancel)
                if self._handing_over:
                    self._stop_producing()
                result = await self._finish(writer)
                if result.outcome is not Outcome.ENDED:
                    appending.cancel()
        except* LeaseLost as lost:
            _log.info("lease_lost", generation=self.generation, why=type(lost.exceptions[0]).__name__)
        return result

    async def _finish(self, writer: Writer) -> Result:
        """Wait for the producer, and see that what it left is stored."""
        assert self._producing is not None  # noqa: S101 - set in execute, for the type checker
        await asyncio.wait([self._producing])
        retry = None if self._producing.cancelled() else self._producing.result()
        ended = bool(writer.entries) and writer.entries[-1].is_terminal
        if writer.cancel_reason is not None:
            if not ended:
                writer.add(Cancelled(reason=writer.cancel_reason, usage=self._usage))
            await writer.flushed()
            return Result(Outcome.ENDED)
        if ended:
            await writer.flushed()
            return Result(Outcome.ENDED)
        if retry is None and len(writer.entries) > self._inherited:
            # Only behind events of its own: an epoch starts with `started` or `reset`.
            writer.add(Status(phase="waiting", detail={"reason": "handed_over"}))
        await writer.flushed()
        released = await until_available(lambda: self._leases.release(writer.lease, failed_attempt=retry is not None))
        match released:
            case str() as reason:  # a cancel came in between: nothing is given back, this is the end
                writer.add(Cancelled(reason=CancelReason(reason), usage=self._usage))
                await writer.flushed()
                return Result(Outcome.ENDED)
            case False:
                return Result(Outcome.LOST)
        if retry is None:
            return Result(Outcome.HANDED_OVER)
        return Result(Outcome.RETRY, retry.delay_ms)

    async def _produce(self, writer: Writer) -> _Retry | None:
        """Add events until the end is added, or the attempt has failed and another one may help."""
        lease, request, settings = self._lease, self._request, self._settings
        inherited = writer.entries[_after_last_reset(writer.entries) :]
        self._shown = any(entry.is_shown for entry in inherited)
        if lease.attempt > request.max_attempts:
            self._fail(writer, FailureCode.WORKER_LOST, "every attempt lost its worker", retryable=True)
            return None
        if lease.queued_ms > settings.max_queue_seconds * 1000:
            self._fail(writer, FailureCode.TIMEOUT, "it waited too long in the queue", retryable=True)
            return None
        if self._shown and request.recovery is Recovery.FAIL:
            self._fail(writer, FailureCode.WORKER_LOST, "its worker was lost, and it asked not to start over")
            return None
        provider = self._providers.get(request.provider)
        partial = ""
        if self._shown and provider is not None and self._may_continue(provider, inherited):
            partial = "".join(entry.payload.decode() for entry in inherited if entry.field == b"d")
            self._characters = len(partial)
        elif self._shown:
            writer.add(Reset(attempt=lease.attempt, reason=_why_anew(inherited)))
            self._shown = False
        writer.add(Started(attempt=lease.attempt, provider=request.provider, model=request.model))
        try:
            if provider is None:
                raise ProviderError(
                    FailureCode.INVALID_REQUEST, f"this worker has no provider named {request.provider!r}"
                )
            await self._generate(writer, provider, partial)
        except ProviderError as error:
            return self._after_failure(writer, error)
        except Exception as exc:  # noqa: BLE001 - a defect of a provider must end its generation, not the worker
            _log.error("provider_defect", generation=self.generation, provider=request.provider, error=repr(exc)[:300])
            self._fail(writer, FailureCode.INTERNAL, "the provider's adapter failed")
        return None

    def _may_continue(self, provider: Provider, inherited: list[Entry]) -> bool:
        """Whether the next attempt may write on behind what was shown: only behind plain text."""
        return (
            self._request.recovery is Recovery.CONTINUE
            and all(entry.field == b"d" for entry in inherited if entry.is_shown)
            and provider.can_continue(self._request)
        )

    async def _generate(self, writer: Writer, provider: Provider, partial: str) -> None:
        """One answer of the provider, with its deadlines. Time that the store keeps us waiting is no silence of the
        provider's."""
        request, settings = self._request, self._settings
        loop = asyncio.get_running_loop()
        stall = request.stall_seconds or settings.stall_seconds
        end = loop.time() + (request.timeout_seconds or settings.timeout_seconds) - self._lease.running_ms / 1000
        try:
            async with (
                aclosing(provider.stream(Call(request, attempt=self._lease.attempt, partial=partial))) as events,
                asyncio.timeout_at(min(end, loop.time() + stall)) as deadline,
            ):
                async for event in events:
                    match event:
                        case Finish():
                            self._complete(writer, event)
                            return
                        case Mark():
                            pass
                        case UsageReport(usage=usage):
                            self._usage = usage
                            writer.add(event)
                        case Delta(text=text, kind=kind):
                            self._shown = True
                            if kind is DeltaKind.TEXT:
                                self._characters += len(text)
                            writer.add(event)
                        case _:
                            self._shown = True
                            writer.add(event)
                    if not writer.has_room:
                        deadline.reschedule(end)
                        await writer.room()
                    deadline.reschedule(min(end, loop.time() + stall))
        except TimeoutError as exc:
            if loop.time() >= end:
                raise ProviderError(FailureCode.TIMEOUT, "the generation took longer than it may") from exc
            silence = f"the provider was silent for {stall:g} s"
            raise ProviderError(FailureCode.STALLED, silence, retryable=True) from exc
        raise ProviderError(FailureCode.UPSTREAM_INCOMPLETE, "the provider's stream has no end", retryable=True)

    def _complete(self, writer: Writer, finish: Finish) -> None:
        if finish.usage is not None and finish.usage != self._usage:
            writer.add(UsageReport(usage=finish.usage))
        self._usage = finish.usage or self._usage
        writer.add(Completed(finish_reason=finish.finish_reason, usage=self._usage, characters=self._characters))

    def _after_failure(self, writer: Writer, error: ProviderError) -> _Retry | None:
        """Another attempt, if one may help and is left; else the end."""
        attempt, request = self._lease.attempt, self._request
        may_restart = not self._shown or request.recovery is not Recovery.FAIL
        if not (error.retryable and may_restart and attempt < request.max_attempts):
            self._fail(writer, error.failure, error.message, retryable=error.retryable)
            return None
        settings = self._settings
        bound = min(settings.retry_cap_seconds, settings.retry_base_seconds * 2 ** (attempt - 1))
        delay = max(random.uniform(0, bound), error.retry_after or 0.0)
        left = (request.timeout_seconds or settings.timeout_seconds) - self._elapsed()
        if delay > left:
            # The next attempt would come after the generation's own time.
            self._fail(writer, error.failure, error.message, retryable=True)
            return None
        delay_ms = round(1000 * delay)
        detail = {"attempt": attempt + 1, "delay_ms": delay_ms, "code": error.code, "message": error.message}
        writer.add(Status(phase="retrying", detail=detail))
        return _Retry(delay_ms)

    def _elapsed(self) -> float:
        """Seconds since the generation was first claimed."""
        return self._lease.running_ms / 1000 + self._pulse.now() - self._claimed_at

    def _fail(self, writer: Writer, code: FailureCode, message: str, *, retryable: bool = False) -> None:
        writer.add(
            Failed(code=code, message=message, retryable=retryable, partial=self._shown, characters=self._characters)
        )

    def _stop_producing(self) -> None:
        if self._producing is not None:
            self._producing.cancel()


def _after_last_reset(entries: list[Entry]) -> int:
    return max((at + 1 for at, entry in enumerate(entries) if entry.field == b"reset"), default=0)


def _why_anew(inherited: list[Entry]) -> str:
    """What ended the attempt before: the log's last word says it, or nothing does and its worker was lost."""
    last = inherited[-1]
    if last.field == b"status":
        detail = orjson.loads(last.payload)
        return str(detail.get("code") or detail.get("reason") or "worker_lost")
    return "worker_lost"

"""One claim's talk with its models: what each is asked, and how its answer joins on to what the log holds.

What was shown before decides how a target begins:

- nothing is shown behind the last whole turn: plainly on;
- a mark of the provider says where the cut answer can be read on: from there, and nothing is said twice;
- `recovery: continue`, and a model that can: behind the text that was shown;
- else a `reset`, the finished turns once more (no tool runs twice), and the cut one anew.

All it needs to know of the past it reads from the log; it keeps no second account of what was shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import orjson
import structlog

from broker.budget import Purse
from broker.errors import ProviderError, where
from broker.events import Entry, FailureCode, FinishReason, Json, Reset, Started, Status
from broker.generation import Recovery, Request, Target, ToolMode
from broker.lease import Lease
from broker.position import Position
from worker.admission import BEFORE_FALLBACK_MS, IN_PLACE_MS, Admission
from worker.answer import Answer
from worker.facts import Facts
from worker.filters.base import FilterDefect
from worker.filters.pipeline import Pipeline
from worker.filters.registry import build_pipeline
from worker.means import Means
from worker.overlap import Overlap, UpstreamMark
from worker.providers.base import Call, Provider
from worker.providers.classify import scrub
from worker.rounds import run_tools, take_results
from worker.turns import Progress, progress
from worker.watch import Watch
from worker.writer import Writer

_log = structlog.get_logger("legato.worker")

#: Longest that a provider is waited for when it is told to stop what nobody will read.
_ABANDON_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ForTools:
    """The client runs the tools, and has `seconds` for it."""

    seconds: float


class Conversation:
    """`ask()` one target after another; `leave()` each call, `abandon()` what nobody will read."""

    def __init__(self, lease: Lease, writer: Writer, means: Means) -> None:
        self._lease = lease
        self._request = lease.request
        self._writer = writer
        self._means = means
        self.facts = Facts(queue_ms=lease.queued_ms, retries=max(0, lease.attempt - 1))
        self.admission = Admission(means.throttle, holder=lease.generation, claim=lease.epoch, facts=self.facts)
        self._purse = Purse(means.store, lease.tenant)
        self._begun: Target | None = None  # the target that the log says is at work, under this epoch
        self._mark = UpstreamMark.decode(lease.upstream) if lease.upstream else None
        self._answer: Answer | None = None  # of a call that has not been left
        timeout = self._request.timeout_seconds or means.settings.timeout_seconds
        self._end = time.monotonic() + timeout - lease.running_ms / 1000

    @property
    def seconds_left(self) -> float:
        """What the generation still has of its time."""
        return self._end - time.monotonic()

    def progress(self) -> Progress:
        """What the log holds, as turns."""
        return progress(self._writer.entries)

    @property
    def failed_before(self) -> bool:
        """Whether the log's last word is that a provider failed. A lost worker is no failure of the provider's."""
        for entry in reversed(self._writer.entries):
            phase = status_of(entry).get("phase")
            if entry.field != b"started" and phase != "waiting":
                return phase == "retrying"
        return False

    def valid_mark(self, found: Progress, target: Target | None = None) -> UpstreamMark | None:
        """The mark, if it is of the answer that was cut: its position stands behind the last whole turn."""
        mark = self._mark
        if mark is None or (target is not None and (target.provider, target.model) != (mark.provider, mark.model)):
            return None
        return mark if any(entry.position == mark.position for entry in reversed(found.rest_entries)) else None

    def _may_continue(self, provider: Provider, target: Target, found: Progress) -> bool:
        """Whether the model may write on behind what was shown: only behind plain text, as this very model wrote it."""
        request = self._request
        return (
            request.recovery is Recovery.CONTINUE
            and not found.again
            and not request.transforms
            and self._shown_by() == (target.provider, target.model)
            and all(entry.field == b"d" for entry in found.rest_entries if entry.is_shown)
            and provider.can_continue(replace(request, provider=target.provider, model=target.model))
        )

    def _shown_by(self) -> tuple[str, str] | None:
        """Provider and model of what was shown last."""
        shown = False
        for entry in reversed(self._writer.entries):
            shown = shown or entry.is_shown
            if shown and entry.field == b"started":
                started = orjson.loads(entry.payload)
                return started["provider"], started["model"]
        return None

    def may_start_over(self) -> bool:
        """Whether another try is allowed to take back what was shown, or does not need to."""
        found = self.progress()
        return not found.shown or self._request.recovery is not Recovery.FAIL or self.valid_mark(found) is not None

    @property
    def is_kept_upstream(self) -> bool:
        """Whether a provider keeps an answer, and goes on with it by itself."""
        return self._mark is not None

    def forget_mark(self) -> None:
        """The answer cannot be read on, and nothing of it is left at the provider."""
        self._mark = None

    async def leave(self, how: ProviderError | Literal["whole", "stopped"]) -> None:
        """The call is over, if one was under way. May be repeated, where a cancel came in between."""
        answer = self._answer
        usage = None if answer is None else answer.usage
        await self.admission.leave(how, usage)
        self._answer = None
        if answer is not None:
            self.facts.output_tokens += 0 if usage is None else usage.output_tokens
            await self._purse.settle(None if usage is None else usage.output_tokens)

    async def abandon(self) -> None:
        """Have the provider stop what nobody will read."""
        mark, self._mark = self._mark, None
        if mark is not None:
            await abandon(self._means.providers, mark, generation=self._lease.generation)

    async def ask(self, target: Target, *, retry: bool, more: bool) -> FinishReason | ForTools:
        """Have one target answer: turns of the model, and of tools between them. Raises `ProviderError`, `MustWait`.

        `retry`: it has failed in this generation before. `more`: there is another target to turn to.
        """
        provider = self._means.providers.get(target.provider)
        if provider is None:
            raise ProviderError(FailureCode.INVALID_REQUEST, f"this worker has no provider named {target.provider!r}")
        while True:
            found = self.progress()
            if found.turns and found.turns[-1].open_calls:
                if self._begun is None:
                    self._started(target)
                turn = found.turns[-1]
            else:
                finish = await self._turn(target, provider, found, retry=retry, more=more)
                found, retry = self.progress(), False
                turn = found.rest
                returned = self._request.tool_mode is ToolMode.RETURN
                if finish is not FinishReason.TOOL_CALLS or returned or not turn.calls:
                    return finish
                if len(found.turns) >= (most := self._request.max_tool_rounds):
                    still = f"after {most} rounds of tools the model still calls them"
                    raise ProviderError(FailureCode.TOOL_ERROR, still)
            if self._request.tool_mode is ToolMode.SERVER:
                tool_seconds = self._means.settings.tool_seconds
                await run_tools(turn, self._writer, self._means.tools, tool_seconds=tool_seconds, end=self._end)
            else:
                seconds = max(0.0, min(self._request.tool_timeout_seconds, self.seconds_left))
                if not take_results(turn, self._writer, self._lease, seconds=seconds):
                    return ForTools(seconds)

    async def _turn(
        self, target: Target, provider: Provider, found: Progress, *, retry: bool, more: bool
    ) -> FinishReason:
        """One answer of the model."""
        request = replace(
            self._request,
            provider=target.provider,
            model=target.model,
            provider_options=target.provider_options,
            messages=[*self._request.messages, *found.messages()],
            tool_choice=_choice(self._request.tool_choice, found),
        )
        pipeline = _pipeline(request)
        await self._purse.open()
        patience = BEFORE_FALLBACK_MS if more else IN_PLACE_MS
        await self.admission.enter(
            target.provider,
            request,
            retry=retry,
            patience_ms=patience,
            on_wait=lambda why, _: self.say_waiting(target, why),
        )
        mark = self.valid_mark(found, target)
        partial = ""
        if self._begun != target or found.shown:
            partial = await self._begin(target, provider, found, mark)
            found = self.progress()
        overlap = None
        if mark is not None:
            self.facts.reconnects += 1
            seq = _seq(mark.position)
            behind = [entry for entry in found.rest_entries if _seq(entry.position) > seq]
            overlap = Overlap(behind, first_index=found.calls)
        answer = self._answer = Answer(
            self._writer,
            request=request,
            facts=self.facts,
            purse=self._purse,
            pipeline=pipeline,
            found=found,
            usage_before=found.usage if partial else found.usage_of_turns,
        )
        answer.prime(found.text)
        meter, token = self.facts.asked(), None if mark is None else mark.token
        call = Call(request, attempt=self._lease.attempt, partial=partial, resume=token, meter=meter)
        stall = self._request.stall_seconds or self._means.settings.stall_seconds
        watch = Watch(end=self._end, stall_seconds=stall)
        try:
            finish = await answer.read(provider, call, watch, overlap=overlap)
        finally:
            if answer.whole:
                self._mark = None
            elif answer.mark is not None:
                self._mark = answer.mark
        await self.leave("whole" if answer.whole else "stopped")
        return finish

    async def _begin(self, target: Target, provider: Provider, found: Progress, mark: UpstreamMark | None) -> str:
        """The first words of this epoch, or of another target under it; the text behind which the model goes on."""
        if not found.shown or mark is not None:
            self._started(target)
            return ""
        if self._may_continue(provider, target, found):
            self._started(target)
            return found.text
        await self.abandon()
        self._writer.add(Reset(attempt=self._lease.attempt, reason=_why_anew(self._writer.entries)))
        self._started(target)
        for event in found.events():
            self._writer.add(event)
        return ""

    def begin_bare(self, target: Target) -> None:
        """An epoch starts with `started`, even if all it says is that something must be waited for."""
        if self._begun is None:
            self._started(target)
            self._begun = None

    def _started(self, target: Target) -> None:
        self._begun = target
        self._writer.add(Started(attempt=self._lease.attempt, provider=target.provider, model=target.model))

    def say_waiting(self, target: Target, reason: str) -> None:
        """Once for each reason, however often it is asked and by however many claims."""
        detail = {"reason": reason, "provider": target.provider}
        last = self._writer.entries[-1] if self._writer.entries else None
        if last is None or status_of(last) != {"phase": "waiting"} | detail:
            self.begin_bare(target)
            self._writer.add(Status(phase="waiting", detail=detail))


def _choice(asked: str | Json | None, found: Progress) -> str | Json | None:
    """What the model is told of its tools in this turn. A call that it was made to make, it has made in the first: told
    so again, it would never come to an answer."""
    return "auto" if found.turns and asked not in (None, "auto", "none") else asked


async def abandon(providers: Mapping[str, Provider], mark: UpstreamMark, *, generation: str) -> None:
    """Have a provider stop what nobody will read on. Never raises."""
    provider = providers.get(mark.provider)
    if provider is None:
        return
    try:
        async with asyncio.timeout(_ABANDON_SECONDS):
            await provider.abandon(mark.token)
    except Exception as exc:  # noqa: BLE001 - what cannot be stopped costs money, not the generation
        _log.warning("not_abandoned", generation=generation, provider=mark.provider, **where(exc))


def _pipeline(request: Request) -> Pipeline | None:
    try:
        return build_pipeline(request.transforms, request.validators)
    except (LookupError, ValueError) as exc:
        raise ProviderError(FailureCode.INVALID_REQUEST, scrub(str(exc))) from exc
    except FilterDefect as exc:
        raise ProviderError(FailureCode.INTERNAL, scrub(str(exc))) from exc


def _seq(position: str) -> int:
    return Position.of_entry_id(position).seq


def status_of(entry: Entry) -> Json:
    """What a status says, phase included; nothing of any other event."""
    found: Json = orjson.loads(entry.payload) if entry.field == b"status" else {}
    return found


def _why_anew(entries: Sequence[Entry]) -> str:
    """What ended the try before: the log's last word says it, or nothing does and its worker was lost."""
    last = next((entry for entry in reversed(entries) if entry.field != b"started"), None)
    said = status_of(last) if last is not None else {}
    return str(said.get("code") or said.get("reason") or "worker_lost")

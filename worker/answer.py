"""One turn of a model, from its provider to the log: deadlines, checks, delivery, limits.

The plain text goes through the checks and transforms that the request names, is cut as its `delivery` says, and is
counted; everything else passes by, in order. When a turn ends early, by an error or a cancel, what was judged but still
waited to be cut is shown all the same: nothing that the provider said and a check let pass is swallowed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Final

import regex

from broker.budget import Purse
from broker.errors import ProviderError
from broker.events import (
    Delta,
    DeltaKind,
    Event,
    FailureCode,
    FinishReason,
    Json,
    ToolCall,
    ToolCallDone,
    Usage,
    UsageReport,
)
from broker.generation import Delivery, Request
from worker.delivery import Cutter
from worker.facts import Facts
from worker.filters.base import FilterDefect, Rejected
from worker.filters.pipeline import Pipeline
from worker.overlap import Overlap, UpstreamMark
from worker.providers.base import Call, Finish, Mark, Provider
from worker.providers.classify import scrub
from worker.turns import Progress
from worker.watch import Watch
from worker.writer import UPSTREAM, Writer

#: The default delivery: text is logged as the provider cut it.
_AS_IT_COMES: Final = Delivery()

_CLUSTER: Final = regex.compile(r"\X")


class Answer:
    """One turn. `read()` once."""

    def __init__(
        self,
        writer: Writer,
        *,
        request: Request,
        facts: Facts,
        purse: Purse,
        pipeline: Pipeline | None,
        found: Progress,
        usage_before: Usage | None,
    ) -> None:
        """`found` is what the log holds so far; `usage_before` what was used before this turn."""
        self.usage: Usage | None = None  # of this turn, as the provider counts it
        self.mark: UpstreamMark | None = None  # the last one that was noted
        self.whole = False  # the provider gave its end: nothing is to be had there any more
        self._before = usage_before
        self._characters = found.characters
        self._writer = writer
        self._request = request
        self._facts = facts
        self._purse = purse
        self._pipeline = pipeline
        self._cutter = None if request.delivery == _AS_IT_COMES else Cutter(request.delivery)
        self._first_index = found.calls
        self._ids = {call.index: call.id for turn in found.turns for call in turn.calls} | found.begun_calls
        self._most = request.max_output_characters
        self._flush_ms = request.delivery.flush_ms
        self._flushing: asyncio.TimerHandle | None = None
        self._watch: Watch | None = None
        self._full = False
        self._primed = 0  # characters that the checks hold and that were shown before

    async def read(self, provider: Provider, call: Call, watch: Watch, *, overlap: Overlap | None) -> FinishReason:
        """Have the provider asked, and log what it says; why it ended. Raises `ProviderError`. Time that the store
        keeps us waiting is no silence of the provider's."""
        writer, facts, counts = self._writer, self._facts, self._purse.counts
        plainly = self._pipeline is None and self._cutter is None and self._most is None
        clock, plain, add_text = time.monotonic, DeltaKind.TEXT, writer.add_text  # looked up once, not for each token
        self._watch = watch
        try:
            async with aclosing(provider.stream(call)) as events, watch:
                async for given in events:
                    watch.last = now = clock()
                    event = given if overlap is None else overlap.rest_of(given)
                    # Nearly every event is a piece of text that goes to the log as it is: it is looked at first, and
                    # without a pattern.
                    if type(event) is Delta:
                        if now - facts.last_at > facts.longest_gap:
                            facts.saw(now)
                        facts.last_at = now
                        if event.kind is not plain:
                            self._pass_on(event)
                        elif plainly:
                            add_text(event.text)
                        else:
                            self._text(event.text)
                        if counts and self._purse.count():
                            with watch.paused():
                                await self._purse.report()
                    elif isinstance(event, Finish):
                        self._end_of_text()
                        self._use(event.usage)
                        self.whole = True
                        return event.finish_reason
                    elif isinstance(event, Mark):
                        self._mark(provider, event.token)
                    elif isinstance(event, UsageReport):
                        self._use(event.usage)
                    elif event is not None:
                        facts.saw(now)
                        self._pass_on(event)
                    if writer.is_full:
                        with watch.paused():
                            await writer.room()
        except TimeoutError as exc:
            if self._full:
                return FinishReason.LENGTH
            if time.monotonic() >= watch.end:
                raise ProviderError(FailureCode.TIMEOUT, "the generation took longer than it may") from exc
            silence = f"the provider was silent for {watch.stall_seconds:g} s"
            raise ProviderError(FailureCode.STALLED, silence, retryable=True) from exc
        except _Full:
            return FinishReason.LENGTH
        finally:
            with suppress(_Full):
                self._flush()
        raise ProviderError(FailureCode.UPSTREAM_INCOMPLETE, "the provider's stream has no end", retryable=True)

    def prime(self, text: str) -> None:
        """Have the checks see the text of this turn that was shown before it was read on. What they keep back of it
        comes out with the next text, and is not shown again. There are no transforms then."""
        if self._pipeline is not None and text:
            self._primed = len(text) - len(_judged(self._pipeline.feed, text))

    def _text(self, text: str) -> None:
        if self._pipeline is not None:
            text = self._unprimed(_judged(self._pipeline.feed, text))
        self._cut(text)

    def _unprimed(self, text: str) -> str:
        known, self._primed = self._primed, max(0, self._primed - len(text))
        return text[known:]

    def _cut(self, text: str) -> None:
        if self._cutter is None:
            if text:
                self._show(text)
            return
        for piece in self._cutter.feed(text):
            self._show(piece)
        if self._flush_ms is not None and self._flushing is None and self._cutter.holds:
            self._flushing = asyncio.get_running_loop().call_later(self._flush_ms / 1000, self._flush_due)

    def _show(self, text: str) -> None:
        full = self._most is not None and self._characters + len(text) > self._most
        if full and self._most is not None:
            text = _clipped(text, self._most - self._characters)
        if text:
            self._characters += len(text)
            self._writer.add(Delta(text=text))
        if full:
            raise _Full

    def _pass_on(self, event: Event) -> None:
        """Everything but plain text."""
        if self._cutter is not None:
            self._flush()
        match event:
            case ToolCall(index=index, id=call):
                index += self._first_index
                event = replace(event, index=index, id=call and self._id_of(index, call))
            case ToolCallDone(index=index, id=call):
                index += self._first_index
                event = replace(event, index=index, id=self._id_of(index, call))
        self._writer.add(event)

    def _id_of(self, index: int, call: str) -> str:
        """The id of the call at `index`, changed where another one has it: in one generation an id names one call."""
        if index not in self._ids:
            taken, number, name = set(self._ids.values()), index, call
            while name in taken:
                name, number = f"{call}_{number}", number + 1
            self._ids[index] = name
        return self._ids[index]

    def _use(self, usage: Usage | None) -> None:
        if usage is None:
            return
        if usage != self.usage:
            self.usage = usage
            self._writer.add(UsageReport(usage=added(self._before, usage)))

    def _mark(self, provider: Provider, token: Json) -> None:
        """Note where to read on, unless something that the provider has said is not logged yet."""
        if self._request.transforms or (self._cutter is not None and self._cutter.holds):
            return
        if self._pipeline is not None and self._pipeline.held:
            return
        position = self._writer.entries[-1].position
        self.mark = UpstreamMark(position=position, provider=provider.name, model=self._request.model, token=token)
        self._writer.note(UPSTREAM, self.mark.encode())

    def _end_of_text(self) -> None:
        if self._pipeline is not None:
            self._cut(self._unprimed(_judged(self._pipeline.end)))
        self._flush()

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._cutter is not None:
            for piece in self._cutter.end():
                self._show(piece)

    def _flush_due(self) -> None:
        """Called by the loop while the provider is waited for."""
        self._flushing = None
        try:
            for piece in self._cutter.due() if self._cutter is not None else ():
                self._show(piece)
        except _Full:
            self._full = True
            if self._watch is not None:
                self._watch.expire()


class _Full(Exception):
    """`max_output_characters` are shown."""


def _judged(judge: Callable[..., str], *text: str) -> str:
    """What the checks and transforms let pass. Raises `ProviderError` where one says no, or is broken."""
    try:
        return judge(*text)
    except Rejected as no:
        raise ProviderError(FailureCode.VALIDATION_FAILED, scrub(str(no))) from no
    except FilterDefect as defect:
        raise ProviderError(FailureCode.INTERNAL, str(defect)) from defect


def _clipped(text: str, most: int) -> str:
    """As much of `text` as fits into `most` characters without cutting one that is several code points."""
    end = 0
    for cluster in _CLUSTER.finditer(text):
        if cluster.end() > most:
            break
        end = cluster.end()
    return text[:end]


def added(before: Usage | None, usage: Usage) -> Usage:
    """The usage of one more turn on top."""
    if before is None:
        return usage

    def both(one: int | None, other: int | None) -> int | None:
        return None if one is None and other is None else (one or 0) + (other or 0)

    return Usage(
        input_tokens=before.input_tokens + usage.input_tokens,
        output_tokens=before.output_tokens + usage.output_tokens,
        cached_tokens=both(before.cached_tokens, usage.cached_tokens),
        reasoning_tokens=both(before.reasoning_tokens, usage.reasoning_tokens),
    )

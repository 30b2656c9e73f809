"""What a generation has said, folded from its events. Pure.

The rules are the protocol's: text is appended, `reset` clears everything, `snapshot` replaces everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from legato_client.errors import GenerationCancelled, GenerationFailed
from legato_client.events import (
    Cancelled,
    Completed,
    Delta,
    Event,
    Failed,
    Part,
    Reset,
    Snapshot,
    Started,
    Status,
    Terminal,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The state behind `position`. `end` is None while the generation goes on."""

    text: str
    reasoning: str
    refusal: str
    tool_calls: tuple[ToolCallDone, ...]
    tool_results: tuple[ToolResult, ...]
    parts: tuple[Part, ...]
    usage: Usage | None
    attempt: int
    position: str | None
    end: Terminal | None

    @property
    def finish_reason(self) -> str | None:
        """Of a generation that completed."""
        return self.end.finish_reason if isinstance(self.end, Completed) else None

    def raise_for_end(self) -> None:
        """Raises `GenerationFailed` or `GenerationCancelled`, where it ended so."""
        match self.end:
            case Failed(code=code, message=message, retryable=retryable):
                raise GenerationFailed(self, code=code, message=message, retryable=retryable)
            case Cancelled(reason=reason):
                raise GenerationCancelled(self, reason=reason)


@dataclass(slots=True)
class Fold:
    """Events in, in order; `answer` at any time."""

    _texts: dict[str, list[str]] = field(default_factory=dict)
    _calls: dict[int, ToolCallDone] = field(default_factory=dict)
    _results: list[ToolResult] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)
    _usage: Usage | None = None
    _attempt: int = 0
    _position: str | None = None
    _end: Terminal | None = None

    def add(self, event: Event) -> None:
        """The next event."""
        match event:
            case Delta(text=text, kind=kind):
                self._texts.setdefault(kind, []).append(text)
            case ToolCall():
                self._calls[event.index] = self._joined(event)
            case ToolCallDone():
                self._calls[event.index] = event
            case ToolResult():
                self._results.append(event)
            case Part():
                self._parts.append(event)
            case Started():
                self._attempt = event.attempt
            case Reset():
                self._clear()
                self._attempt = event.attempt or self._attempt
            case Snapshot():
                self._replace(event)
            case Usage():
                self._usage = event
            case Status():
                pass
            case Completed(usage=usage) | Cancelled(usage=usage):
                self._end, self._usage = event, usage or self._usage
            case Failed():
                self._end = event
            case _:
                assert_never(event)
        if event.position is not None:
            self._position = event.position

    def answer(self) -> Answer:
        """The state after everything that was added."""
        return Answer(
            text=self._text("text"),
            reasoning=self._text("reasoning"),
            refusal=self._text("refusal"),
            tool_calls=tuple(call for _, call in sorted(self._calls.items())),
            tool_results=tuple(self._results),
            parts=tuple(self._parts),
            usage=self._usage,
            attempt=self._attempt,
            position=self._position,
            end=self._end,
        )

    def _text(self, kind: str) -> str:
        return "".join(self._texts.get(kind, ()))

    def _joined(self, piece: ToolCall) -> ToolCallDone:
        seen = self._calls.get(piece.index)
        return ToolCallDone(
            position=piece.position,
            index=piece.index,
            id=piece.id or (seen.id if seen else ""),
            name=piece.name or (seen.name if seen else ""),
            arguments=(seen.arguments if seen else "") + piece.arguments,
        )

    def _clear(self) -> None:
        self._texts, self._calls, self._results, self._parts, self._usage = {}, {}, [], [], None

    def _replace(self, state: Snapshot) -> None:
        texts = {"text": state.text, "reasoning": state.reasoning, "refusal": state.refusal}
        self._texts = {kind: [text] for kind, text in texts.items() if text}
        self._calls = {call.index: call for call in state.tool_calls}
        self._results, self._parts = list(state.tool_results), list(state.parts)
        self._usage, self._attempt = state.usage, state.attempt

"""A log as the UI message stream of the AI SDK (v1): chunks, in the order in which `useChat` takes them. Pure.

The chunks of a log are a function of its entries one by one, never of how they came together: chunk 57 is the same
chunk at every replay, for `WorkflowChatTransport` counts what it was sent and asks for the rest by that number. So one
delta of the log is one chunk, and only readers who count nothing get them `joined`.

A turn of the model is a step of the message, open from the first thing it shows until its tools have answered and the
next one begins. A `reset` takes the open step back (`reset-step`). Steps that were finished stay: the worker logs them
again behind the `reset`, and what was shown already is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import orjson

from api.dialects.encoder import CannotTakeBack
from broker.events import (
    Cancelled,
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Failed,
    FinishReason,
    Json,
    Part,
    Reset,
    Started,
    Status,
    Terminal,
    ToolCall,
    ToolCallDone,
    ToolResult,
    UsageReport,
    decode,
)

Chunk = Json

#: What a reader can be told of a `reset` in mid-stream: version 7 of the SDK knows a chunk for it, version 6 takes an
#: unknown chunk for a fault. `cut` ends the body, and the replay that the client asks for holds the new text only.
ResetStyle = Literal["reset-step", "cut"]

#: Where the parts of an answer keep what is Legato's own.
METADATA: Final = "legato"

_REASONS: Final = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool-calls",
    FinishReason.CONTENT_FILTER: "content-filter",
}
_DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    held: str = ""  # arguments that came before the name
    started: bool = False


@dataclass(slots=True)
class _Step:
    """The open step. `calls` maps the id of each whole call to whether its result is there."""

    shown: bool = False
    calls: dict[str, bool] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Its tools have answered: what is shown next belongs to another turn."""
        return bool(self.calls) and all(self.calls.values())


class UiMessageStream:
    """The chunks of one log, entry by entry. `message_id` is that of the assistant's message."""

    def __init__(self, message_id: str, *, resets: ResetStyle = "reset-step") -> None:
        self._message_id = message_id
        self._resets = resets
        self._open: tuple[DeltaKind, str] | None = None  # the part that text goes into, and its id
        self._numbers = 0  # parts and sources so far
        self._calls: dict[int, _Call] = {}
        self._step = _Step()
        self._finished: list[list[str]] = []  # calls of each finished step
        self._again: list[list[str]] = []  # finished steps that are still to come once more

    def begin(self) -> list[Chunk]:
        """What stands before the first entry."""
        return [{"type": "start", "messageId": self._message_id}]

    def add(self, entry: Entry) -> list[Chunk]:
        """The chunks of the next entry. Raises `CannotTakeBack` where a `reset` cannot be said."""
        event = decode(entry)
        match event:
            case Started() | Status() | UsageReport():
                return []
            case ToolResult(id=call) if call not in self._step.calls:
                return []  # of no call that this reader was told of
            case Reset():
                return self._reset()
            case Completed() | Failed() | Cancelled():
                return self._end(event)
            case _:
                pass
        chunks: list[Chunk] = []
        if not isinstance(event, ToolResult) and self._step.over:
            self._finish_step(chunks)
        passed_over = bool(self._again)
        if not passed_over and not self._step.shown:
            self._step.shown = True
            chunks.append({"type": "start-step"})
        match event:
            case Delta(text=text, kind=kind):
                shown = [] if passed_over else self._text(text, kind)
            case Part():
                shown = [] if passed_over else self._part(event)
            case ToolCall():
                shown = [] if passed_over else self._fragment(event)
            case ToolCallDone():
                self._step.calls[event.id] = False
                shown = [] if passed_over else self._call(event)
            case ToolResult():
                self._step.calls[event.id] = True
                shown = [] if passed_over else [_result(event)]
        return chunks + shown

    def deleted(self) -> list[Chunk]:
        """The end of a generation that is erased while it is read."""
        return [*self._closing(), {"type": "abort", "reason": "deleted"}, _finish("other")]

    # --- text ---

    def _text(self, text: str, kind: DeltaKind) -> list[Chunk]:
        chunks: list[Chunk] = []
        if self._open is None or self._open[0] is not kind:
            chunks += self._close()
            self._open = kind, self._new_id()
            start: Chunk = {"type": f"{_family(kind)}-start", "id": self._open[1]}
            if kind is DeltaKind.REFUSAL:
                start["providerMetadata"] = {METADATA: {"kind": kind.value}}
            chunks.append(start)
        return [*chunks, {"type": f"{_family(kind)}-delta", "id": self._open[1], "delta": text}]

    def _close(self, metadata: Json | None = None) -> list[Chunk]:
        """End the part that is open."""
        if self._open is None:
            return []
        kind, part = self._open
        self._open = None
        end: Chunk = {"type": f"{_family(kind)}-end", "id": part}
        return [end | {"providerMetadata": {METADATA: metadata}} if metadata else end]

    def _part(self, part: Part) -> list[Chunk]:
        match part:
            case Part(type="citation", data={"url": str(url)} as data):
                source: Chunk = {"type": "source-url", "sourceId": self._new_id(), "url": url}
                return [source | {"title": data["title"]} if isinstance(data.get("title"), str) else source]
            case Part(type="reasoning", data=data):
                # What the provider wants back rides on the part of its reasoning, and comes back with the message.
                chunks: list[Chunk] = []
                if self._open is None or self._open[0] is not DeltaKind.REASONING:
                    chunks = self._close()
                    self._open = DeltaKind.REASONING, self._new_id()
                    chunks.append({"type": "reasoning-start", "id": self._open[1]})
                return chunks + self._close({"reasoning": data})
            case _:
                return []  # a source without an address, say: there is no chunk for it

    # --- tools ---

    def _fragment(self, fragment: ToolCall) -> list[Chunk]:
        call = self._calls.setdefault(fragment.index, _Call())
        call.id, call.name = fragment.id or call.id, fragment.name or call.name
        call.held += fragment.arguments
        if not (call.id and call.name):
            return []
        chunks: list[Chunk] = []
        if not call.started:
            call.started = True
            chunks = [*self._close(), {"type": "tool-input-start", "toolCallId": call.id, "toolName": call.name}]
        if call.held:
            chunks.append({"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": call.held})
            call.held = ""
        return chunks

    def _call(self, call: ToolCallDone) -> list[Chunk]:
        self._calls.pop(call.index, None)
        about: Chunk = {"toolCallId": call.id, "toolName": call.name}
        try:
            whole: Chunk = {"type": "tool-input-available", **about, "input": orjson.loads(call.arguments or "{}")}
        except orjson.JSONDecodeError:
            wrong = "the arguments of this call are not JSON"
            whole = {"type": "tool-input-error", **about, "input": call.arguments, "errorText": wrong}
        return [*self._close(), whole]

    # --- steps and ends ---

    def _finish_step(self, chunks: list[Chunk]) -> None:
        """The tools have answered, and the next turn begins."""
        calls = list(self._step.calls)
        if self._again:
            if self._again.pop(0) != calls:
                raise CannotTakeBack
            self._step = _Step(shown=self._step.shown)
        else:
            chunks += [*self._close(), {"type": "finish-step"}]
            self._finished.append(calls)
            self._step = _Step()
        self._calls = {}

    def _reset(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        if self._step.over and not self._again:
            self._finish_step(chunks)
        if self._step.shown and not self._again:
            if self._resets == "cut":
                raise CannotTakeBack
            chunks.append({"type": "reset-step"})
        # What is left of the step is its beginning: nothing in it, but begun.
        self._step = _Step(shown=self._step.shown)
        self._open, self._calls, self._again = None, {}, list(self._finished)
        return chunks

    def _closing(self) -> list[Chunk]:
        chunks = self._close()
        return [*chunks, {"type": "finish-step"}] if self._step.shown else chunks

    def _end(self, end: Terminal) -> list[Chunk]:
        match end:
            case Completed(finish_reason=reason):
                return [*self._closing(), _finish(_REASONS[reason])]
            case Failed(message=message):
                return [*self._closing(), {"type": "error", "errorText": message}, _finish("error")]
            case Cancelled(reason=why):
                # `finish` as well: a client that has not seen one asks again, and again.
                return [*self._closing(), {"type": "abort", "reason": why.value}, _finish("other")]

    def _new_id(self) -> str:
        self._numbers += 1
        return str(self._numbers)


def joined(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks with consecutive deltas of one part made one: for readers that do not count them."""
    run: list[str] = []
    last: Chunk = {}
    for chunk in chunks:
        if run and not ("delta" in chunk and (chunk["type"], chunk["id"]) == (last["type"], last["id"])):
            yield last | {"delta": "".join(run)}
            run = []
        if "delta" in chunk:
            run.append(chunk["delta"])
            last = chunk
        else:
            yield chunk
    if run:
        yield last | {"delta": "".join(run)}


def framed(chunks: Iterable[Chunk]) -> bytes:
    """The chunks as server-sent events; `[DONE]` behind `finish`."""
    return b"".join(
        b"data: %b\n\n%b" % (orjson.dumps(chunk), _DONE if chunk["type"] == "finish" else b"") for chunk in chunks
    )


def replayed(parts: Sequence[Json]) -> list[Chunk]:
    """The chunks that build a message of these parts, which the client has sent: what stands before an answer that goes
    on with a message, where the client builds the message anew."""
    chunks: list[Chunk] = []
    step = False
    for number, part in enumerate(parts):
        match part:
            case {"type": "step-start"}:
                chunks += [{"type": "finish-step"}] if step else []
                chunks.append({"type": "start-step"})
                step = True
            case {"type": "text" | "reasoning" as family, "text": str(text)}:
                place: Chunk = {"id": f"p{number}"}
                more = {"providerMetadata": part["providerMetadata"]} if part.get("providerMetadata") else {}
                chunks += [
                    {"type": f"{family}-start", **place, **more},
                    {"type": f"{family}-delta", **place, "delta": text},
                    {"type": f"{family}-end", **place},
                ]
            case {"type": "source-url" | "source-document" | "file"}:
                chunks.append(dict(part))
            case {"type": str(kind), "data": data} if kind.startswith("data-"):
                chunks.append({"type": kind, "data": data} | ({"id": part["id"]} if part.get("id") else {}))
            case {"type": str(kind), "toolCallId": str(call)} if kind.startswith("tool-") or kind == "dynamic-tool":
                chunks += _replayed_call(part, call)
            case _:
                pass
    return [*chunks, {"type": "finish-step"}] if step else chunks


def _replayed_call(part: Json, call: str) -> list[Chunk]:
    """A call with its result. The input comes as a delta: `tool-input-available` would have the client run it again."""
    dynamic = part["type"] == "dynamic-tool"
    place: Chunk = {"toolCallId": call} | ({"dynamic": True} if dynamic else {})
    named: Chunk = {**place, "toolName": part.get("toolName") if dynamic else part["type"].removeprefix("tool-")}
    asked: list[Chunk] = [
        {"type": "tool-input-start", **named},
        {"type": "tool-input-delta", "toolCallId": call, "inputTextDelta": orjson.dumps(part.get("input")).decode()},
    ]
    match part.get("state"):
        case "output-available":
            return [*asked, {"type": "tool-output-available", **place, "output": part.get("output")}]
        case "output-error":
            return [*asked, {"type": "tool-output-error", **place, "errorText": part.get("errorText") or ""}]
        case _:
            return [{"type": "tool-input-available", **named, "input": part.get("input")}]


def _family(kind: DeltaKind) -> str:
    return "reasoning" if kind is DeltaKind.REASONING else "text"


def _finish(reason: str) -> Chunk:
    return {"type": "finish", "finishReason": reason}


def _result(result: ToolResult) -> Chunk:
    if result.is_error:
        return {"type": "tool-output-error", "toolCallId": result.id, "errorText": result.content}
    output: object = result.content
    if result.content[:1] in ("{", "["):
        try:
            output = orjson.loads(result.content)
        except orjson.JSONDecodeError:
            output = result.content
    return {"type": "tool-output-available", "toolCallId": result.id, "output": output}

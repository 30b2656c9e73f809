"""The events of a generation, as a closed union, and how they are read from frames. Pure.

Every event has its `position`, to store and to come back with (None for the few that are not in the log), and `raw`:
the data as it came, with fields that this version does not know. Unknown events are `None` here: a client ignores them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

from legato_client.errors import Garbled
from legato_client.frames import Frame

_T = TypeVar("_T")

#: The position before the first event.
BEGINNING: Final = "0-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    position: str | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Event):
    """An attempt begins."""

    attempt: int
    provider: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta(_Event):
    """Text goes on. `kind` is `text`, `reasoning` or `refusal`; only `text` is the answer."""

    text: str
    kind: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(_Event):
    """A fragment of a call; the `arguments` of one `index` join to JSON."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDone(_Event):
    """A whole call; `arguments` is JSON."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult(_Event):
    """What a tool said."""

    id: str
    name: str
    content: str
    is_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(_Event):
    """Something that is neither text nor a call: a `citation`, a block of `reasoning` to give back."""

    type: str
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(_Event):
    """What the generation is at. `phase` says what else `raw` holds: `retrying`, `waiting`, `running_tool`,
    `waiting_for_tools`."""

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(_Event):
    """Discard everything that the generation has shown."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(_Event):
    """Tokens of the attempt so far."""

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(_Event):
    """Replace everything by this state. Comes first where it was asked for, and whenever the server no longer holds
    what was read before."""

    text: str
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCallDone, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()
    parts: tuple[Part, ...] = ()
    usage: Usage | None = None
    attempt: int = 0
    status: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(_Event):
    """The end. `finish_reason` is `stop`, `length`, `tool_calls` or `content_filter`."""

    finish_reason: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Event):
    """The end. `partial`: something was shown; `retryable`: submitting again may help."""

    code: str
    message: str
    retryable: bool
    partial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(_Event):
    """The end. `reason` is `user`, `abandoned`, `interrupted` or `deleted`."""

    reason: str
    usage: Usage | None = None


Terminal: TypeAlias = Completed | Failed | Cancelled

Event: TypeAlias = (
    Started
    | Delta
    | ToolCall
    | ToolCallDone
    | ToolResult
    | Part
    | Status
    | Reset
    | Usage
    | Snapshot
    | Completed
    | Failed
    | Cancelled
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A connection's first word. Not given to users: `verdict` None says that the server cannot serve right now."""

    verdict: str | None
    start: str
    generation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFault:
    """The event `error`: the server cannot go on with this connection."""

    code: str
    message: str


def data_of(frame: Frame) -> dict[str, Any]:
    """A frame's object. Raises `Garbled` for anything else."""
    try:
        value = json.loads(frame.data)
    except (ValueError, RecursionError) as exc:
        raise Garbled(f"an event {frame.event!r} that is not JSON") from exc
    if not isinstance(value, dict):
        raise Garbled(f"an event {frame.event!r} that is no object")
    return value


def decode(frame: Frame) -> Event | Open | ServerFault | None:
    """What a frame says; None for an event that this version does not know. Raises `Garbled` for a known event with
    something missing or of another type."""
    read = _READERS.get(frame.event)
    if read is None:
        return None
    return read(frame.id, data_of(frame))


def _need(data: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = data.get(name)
    if not isinstance(value, kind):
        raise Garbled(f"{name} is {type(value).__name__} and not {kind.__name__}")
    return value


def _may(data: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    return default if data.get(name) is None else _need(data, name, kind)


def _optional(data: Mapping[str, Any], name: str) -> str | None:
    return None if data.get(name) is None else _need(data, name, str)


def _items(data: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    items = _may(data, name, list, [])
    if not all(isinstance(item, dict) for item in items):
        raise Garbled(f"{name} holds what is no object")
    return items


def _started(at: str | None, data: dict[str, Any]) -> Event:
    return Started(
        position=at,
        raw=data,
        attempt=_need(data, "attempt", int),
        provider=_may(data, "provider", str, ""),
        model=_may(data, "model", str, ""),
    )


def _delta(at: str | None, data: dict[str, Any]) -> Event:
    return Delta(position=at, raw=data, text=_need(data, "text", str), kind=_may(data, "kind", str, "text"))


def _tool_call(at: str | None, data: dict[str, Any]) -> Event:
    return ToolCall(
        position=at,
        raw=data,
        index=_need(data, "index", int),
        arguments=_may(data, "arguments", str, ""),
        id=_optional(data, "id"),
        name=_optional(data, "name"),
    )


def _tool_call_done(at: str | None, data: dict[str, Any]) -> ToolCallDone:
    return ToolCallDone(
        position=at,
        raw=data,
        index=_need(data, "index", int),
        id=_need(data, "id", str),
        name=_need(data, "name", str),
        arguments=_need(data, "arguments", str),
    )


def _tool_result(at: str | None, data: dict[str, Any]) -> ToolResult:
    return ToolResult(
        position=at,
        raw=data,
        id=_need(data, "id", str),
        name=_may(data, "name", str, ""),
        content=_need(data, "content", str),
        is_error=_may(data, "is_error", bool, False),
    )


def _part(at: str | None, data: dict[str, Any]) -> Part:
    return Part(position=at, raw=data, type=_need(data, "type", str), data=data.get("data"))


def _status(at: str | None, data: dict[str, Any]) -> Event:
    return Status(position=at, raw=data, phase=_need(data, "phase", str))


def _reset(at: str | None, data: dict[str, Any]) -> Event:
    return Reset(
        position=at, raw=data, attempt=_may(data, "attempt", int, 0), reason=_may(data, "reason", str, "unknown")
    )


def _usage(at: str | None, data: dict[str, Any]) -> Usage:
    return Usage(
        position=at,
        raw=data,
        input_tokens=_may(data, "input_tokens", int, 0),
        output_tokens=_may(data, "output_tokens", int, 0),
    )


def _usage_of(data: Mapping[str, Any]) -> Usage | None:
    usage = _may(data, "usage", dict, {})
    return _usage(None, usage) if usage else None


def _snapshot(at: str | None, data: dict[str, Any]) -> Snapshot:
    if at is None:
        raise Garbled("a snapshot without a position")
    return snapshot_of(at, data)


def snapshot_of(at: str, data: dict[str, Any]) -> Snapshot:
    """A folded state: the data of the event `snapshot`, or the answer of `GET /v1/generations/{id}`."""
    return Snapshot(
        position=at,
        raw=data,
        text=_need(data, "text", str),
        reasoning=_may(data, "reasoning", str, ""),
        refusal=_may(data, "refusal", str, ""),
        tool_calls=tuple(_tool_call_done(None, item) for item in _items(data, "tool_calls")),
        tool_results=tuple(_tool_result(None, item) for item in _items(data, "tool_results")),
        parts=tuple(_part(None, item) for item in _items(data, "parts")),
        usage=_usage_of(data),
        attempt=_may(data, "attempt", int, 0),
        status=_may(data, "status", str, ""),
    )


def _completed(at: str | None, data: dict[str, Any]) -> Event:
    reason = _may(data, "finish_reason", str, "stop")
    return Completed(position=at, raw=data, finish_reason=reason, usage=_usage_of(data))


def _failed(at: str | None, data: dict[str, Any]) -> Event:
    return Failed(
        position=at,
        raw=data,
        code=_may(data, "code", str, "internal"),
        message=_may(data, "message", str, ""),
        retryable=_may(data, "retryable", bool, False),
        partial=_may(data, "partial", bool, False),
    )


def _cancelled(at: str | None, data: dict[str, Any]) -> Event:
    return Cancelled(position=at, raw=data, reason=_may(data, "reason", str, "user"), usage=_usage_of(data))


def _open(at: str | None, data: dict[str, Any]) -> Open:
    return Open(
        verdict=_optional(data, "verdict"),
        start=_may(data, "from", str, BEGINNING),
        generation=_may(data, "generation", str, ""),
    )


def _error(at: str | None, data: dict[str, Any]) -> ServerFault:
    return ServerFault(code=_may(data, "code", str, "unknown"), message=_may(data, "message", str, ""))


_READERS: Final[Mapping[str, Callable[[str | None, dict[str, Any]], Event | Open | ServerFault]]] = {
    "open": _open,
    "error": _error,
    "started": _started,
    "delta": _delta,
    "tool_call": _tool_call,
    "tool_call_done": _tool_call_done,
    "tool_result": _tool_result,
    "part": _part,
    "status": _status,
    "reset": _reset,
    "usage": _usage,
    "snapshot": _snapshot,
    "completed": _completed,
    "failed": _failed,
    "cancelled": _cancelled,
}

"""The events of the native dialect, as a closed union, and how the log stores each.

Pure: no I/O, no clock. A log entry has exactly one field. Text deltas are most of a log, so their field name is
one letter and their value is the bare UTF-8 text (18 B a token in Redis instead of 57 for JSON); the envelope is
built at the edge. Every other event is stored as `<event name> <JSON of its data>`, which is what a reader is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, assert_never

import orjson

#: Tool arguments, usage and the like: JSON as it came. The log does not look inside.
Json = dict[str, Any]


class DeltaKind(Enum):
    """What a piece of text is part of."""

    TEXT = "text"  # the answer
    REASONING = "reasoning"  # what the model thought before it
    REFUSAL = "refusal"  # why it will not answer


class FailureCode(Enum):
    """Why a generation failed. Nothing else is ever sent as `failed.code`."""

    RATE_LIMITED = "rate_limited"  # the provider asked us to slow down
    CONTEXT_LENGTH = "context_length"  # the prompt is too long for the model
    CONTENT_FILTER = "content_filter"  # the provider refused prompt or answer
    UPSTREAM_ERROR = "upstream_error"  # the provider, or the way to it, broke
    UPSTREAM_INCOMPLETE = "upstream_incomplete"  # its stream ended without its terminal marker
    UPSTREAM_AUTH = "upstream_auth"  # it does not accept our credentials
    STALLED = "stalled"  # it was silent for longer than `stall_seconds`
    TIMEOUT = "timeout"  # `timeout_seconds` are over, or it waited too long in the queue
    INVALID_REQUEST = "invalid_request"  # the provider will never accept this request
    VALIDATION_FAILED = "validation_failed"  # a check on the answer said no
    BUDGET_EXCEEDED = "budget_exceeded"  # a tenant's budget is used up
    TOOL_ERROR = "tool_error"  # a tool failed, or its result never came
    WORKER_LOST = "worker_lost"  # every attempt lost its worker
    STORE_LOST = "store_lost"  # the store lost the generation
    INTERNAL = "internal"  # a defect of ours


class FinishReason(Enum):
    """Why a complete answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class CancelReason(Enum):
    """Who ended a cancelled generation."""

    USER = "user"
    ABANDONED = "abandoned"  # nobody was reading it
    INTERRUPTED = "interrupted"  # a newer one of the same thread took over
    DELETED = "deleted"  # shown to attached viewers, never logged


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the provider counted them."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    def as_json(self) -> Json:
        """The event's data; counts the provider did not give are left out."""
        data: Json = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        if self.cached_tokens is not None:
            data["cached_tokens"] = self.cached_tokens
        if self.reasoning_tokens is not None:
            data["reasoning_tokens"] = self.reasoning_tokens
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """First event of an attempt (after `Reset`, where there is one)."""

    attempt: int
    provider: str
    model: str


class Delta(NamedTuple):
    """The next piece of the answer. `text` is never empty. A tuple, for it is made once a token."""

    text: str
    kind: DeltaKind = DeltaKind.TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A fragment of a tool call; `arguments` fragments of one `index` join to JSON text."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDone:
    """A whole tool call."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something of the answer that is neither text nor a call, as the provider gave it. `type` is `citation` (a source
    of what was said), or `reasoning` (a block that the provider wants back, unread, with the next turn)."""

    type: str
    data: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool gave back to the model."""

    id: str
    name: str
    content: str
    is_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a silent generation is. `retrying` carries attempt, delay_ms, code and message; `waiting` a reason."""

    phase: str
    detail: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Discard what this generation has shown so far; it starts anew."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Tokens used so far, cumulative for the attempt."""

    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """Terminal. `characters` counts the code points of plain text since the last reset."""

    finish_reason: FinishReason
    usage: Usage | None
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Terminal. `partial` says whether anything was shown since the last reset, `characters` how much plain text;
    `retryable` whether asking again can help."""

    code: FailureCode
    message: str
    retryable: bool
    partial: bool
    characters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Terminal. What was generated until then stays."""

    reason: CancelReason
    usage: Usage | None = None


Terminal = Completed | Failed | Cancelled
Event = Started | Delta | ToolCall | ToolCallDone | Part | ToolResult | Status | Reset | UsageReport | Terminal

#: Field names of deltas in the log; every other entry's field is its event name.
DELTA_FIELDS: Final[dict[bytes, DeltaKind]] = {
    b"d": DeltaKind.TEXT,
    b"r": DeltaKind.REASONING,
    b"f": DeltaKind.REFUSAL,
}
#: That of plain text.
TEXT_FIELD: Final = b"d"
_FIELD_OF_KIND: Final = {kind: field for field, kind in DELTA_FIELDS.items()}

#: Entries with these field names end a log. The scripts hold the same list.
TERMINAL_FIELDS: Final = frozenset({b"completed", b"failed", b"cancelled"})

#: "Shown" to a viewer: any of these makes a later attempt say `reset`.
SHOWN_FIELDS: Final = frozenset({*DELTA_FIELDS, b"tool_call", b"tool_call_done", b"part", b"tool_result"})


class Stored(NamedTuple):
    """An event as the log holds it: the entry's one field, name and value."""

    field: bytes
    payload: bytes


class Entry(NamedTuple):
    """A stored event at its place. `position` is the entry's id, as text: entries are told apart by it alone."""

    position: str
    field: bytes
    payload: bytes

    @property
    def stored(self) -> Stored:
        return Stored(self.field, self.payload)

    @property
    def is_terminal(self) -> bool:
        return self.field in TERMINAL_FIELDS

    @property
    def is_shown(self) -> bool:
        return self.field in SHOWN_FIELDS


def encode(event: Event) -> Stored:
    """The log entry of an event. Lone surrogates (no UTF-8 for them) become U+FFFD."""
    match event:
        case Delta(text=text, kind=kind):
            return Stored(_FIELD_OF_KIND[kind], utf8(text))
        case Started(attempt=attempt, provider=provider, model=model):
            return _json(b"started", {"attempt": attempt, "provider": provider, "model": model})
        case ToolCall():
            data: Json = {"index": event.index}
            if event.id is not None:
                data["id"] = event.id
            if event.name is not None:
                data["name"] = event.name
            return _json(b"tool_call", data | {"arguments": event.arguments})
        case ToolCallDone(index=index, id=call, name=name, arguments=arguments):
            return _json(b"tool_call_done", {"index": index, "id": call, "name": name, "arguments": arguments})
        case Part(type=kind_of_part, data=about):
            return _json(b"part", {"type": kind_of_part, "data": about})
        case ToolResult(id=call, name=name, content=content, is_error=is_error):
            return _json(b"tool_result", {"id": call, "name": name, "content": content, "is_error": is_error})
        case Status(phase=phase, detail=detail):
            return _json(b"status", {"phase": phase} | detail)
        case Reset(attempt=attempt, reason=reason):
            return _json(b"reset", {"attempt": attempt, "reason": reason})
        case UsageReport(usage=usage):
            return _json(b"usage", usage.as_json())
        case Completed(finish_reason=finish, usage=used, characters=characters):
            return _json(
                b"completed",
                {
                    "finish_reason": finish.value,
                    "usage": used.as_json() if used else None,
                    "characters": characters,
                },
            )
        case Failed(code=code, message=message, retryable=retryable, partial=partial, characters=characters):
            return _json(
                b"failed",
                {
                    "code": code.value,
                    "message": message,
                    "retryable": retryable,
                    "partial": partial,
                    "characters": characters,
                },
            )
        case Cancelled(reason=why, usage=used):
            return _json(b"cancelled", {"reason": why.value} | ({"usage": used.as_json()} if used else {}))
        case _:
            assert_never(event)


def decode(stored: Stored | Entry) -> Event:
    """The event of a log entry; raises `ValueError` for a field this version does not know."""
    if (kind := DELTA_FIELDS.get(stored.field)) is not None:
        return Delta(text=stored.payload.decode(), kind=kind)
    data: Json = orjson.loads(stored.payload)
    match stored.field:
        case b"started":
            return Started(**data)
        case b"tool_call":
            return ToolCall(**data)
        case b"tool_call_done":
            return ToolCallDone(**data)
        case b"part":
            return Part(**data)
        case b"tool_result":
            return ToolResult(**data)
        case b"status":
            return Status(phase=data.pop("phase"), detail=data)
        case b"reset":
            return Reset(**data)
        case b"usage":
            return UsageReport(usage=Usage(**data))
        case b"completed":
            return Completed(
                finish_reason=FinishReason(data["finish_reason"]),
                usage=_usage(data.get("usage")),
                characters=data["characters"],
            )
        case b"failed":
            return Failed(**data | {"code": FailureCode(data["code"])})
        case b"cancelled":
            return Cancelled(reason=CancelReason(data["reason"]), usage=_usage(data.get("usage")))
        case _:
            raise ValueError(f"unknown log field {stored.field!r}")


def wire(stored: Stored | Entry) -> tuple[bytes, bytes]:
    """The event's name and its data, one line of JSON in UTF-8, as every transport sends them."""
    if (kind := DELTA_FIELDS.get(stored.field)) is None:
        return stored.field, stored.payload
    return b"delta", delta_data(kind, stored.payload.decode())


def delta_data(kind: DeltaKind, text: str) -> bytes:
    """The data of a delta; `kind` is given only where it is not plain text."""
    if kind is DeltaKind.TEXT:
        return orjson.dumps({"text": text})
    return orjson.dumps({"text": text, "kind": kind.value})


def _json(field: bytes, data: Json) -> Stored:
    try:
        return Stored(field, orjson.dumps(data))
    except TypeError:  # a lone surrogate somewhere inside, or an int beyond 64 bits
        return Stored(field, orjson.dumps(_clean(data)))


def _clean(value: object) -> object:
    match value:
        case str():
            return utf8(value).decode()
        case dict():
            return {utf8(str(key)).decode(): _clean(item) for key, item in value.items()}
        case list():
            return [_clean(item) for item in value]
        case int() if not -(2**63) <= value < 2**64:
            return float(value) if abs(value) < 1 << 1023 else None
        case _:
            return value


def utf8(text: str) -> bytes:
    """`text` as UTF-8; a lone surrogate, for which there is none, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text).encode()


def _usage(data: Json | None) -> Usage | None:
    return Usage(**data) if data else None

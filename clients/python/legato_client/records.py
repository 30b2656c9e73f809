"""What the control routes take and give, typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypedDict

from legato_client.answer import Answer, Fold
from legato_client.errors import Garbled
from legato_client.events import Cancelled, Completed, Failed, Terminal, snapshot_of

#: The statuses of generations that have ended.
TERMINAL_STATUSES: Final = frozenset({"completed", "failed", "cancelled"})


class Options(TypedDict, total=False):
    """Fields of a submit beside provider, model and messages. docs/protocol.md, section 3, says what each means."""

    max_output_tokens: int
    temperature: float
    top_p: float
    stop: str | Sequence[str]
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    tool_mode: Literal["return", "server", "interactive"]
    max_tool_rounds: int
    tool_timeout_seconds: float
    provider_options: Mapping[str, Any]
    fallbacks: Sequence[Mapping[str, Any]]
    thread: str
    thread_policy: Literal["enqueue", "reject", "interrupt"]
    recovery: Literal["restart", "continue", "fail"]
    max_attempts: int
    on_disconnect: Mapping[str, Any]
    timeout_seconds: float
    stall_seconds: float
    delivery: Mapping[str, Any]
    transforms: Sequence[str | Mapping[str, Any]]
    validators: Sequence[str | Mapping[str, Any]]
    max_output_characters: int
    priority: Literal["interactive", "batch"]
    ttl_seconds: int
    metadata: Mapping[str, Any]


class ToolOutput(TypedDict, total=False):
    """The result of one call. `content` is text; anything else goes to the model as JSON."""

    tool_call_id: str
    content: Any
    is_error: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A generation that was accepted. `replayed`: it was submitted with this key before. Times are seconds since
    1970."""

    id: str
    status: str
    created_at: float
    idempotency_key: str
    replayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the server knows of a generation. `answer` is its text so far, with `answer.end` once it has ended. In a
    list there is no `answer`. `raw` is everything, as it came."""

    id: str
    status: str
    provider: str
    model: str
    thread: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    metadata: Mapping[str, Any]
    answer: Answer | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether anything can still come."""
        return self.status in TERMINAL_STATUSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of generations, newest first. More of them: `list(cursor=page.next_cursor)` while that is not None."""

    data: tuple[Generation, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """Ids: of the generation that runs, of those that wait in order, of the newest."""

    active: str | None
    queued: tuple[str, ...]
    last: str | None


def submitted_of(raw: Mapping[str, Any], *, key: str, replayed: bool) -> Submitted:
    """Raises `Garbled`."""
    return Submitted(
        id=_need_id(raw),
        status=str(raw.get("status")),
        created_at=_time(raw, "created_at") or 0.0,
        idempotency_key=key,
        replayed=replayed,
    )


def generation_of(raw: dict[str, Any], *, folded: bool) -> Generation:
    """`folded`: the answer's state is in it. Raises `Garbled`."""
    thread = raw.get("thread")
    metadata = raw.get("metadata")
    return Generation(
        id=_need_id(raw),
        status=str(raw.get("status")),
        provider=str(raw.get("provider")),
        model=str(raw.get("model")),
        thread=thread if isinstance(thread, str) else None,
        created_at=_time(raw, "created_at") or 0.0,
        started_at=_time(raw, "started_at"),
        ended_at=_time(raw, "ended_at"),
        metadata=metadata if isinstance(metadata, dict) else {},
        answer=_answer_of(raw) if folded else None,
        raw=raw,
    )


def thread_of(raw: Mapping[str, Any]) -> Thread:
    """Raises `Garbled`."""
    if raw.get("object") != "thread" or not isinstance(raw.get("queued"), list):
        raise Garbled("an object that is no thread")
    active, last = raw.get("active"), raw.get("last")
    return Thread(
        active=active if isinstance(active, str) else None,
        queued=tuple(str(each) for each in raw["queued"]),
        last=last if isinstance(last, str) else None,
    )


def _answer_of(raw: dict[str, Any]) -> Answer:
    position = str(raw.get("position") or "0-0")
    fold = Fold()
    fold.add(snapshot_of(position, raw))
    if raw.get("status") in TERMINAL_STATUSES:
        fold.add(_end_of(raw, position))
    return fold.answer()


def _end_of(raw: Mapping[str, Any], position: str) -> Terminal:
    match raw.get("status"):
        case "completed":
            return Completed(position=position, finish_reason=str(raw.get("finish_reason") or "stop"))
        case "failed":
            error = raw.get("error")
            said = error if isinstance(error, dict) else {}
            return Failed(
                position=position,
                raw=said,
                code=str(said.get("code") or raw.get("code") or "internal"),
                message=str(said.get("message") or ""),
                retryable=said.get("retryable") is True,
                partial=said.get("partial") is True,
            )
        case _:
            return Cancelled(position=position, reason="unknown")


def _need_id(raw: Mapping[str, Any]) -> str:
    value = raw.get("id")
    if not isinstance(value, str):
        raise Garbled("an object without an id")
    return value


def _time(raw: Mapping[str, Any], name: str) -> float | None:
    value = raw.get(name)
    return float(value) if isinstance(value, int | float) else None

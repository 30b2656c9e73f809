"""A generation: its id, its states, what was asked for, and what its record says.

Values; `broker.records`, `broker.lease` and `broker.log` move them in and out of Redis. Only `new_id` looks at a clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Final, Self

import orjson

from broker.events import FailureCode, Json
from broker.position import Position

_ID_PREFIX: Final = "gen_"
_ID_LENGTH: Final = len(_ID_PREFIX) + 32


class State(Enum):
    """Where a generation is. Steps: queued → running; running → queued (handed over), retrying, waiting_for_tools or an
    end; retrying and waiting_for_tools → queued or running; any → cancelled, deleted."""

    QUEUED = "queued"  # stored, waits for a worker
    RUNNING = "running"  # a worker holds, or held, its lease
    RETRYING = "retrying"  # an attempt failed; the next one waits for its time
    WAITING_FOR_TOOLS = "waiting_for_tools"  # the client runs them; nobody holds a lease
    CANCELLING = "cancelling"  # shown only: running, with a cancel stored
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"  # a tombstone: prompt and log are erased

    @property
    def is_terminal(self) -> bool:
        return self in _ENDED


_ENDED: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.DELETED})


class Recovery(Enum):
    """What the next attempt does when text was shown already."""

    RESTART = "restart"  # `reset`, then the text anew
    CONTINUE = "continue"  # go on from the partial text where provider and model can, else restart
    FAIL = "fail"  # end with `failed`


class ThreadPolicy(Enum):
    """What a submit does where its thread has generations that have not ended."""

    ENQUEUE = "enqueue"  # runs behind them
    REJECT = "reject"  # is refused
    INTERRUPT = "interrupt"  # cancels them, and runs when they have ended


class ToolMode(Enum):
    """Who runs the tools that the model calls."""

    RETURN = "return"  # whoever reads the answer: it completes with `finish_reason: tool_calls`
    SERVER = "server"  # the worker, between the model's turns
    INTERACTIVE = "interactive"  # the client, while the generation waits for the results


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model at a provider, and what that provider alone is told."""

    provider: str
    model: str
    provider_options: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How text is cut into deltas; see `worker.delivery`."""

    unit: str = "token"  # token, word or sentence
    max_chars: int | None = None  # no delta is longer
    flush_ms: int | None = None  # nothing waits longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A check or a transform of the text, by name, and what it is told."""

    name: str
    options: Json = field(default_factory=dict)


class Priority(Enum):
    """Which of the two classes a job waits in."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class _Ids:
    """UUIDv7s that never fall behind one another within a millisecond (RFC 9562, 5.7 and 6.2)."""

    _last = 0

    def next(self) -> str:
        value = time.time_ns() // 1_000_000 << 74 | secrets.randbits(74)  # without the bits that are the same in all
        if value >> 74 == self._last >> 74:
            value = self._last + 1 + secrets.randbits(48)
        self._last = value
        milliseconds, high, low = value >> 74, value >> 62 & 0xFFF, value & (1 << 62) - 1
        return f"{milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low:032x}"


_ids = _Ids()


def new_id() -> str:
    """`gen_` and a UUIDv7 in hex: never reused, and sorts by time of creation, which within a process is its order."""
    return _ID_PREFIX + _ids.next()


def created_at(generation: str) -> float:
    """When an id was made, in Unix seconds of its maker's clock."""
    return int(generation[len(_ID_PREFIX) : len(_ID_PREFIX) + 12], 16) / 1000


def is_id(text: str) -> bool:
    """Whether `text` has the form of a generation id. Checked before a key is built from it."""
    return (
        len(text) == _ID_LENGTH
        and text.startswith(_ID_PREFIX)
        and all(char in "0123456789abcdef" for char in text[len(_ID_PREFIX) :])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for. The messages and options are JSON as it came, checked at the edge."""

    provider: str
    model: str
    messages: list[Json]
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    provider_options: Json = field(default_factory=dict)
    fallbacks: list[Target] = field(default_factory=list)  # asked in turn where the one before fails
    tool_mode: ToolMode = ToolMode.RETURN
    max_tool_rounds: int = 8  # turns that end in calls, before it fails
    tool_timeout_seconds: float = 300.0  # how long the client has for the results (interactive)
    delivery: Delivery = field(default_factory=Delivery)
    transforms: list[Filter] = field(default_factory=list)
    validators: list[Filter] = field(default_factory=list)
    max_output_characters: int | None = None
    thread: str | None = None
    thread_policy: ThreadPolicy = ThreadPolicy.ENQUEUE
    recovery: Recovery = Recovery.RESTART
    max_attempts: int = 3
    timeout_seconds: float | None = None  # whole generation, from its first claim
    stall_seconds: float | None = None  # longest silence of the provider
    priority: Priority = Priority.INTERACTIVE
    ttl_seconds: int = 3600  # life of the log after its terminal event
    grace_seconds: float | None = None  # cancel when no viewer has been attached for so long; None: never
    metadata: Json = field(default_factory=dict)
    webhook_url: str | None = None  # who asks to be told of its end
    webhooks: dict[str, str] = field(default_factory=dict)  # endpoints that are told: that URL, or '' for their own
    dialect: Json = field(default_factory=dict)  # what only the dialect that it came in knows of it, to show it again

    @property
    def targets(self) -> list[Target]:
        """Who is asked, in turn."""
        own = Target(provider=self.provider, model=self.model, provider_options=self.provider_options)
        return [own, *self.fallbacks]

    def encode(self) -> bytes:
        """JSON, as the store keeps it until the log expires."""
        return orjson.dumps(self)

    def record_fields(self, tenant: str, *, tombstone_seconds: float) -> dict[str, str]:
        """What of the request stands in the generation's record, for scripts and listings."""
        ttl_ms = self.ttl_seconds * 1000
        return {
            "tenant": tenant,
            "provider": self.provider,
            "model": self.model,
            "priority": self.priority.value,
            "max_attempts": str(self.max_attempts),
            "ttl_ms": str(ttl_ms),
            "stub_ms": str(ttl_ms + round(tombstone_seconds * 1000)),
            "grace_ms": "" if self.grace_seconds is None else str(round(self.grace_seconds * 1000)),
            "thread": self.thread or "",
            "metadata": orjson.dumps(self.metadata).decode(),
            "hooks": orjson.dumps(self.webhooks).decode() if self.webhooks else "",
        }

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Back from the store. Fields of a newer version are ignored; one that cannot be read at all becomes a request
        that no provider serves, so that it ends."""
        known = {item.name for item in fields(cls)}
        try:
            values: dict[str, Any] = {key: item for key, item in orjson.loads(data).items() if key in known}
            values["recovery"] = Recovery(values["recovery"])
            values["priority"] = Priority(values["priority"])
            for name, kind in _VALUES.items():
                if name in values:
                    found = values[name]
                    values[name] = [kind(**item) for item in found] if isinstance(found, list) else kind(**found)
            if "thread_policy" in values:
                values["thread_policy"] = ThreadPolicy(values["thread_policy"])
            if "tool_mode" in values:
                values["tool_mode"] = ToolMode(values["tool_mode"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(provider="(unreadable)", model="(unreadable)", messages=[])


#: Fields of a request that hold values of their own, or lists of them.
_VALUES: Final[dict[str, Any]] = {"fallbacks": Target, "delivery": Delivery, "transforms": Filter, "validators": Filter}


@dataclass(frozen=True, slots=True)
class Hook:
    """What a record says of telling one endpoint of its end."""

    url: str  # that the submit asked for; '' for the endpoint's own
    tries: int
    outcome: str  # '' while it is owed, `done`, or why nobody tries any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the store knows of a generation besides its log. Times are Unix milliseconds of the store's clock."""

    id: str
    tenant: str
    state: State
    epoch: int
    attempt: int
    max_attempts: int
    provider: str
    model: str
    priority: Priority
    thread: str | None
    metadata: Json
    head: Position
    created_ms: int
    started_ms: int | None
    ended_ms: int | None
    now_ms: int  # when this was read
    confirmed: bool  # the queue has had its hint: it was accepted (False again once it expires)
    lease_live: bool  # by the store's clock, when it was read
    waits: bool  # for its turn in its thread: nobody can claim it
    ttl_ms: int  # life of its log after its end
    cancel_requested: bool
    failure: FailureCode | None  # of a failed one
    pending: list[str]  # ids of the calls that the client was asked to run last
    timings: Json | None  # of an ended one: how long what took, as `worker.facts` says it
    webhooks: dict[str, Hook]  # by endpoint
    end: Json | None  # of an ended one that has webhooks: the data of its terminal event

    @property
    def shown_state(self) -> State:
        """The status a client sees: a running one with a stored cancel is `cancelling`."""
        if self.cancel_requested and not self.state.is_terminal:
            return State.CANCELLING
        return self.state

    @classmethod
    def decode(cls, generation: str, raw: Mapping[str, str], *, now_ms: int, left_ms: int) -> Self:
        """From the fields that the store keeps; `left_ms` until the record expires, below 0 where it does not."""
        return cls(
            id=generation,
            tenant=raw["tenant"],
            state=State(raw["state"]),
            epoch=int(raw["epoch"]),
            attempt=int(raw.get("attempt", 0)),
            max_attempts=int(raw.get("max_attempts", 0)),
            provider=raw.get("provider", ""),
            model=raw.get("model", ""),
            priority=Priority(raw["priority"]),
            thread=raw.get("thread") or None,
            metadata=orjson.loads(raw.get("metadata", "{}")),
            head=Position.of_entry_id(raw.get("head", "0-0")),
            created_ms=int(raw.get("created_ms", 0)),
            started_ms=int(raw["started_ms"]) if "started_ms" in raw else None,
            ended_ms=int(raw["ended_ms"]) if "ended_ms" in raw else None,
            now_ms=now_ms,
            confirmed=left_ms < 0,
            lease_live=int(raw.get("lease", 0)) > now_ms,
            waits="waits" in raw,
            ttl_ms=int(raw.get("ttl_ms", 0)),
            cancel_requested=bool(raw.get("cancel")),
            failure=FailureCode(raw["failure"]) if "failure" in raw else None,
            pending=orjson.loads(raw["pending"]) if raw.get("pending") else [],
            timings=orjson.loads(raw["timings"]) if "timings" in raw else None,
            webhooks=_hooks(raw),
            end=orjson.loads(raw["end"]) if "end" in raw else None,
        )


def _hooks(raw: Mapping[str, str]) -> dict[str, Hook]:
    hooks: dict[str, Hook] = {}
    for name, url in orjson.loads(raw.get("hooks") or "{}").items():
        tries, _, outcome = raw.get(f"hook:{name}", "0 ").partition(" ")
        hooks[name] = Hook(url, int(tries), outcome)
    return hooks

"""What a provider is to the worker: a call in, events out.

A provider never touches the log, the queue or a lease, and never decides whether to try again: it maps one wire
format to events, classifies what went wrong, and closes its connection the moment it is told to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, FinishReason, Json, Part, ToolCall, ToolCallDone, Usage, UsageReport
from broker.generation import Request


@dataclass(slots=True, kw_only=True)
class Meter:
    """What a provider counts while it streams. The worker reads it; nothing depends on it."""

    connect_seconds: float | None = None  # from the call to the answer's head
    chunks: int = 0  # pieces of body, as the transport gave them
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One answer asked for."""

    request: Request  # `messages` are those of this turn, results of tools included
    attempt: int = field(default=1, kw_only=True)
    #: Plain text that an earlier attempt has shown; what is yielded follows it, to the character. Given only where
    #: `can_continue` says yes.
    partial: str = field(default="", kw_only=True)
    #: The token of the last `Mark` that an earlier attempt of this answer yielded, where there was one.
    resume: Json | None = field(default=None, kw_only=True)
    meter: Meter = field(default_factory=Meter, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Everything yielded so far can be had again at the provider: a call with this `token` as `resume` yields exactly
    what follows this mark. Yielded only where no tool call is half-way. The token is JSON of at most 4 KiB and holds no
    secret."""

    token: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The provider's own terminal marker arrived: the answer is whole. Always the last thing yielded."""

    finish_reason: FinishReason
    usage: Usage | None


ProviderEvent = Delta | ToolCall | ToolCallDone | Part | UsageReport | Mark | Finish


class ResumeImpossible(ProviderError):
    """The provider does not know, or does not know any more, what `Call.resume` names. Raised before the first event.
    Cure: the same call without `resume`, behind a `reset` if anything was shown."""

    def __init__(self, message: str) -> None:
        super().__init__(FailureCode.UPSTREAM_INCOMPLETE, message, retryable=True)


class Provider(Protocol):
    """One way to a model."""

    @property
    def name(self) -> str:
        """As requests name it."""
        ...

    def can_continue(self, request: Request) -> bool:
        """Whether `stream` can go on from the text of a lost attempt, for this request's model. Declared by whoever
        configures the provider, never guessed."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """Ask, and yield what comes, in order, without delay.

        Ends after `Finish`, or raises `ProviderError` (nothing else). A wire that ends without its terminal
        marker raises `upstream_incomplete`; a `Call.resume` that leads nowhere, `ResumeImpossible`. Closing the
        generator closes the connection at once. The consumer may pause between items for as long as it likes: reading
        then stops (backpressure), nothing is dropped.
        """
        ...

    async def abandon(self, token: Json) -> None:
        """Nobody will read on from a `Mark`'s token: have the provider stop what it still generates. Best effort; never
        raises. Nothing to do for a provider that yields no marks: closing the generator was enough."""
        ...

    async def aclose(self) -> None:
        """Give connections back. No stream may be open."""
        ...

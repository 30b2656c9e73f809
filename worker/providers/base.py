"""What a provider is to the worker: a request in, events out.

A provider never touches the log, the queue or a lease, and never decides whether to try again: it maps one wire
format to events, classifies what went wrong, and closes its connection the moment it is told to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from broker.events import Delta, FinishReason, ToolCall, ToolCallDone, Usage, UsageReport
from broker.generation import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The provider's own terminal marker arrived: the answer is whole. Always the last thing yielded."""

    finish_reason: FinishReason
    usage: Usage | None


ProviderEvent = Delta | ToolCall | ToolCallDone | UsageReport | Finish


class Provider(Protocol):
    """One way to a model."""

    @property
    def name(self) -> str:
        """As requests name it."""
        ...

    def can_continue(self, request: Request) -> bool:
        """Whether `stream` can go on from the text of a lost attempt, for this request's model."""
        ...

    def stream(self, request: Request, *, attempt: int, partial: str = "") -> AsyncGenerator[ProviderEvent, None]:
        """Ask, and yield what comes, in order, without delay.

        `partial` is the plain text that an earlier attempt has shown: what is yielded follows it, to the character. It
        is given only where `can_continue` says yes.

        Ends after `Finish`, or raises `ProviderError` (nothing else). A wire that ends without its terminal
        marker raises `upstream_incomplete`. Closing the generator closes the connection at once. The consumer
        may pause between items for as long as it likes: reading then stops (backpressure), nothing is dropped.
        """
        ...

    async def aclose(self) -> None:
        """Give connections back. No stream may be open."""
        ...

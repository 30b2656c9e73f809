"""What a tool is to the worker: arguments in, text out.

A tool never touches the log, the queue or a lease, and never decides whether it is run again: it says by `idempotent`
whether it may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from broker.events import Json


class ToolFailed(Exception):
    """A failure that the model may read: its text is a short sentence without secrets. Its cause is only logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """What the model is given for a call: the tool's text, or a sentence that says why there is none."""

    content: str
    is_error: bool


class Tool(Protocol):
    """One thing that a model can have done.

    A tool may also have `parameters`, a JSON Schema of its arguments: calls that do not fit it never reach `run`.
    """

    @property
    def name(self) -> str:
        """As requests and models name it: 1 to 64 of A-Z, a-z, 0-9, `_` and `-`."""
        ...

    @property
    def idempotent(self) -> bool:
        """Running it twice with the same `call_id` does no more than running it once."""
        ...

    async def run(self, arguments: Json, *, call_id: str) -> str:
        """Do it. `arguments` is a JSON object; `call_id` is the same when a call is run again, and no other call's.

        Raises `ToolFailed` for a failure that the model may read. It is cancelled at its time-out, and when nobody
        wants the result any more.
        """
        ...

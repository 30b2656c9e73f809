"""What a filter is: a transform changes text, a validator judges it. Made anew for every answer.

Both are called on the worker's event loop, once for each chunk: they must be quick and do no I/O. They are what third
parties write, so `worker.filters.pipeline` believes nothing that they return.
"""

from __future__ import annotations

from typing import Protocol

from broker.errors import LegatoError


class Transform(Protocol):
    """Changes text.

    It may have a method `pending() -> bool`: whether it keeps text back now. Without one it counts as always doing so.
    """

    def feed(self, text: str) -> str:
        """What may be shown now; some may be kept back. `text` is never empty."""
        ...

    def end(self) -> str:
        """The rest. Called once, nothing is fed afterwards."""
        ...


class Validator(Protocol):
    """Judges text, and changes none of it. Raises `Rejected` from either method to end the generation."""

    def feed(self, text: str) -> str:
        """Of all that it was given, the next part that is judged good; may be empty, the rest waits. `text` is never
        empty."""
        ...

    def end(self) -> str:
        """The rest. Called once, nothing is fed afterwards."""
        ...


class Rejected(ValueError):
    """The answer may not be shown: the generation ends as `failed` with `validation_failed`.

    The message goes to the client. It should say which rule was broken, and quote none of the text.
    """


class FilterDefect(LegatoError):
    """A filter raised what it may not, or returned what it may not. Cure: mend the filter.

    The message names the filter and the place in its code, and holds no text of the answer.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"filter {name!r}: {problem}")
        self.name = name

"""What a dialect is to the viewer that reads for it: an encoder, which sees every entry once and in order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.events import Entry


class CannotTakeBack(Exception):
    """What this reader was shown is not the answer any more, and its dialect has no words for that: its body must end
    incompletely, and its next request begins anew."""


class Encoder(Protocol):
    """One reader's words for one log. It may keep state, so it belongs to one viewer."""

    def begin(self) -> bytes:
        """What stands before the first entry."""
        ...

    def encode(self, entries: Sequence[Entry]) -> bytes:
        """The next entries. Raises `CannotTakeBack`."""
        ...

    def deleted(self) -> bytes:
        """The end of a generation that is erased while it is read."""
        ...

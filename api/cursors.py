"""Cursors of connections that can change, or carry, more than one generation. Pure.

A plain position names a place in one log. Where the reader's next connection may be about another log, the cursor says
which one: `<generation>/<seq>-<epoch>`.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.errors import InvalidPosition
from broker.generation import is_id
from broker.position import Position


@dataclass(frozen=True, slots=True)
class Qualified:
    """A position, and the generation whose it is."""

    generation: str
    position: str

    @classmethod
    def parse(cls, text: str) -> Qualified:
        """Read one as a client gave it; raises `InvalidPosition` for anything else, an unqualified position too."""
        generation, _, position = text.partition("/")
        if not is_id(generation):
            raise InvalidPosition("a cursor here reads <generation>/<seq>-<epoch>: give back an id as it came")
        return cls(generation, str(Position.parse(position)))

    def __str__(self) -> str:
        return f"{self.generation}/{self.position}"

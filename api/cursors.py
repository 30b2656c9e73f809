"""Cursors of connections that can change, or carry, more than one generation. Pure.

A plain position names a place in one log. Where the reader's next connection may be about another log, the cursor says
which one: `<generation>/<seq>-<epoch>`. Where one connection carries many logs, it has a place in each of them:

    composite = place *( "," place )
    place     = tag "/" ( position / "x" )      x: the reader was told that this generation is gone
    tag       = the last 8 hex digits of the generation's id

What is read from the start has no place yet. Tags and not ids, because every frame carries the whole of it: some 16
bytes a generation. They are of the random end of an id, so two in one request are never alike but by a chance of one in
2^32, and then the request is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.errors import InvalidPosition
from broker.generation import is_id
from broker.position import BEGINNING, Position

#: Digits of an id that stand for it in a composite cursor.
_TAG_DIGITS: Final = 8
_TAG: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)

#: The place in a generation of which the reader knows that it is not there (any more).
GONE: Final = "x"


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


def tag_of(generation: str) -> str:
    """What stands for a generation in a composite cursor."""
    return generation[-_TAG_DIGITS:]


class Composite:
    """Places in many generations, by tag. Changes as frames are sent: each frame's id is what it says then."""

    def __init__(self, places: dict[str, str] | None = None) -> None:
        self._places = places or {}

    @classmethod
    def parse(cls, text: str, *, most: int) -> Composite:
        """Read one as a client gave it, of `most` places; raises `InvalidPosition` for anything else."""
        places: dict[str, str] = {}
        parts = text.split(",", most)
        if len(parts) > most:
            raise InvalidPosition(f"a cursor has at most {most} places here")
        for part in parts:
            tag, _, place = part.partition("/")
            if not _TAG.fullmatch(tag) or tag in places:
                raise InvalidPosition("a cursor here reads <tag>/<position>,<tag>/<position>: give it back as it came")
            places[tag] = place if place == GONE else str(Position.parse(place))
        return cls(places)

    def place(self, generation: str) -> str | None:
        """Where its reader is in a generation: a position, `GONE`, or None for nowhere."""
        return self._places.get(tag_of(generation))

    def only(self, generations: list[str]) -> Composite:
        """The places in these, and no others."""
        wanted = {tag_of(generation) for generation in generations}
        return Composite({tag: place for tag, place in self._places.items() if tag in wanted})

    def move(self, tag: str, place: str) -> str:
        """Go to a place in one of them; the whole as text."""
        if place == BEGINNING:
            self._places.pop(tag, None)
        else:
            self._places[tag] = place
        return str(self)

    def __str__(self) -> str:
        return ",".join([f"{tag}/{place}" for tag, place in self._places.items()])

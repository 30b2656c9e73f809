"""Where an event stands in its generation: `<seq>-<epoch>`, which is also its Redis Stream entry id.

Pure. Clients store positions and give them back, and never look inside; here only writers build them. Positions of one
log sort by seq first: within a log no seq stands twice, so the order of ids is the order of events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from broker.errors import InvalidPosition

#: Decimal, no leading zeros, at most 16 digits a part (an epoch stays below 2^53; Redis would take more).
_GRAMMAR: Final = re.compile(r"(?:0-0|[1-9][0-9]{0,15}-[1-9][0-9]{0,15})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """`seq` counts 1, 2, 3 … without holes; `epoch` is the fencing number it was written under."""

    seq: int
    epoch: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read a position as a client gave it; raises `InvalidPosition` for anything else, `$` and `+` too."""
        if not _GRAMMAR.fullmatch(text):
            raise InvalidPosition(
                f"a position reads <seq>-<epoch>, as in 42-1; {text[:40]!r} does not"
                if text.isascii()
                else "a position reads <seq>-<epoch>, as in 42-1, in ASCII digits"
            )
        return cls.of_entry_id(text)

    @classmethod
    def of_entry_id(cls, entry_id: str | bytes) -> Position:
        """Read an entry id that the store itself gave (no check of the grammar)."""
        text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
        seq, _, epoch = text.partition("-")
        return cls(int(seq), int(epoch))

    def __str__(self) -> str:
        return f"{self.seq}-{self.epoch}"


#: Before the first event. The log holds it always.
START: Final = Position(0, 0)

#: The same as text: positions travel, and are compared, as text.
BEGINNING: Final = str(START)

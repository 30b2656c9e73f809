"""The latest entries of one log, kept as an unbroken chain, for viewers to read from by exact position. Pure.

Why viewers cannot be misled: a viewer holds nothing but the position of the last entry it sent. Both sources it reads
from, this window and the log, are addressed by that exact position and answer with what follows it *in a chain whose
every link was checked*: a notification is joined to the window only if its `prev` is the window's last position.
So the hand-over from replay to live needs no lock, no buffer and no comparing of numbers: whichever source knows the
position is right, and when the window does not know it the log decides, which may say that the position is no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.events import Entry

Encoder = Callable[[Entry], bytes]


class Notice:
    """An entry, with what an encoder made of it: once, for all viewers that read it the same way."""

    __slots__ = ("_bytes", "_encoder", "entry")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self._encoder: Encoder | None = None
        self._bytes = b""

    def encoded(self, encoder: Encoder) -> bytes:
        """The entry as `encoder` writes it. The last encoder's work is kept: nearly all viewers use the same."""
        if encoder != self._encoder:
            self._encoder, self._bytes = encoder, encoder(self.entry)
        return self._bytes


class Window:
    """A chain of entries behind a known position. Bounded: the oldest entries fall out, readers that far behind
    read from the log."""

    __slots__ = ("_bytes", "_dropped", "_index", "_most", "_most_bytes", "_notices", "last")

    def __init__(self, *, most_entries: int = 128, most_bytes: int = 256 * 1024) -> None:
        self._most = most_entries
        self._most_bytes = most_bytes
        self._bytes = 0  # payload of the notices held
        self._notices: list[Notice] = []
        self._index: dict[str, int] = {}  # position -> its place in the endless list of notices
        self._dropped = 0  # notices that fell out at the front
        self.last: str | None = None  # end of the chain; None: nothing is known

    def start(self, position: str) -> None:
        """Begin a chain behind `position`, if there is none: the log was just read up to there."""
        if self.last is None:
            self._begin(position)

    def push(self, prev: str, entries: Sequence[Entry]) -> bool:
        """Join a notification, drop it if the chain has passed it exactly, or begin anew with it alone. Whether it was
        taken in: then what comes next follows its last entry."""
        if prev != self.last:
            if entries and (entries[-1].position in self._index or entries[-1].position == self.last):
                return False
            self._begin(prev)
        if not self._index:
            self._index[prev] = -1  # what was passed over ends here
        for entry in entries:
            self._index[entry.position] = self._dropped + len(self._notices)
            self._notices.append(Notice(entry))
            self._bytes += len(entry.payload)
        if entries:
            self.last = entries[-1].position
        if len(self._notices) > 2 * self._most or (self._bytes > 2 * self._most_bytes and len(self._notices) > 1):
            self._trim()
        return True

    def pass_over(self, prev: str, entries: Sequence[Entry]) -> bool:
        """`push`, but nothing is kept: for a chain that nobody reads from. Who would, asks the log."""
        if prev != self.last or self._index:
            taken = self.push(prev, entries)
            self._notices, self._index, self._dropped, self._bytes = [], {}, 0, 0
            return taken
        self.last = entries[-1].position
        return True

    def after(self, cursor: str) -> list[Notice] | None:
        """What follows `cursor`; an empty list at the end of the chain; None where only the log can tell."""
        if cursor == self.last:
            return []
        place = self._index.get(cursor)
        return None if place is None else self._notices[place - self._dropped + 1 :]

    def clear(self) -> None:
        """Forget the chain: something may have been missed."""
        self._notices, self._index, self._dropped, self._bytes, self.last = [], {}, 0, 0, None

    def _begin(self, position: str) -> None:
        self._notices, self._index, self._dropped, self._bytes = [], {position: -1}, 0, 0
        self.last = position

    def _trim(self) -> None:
        """Keep the newer part, within both limits (one entry at least); amortised over as many pushes."""
        keep, size = 0, 0
        for notice in reversed(self._notices):
            if keep and (keep == self._most or size + len(notice.entry.payload) > self._most_bytes):
                break
            keep, size = keep + 1, size + len(notice.entry.payload)
        surplus = len(self._notices) - keep
        # The position before the oldest kept entry stays known: what follows it is all here.
        edge = self._notices[surplus - 1].entry.position
        self._dropped += surplus
        self._notices, self._bytes = self._notices[surplus:], size
        self._index = {edge: self._dropped - 1} | {
            notice.entry.position: self._dropped + at for at, notice in enumerate(self._notices)
        }

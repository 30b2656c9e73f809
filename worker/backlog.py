"""The log as its writer knows it: every entry, how many of them are stored, and text that has no position yet. Pure.

Text that has to wait becomes one delta. It gets its position when somebody asks for the entries, to send them or to
look at them; from then on it never changes, for what was sent once must be the same when it is sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.events import DELTA_FIELDS, TEXT_FIELD, Delta, Entry, Event, encode, utf8
from broker.log import MAX_APPEND_BYTES, MAX_APPEND_EVENTS
from broker.position import BEGINNING, Position

#: Events that may wait to be stored; beyond that the provider is not read on.
_ROOM_EVENTS: Final = 1000
_ROOM_BYTES: Final = 1024 * 1024

#: Text that waits is joined to one delta up to this length.
_JOINED_CHARACTERS: Final = 1024

#: What an entry takes in memory besides its payload, about.
_ENTRY_BYTES: Final = 200

#: Makes a named tuple in half the time of a call of its class.
_new: Final = tuple.__new__


class Backlog:
    """See the module. `stored` of its `entries` are in the store, as far as the writer knows."""

    def __init__(self, inherited: Sequence[Entry], epoch: int) -> None:
        self.epoch = epoch
        self.stored = len(inherited)
        self.is_full = False  # the provider may not be read on
        self.pieces = sum(entry.field in DELTA_FIELDS for entry in inherited)  # of text, about as providers gave them
        self._entries = list(inherited)
        self._texts: list[str] = []  # added, and no delta yet
        self._text_size = 0
        self._waiting_bytes = 0

    @property
    def entries(self) -> list[Entry]:
        """The whole log, stored or not."""
        if self._texts:
            self._settle()
        return self._entries

    @property
    def waits(self) -> bool:
        """Whether anything is not stored."""
        return len(self._entries) > self.stored or bool(self._texts)

    @property
    def has_ended(self) -> bool:
        """Whether a terminal event is stored."""
        return self.stored > 0 and self._entries[self.stored - 1].is_terminal

    @property
    def prev(self) -> str:
        """Where the stored part ends."""
        return self._entries[self.stored - 1].position if self.stored else BEGINNING

    @property
    def is_mine(self) -> bool:
        """Whether the stored part ends with an entry of this epoch."""
        return self.prev.endswith(f"-{self.epoch}")

    @property
    def memory_bytes(self) -> int:
        """About what it takes in memory."""
        return sum(_ENTRY_BYTES + len(entry.payload) for entry in self.entries)

    def add(self, event: Event) -> None:
        """Give the event the next position."""
        if self._texts:
            self._settle()
        self.pieces += isinstance(event, Delta)
        self._place(*encode(event))

    def add_text(self, text: str) -> None:
        """Have it become a part of the next delta."""
        self._texts.append(text)
        self._text_size += len(text)
        if self._text_size >= _JOINED_CHARACTERS:
            self._settle()

    def batch(self) -> list[Entry]:
        """What one append may carry of that which waits."""
        waiting = self.entries[self.stored : self.stored + MAX_APPEND_EVENTS]
        if self._waiting_bytes <= MAX_APPEND_BYTES:
            return waiting
        batch: list[Entry] = []
        size = 0
        for entry in waiting:
            size += len(entry.payload)
            if batch and size > MAX_APPEND_BYTES:
                break
            batch.append(entry)
        return batch

    def advance(self, stored: int) -> None:
        """So many are stored now: more than before, or fewer, where the store has forgotten some."""
        self.stored = stored
        waiting = len(self._entries) - stored
        self._waiting_bytes = sum([len(entry.payload) for entry in self._entries[stored:]]) if waiting else 0
        self.is_full = waiting >= _ROOM_EVENTS or self._waiting_bytes >= _ROOM_BYTES

    def replace(self, entries: list[Entry]) -> None:
        """The log is another one: `entries`, all stored."""
        self._entries = entries
        self.advance(len(entries))

    def take_back(self) -> Entry:
        """Take away the last entry, which was refused."""
        return self._entries.pop()

    def knows(self, position: str) -> bool:
        """Whether `position` is in this log: by that very id, not by its seq."""
        if position == BEGINNING:
            return True
        seq = Position.of_entry_id(position).seq
        return seq <= len(self._entries) and self._entries[seq - 1].position == position

    def _settle(self) -> None:
        texts, self._texts, self._text_size = self._texts, [], 0
        self.pieces += len(texts)
        self._place(TEXT_FIELD, utf8("".join(texts)))

    def _place(self, field: bytes, payload: bytes) -> None:
        entries = self._entries
        entries.append(_new(Entry, (f"{len(entries) + 1}-{self.epoch}", field, payload)))
        self._waiting_bytes += len(payload)
        if len(entries) - self.stored >= _ROOM_EVENTS or self._waiting_bytes >= _ROOM_BYTES:
            self.is_full = True

"""What the scripts publish when a log changes, read back. Pure.

An append of one delta, which most are, is published as text: `prev id field payload`, the payload as it is. Everything
else is msgpack: `[prev, id, field, payload, id, field, payload …]`, or `[deleted]`.
"""

from __future__ import annotations

from typing import Final

import msgpack

from broker.events import Entry

#: Text begins with the digits of a position, an array of msgpack with a byte that no text begins with.
_FIRST_OF_ARRAY: Final = 0x80

#: Makes a named tuple in half the time of a call of its class.
_new: Final = tuple.__new__


def decode(message: bytes) -> tuple[str, list[Entry]] | None:
    """The position that the entries follow, and the entries; None for a generation that was deleted."""
    if message[0] < _FIRST_OF_ARRAY:
        prev, position, field, payload = message.split(b" ", 3)
        return prev.decode(), [_new(Entry, (position.decode(), field, payload))]
    prev, *rest = msgpack.unpackb(message, raw=True)
    if not rest:
        return None
    return prev.decode(), [Entry(rest[at].decode(), rest[at + 1], rest[at + 2]) for at in range(0, len(rest), 3)]

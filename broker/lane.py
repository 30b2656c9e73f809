"""A lane: the ordinary appends of one lease, by plain calls, without a task and without a future.

Nearly all that is ever appended is the next delta of a running log, by who holds its lease. That is one short script
(`extend.lua`) on a connection that is open, and its answer is a number; whatever else happens (another answer, an
error, a broken connection, a slot that has moved) means only that `broker.log.Log.append` is to be asked, which may be
done with an append that was stored already. So a lane decides nothing, and it may be dropped at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.events import Entry
from broker.scripts import EXTEND
from broker.wire import Answered, Wire

#: What `extend.lua` answers when it has stored the delta.
STORED: Final = 1


class Lane:
    """See the module. At most one append is under way, of this lease on any road."""

    __slots__ = ("_answered", "_close", "_open", "_wire")

    def __init__(
        self, wire: Wire, keys: Sequence[str], channel: str, *, epoch: int, owner: str, answered: Answered
    ) -> None:
        self._wire = wire
        self._answered = answered
        # The arguments of `extend.lua` that are always the same, as Redis takes them, in the order it has them.
        arguments: tuple[str | bytes, ...] = (b"EVALSHA", EXTEND.sha, b"2", *keys, f"{epoch} {owner}", channel)
        self._open = b"*12\r\n" + b"".join([_bulk(argument) for argument in arguments])
        self._close = _bulk(f"-{epoch}")

    def extend(self, last: int, entry: Entry) -> bool:
        """Send `entry`, a delta behind the entry of this lease whose seq is `last`. False where that cannot be done
        now; else `answered` is called: with `STORED`, or with anything else where `Log.append` is to be asked."""
        if self._wire.closed:
            return False
        before, seq = b"%d" % last, b"%d" % (last + 1)
        payload = entry.payload
        self._wire.tell(
            b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (
                *(self._open, len(before), before, len(seq), seq, self._close),
                *(len(entry.field), entry.field, len(payload), payload),
            ),
            self._answered,
        )
        return True


def _bulk(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"$%d\r\n%b\r\n" % (len(data), data)

"""The numbers of a response's events, and the events as blocks of SSE. Pure.

`sequence_number` counts events: 0, 1, 2 … It goes on counting where a `reset` takes an answer back, and a replay begins
behind the last one: `created` then has the number that comes next. So a number from before it is told apart. Where the
store may have forgotten claims, epochs jump (`broker.store.jump`), and the numbers jump with them: a number that was
given out before such a loss never names another event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from api.dialects.encoder import CannotTakeBack
from broker.events import Json
from broker.position import BEGINNING

#: Epochs that rise by so much at once tell that the store may have forgotten claims. In ordinary life they rise by one.
LEAST_JUMP: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a replay begins: behind `position`, the last `reset`'s; its first event has this `number`."""

    position: str = BEGINNING
    number: int = 0
    epoch: int = 0

    def answers(self, after: int | None) -> bool:
        """Whether a reader that has seen `after` has nothing to take back."""
        return after is None or not self.number or after >= self.number


#: Of a log without a `reset`.
START: Final = Origin()


class Blocks:
    """Writes events, each under the next number. Those up to `after` are counted, not written; if `mute`, none are."""

    def __init__(self, *, after: int | None, mute: bool) -> None:
        self.number = 0  # of the next event
        self._after = after
        self._mute = mute
        self._out: list[bytes] = []
        self._epoch, self._epoch_text = 0, "0"
        self._frame = b""  # of a delta of the open part, up to its text

    def start(self, origin: Origin) -> None:
        """Go on from there."""
        self.number = origin.number
        self._epoch, self._epoch_text = origin.epoch, str(origin.epoch)

    def stand_at(self, position: str) -> int:
        """The next event is made from the entry at `position`; its epoch. Raises `CannotTakeBack` where events that the
        reader has seen are lost."""
        epoch = position[position.index("-") + 1 :]
        if epoch != self._epoch_text:
            jump = int(epoch) - self._epoch
            if jump >= LEAST_JUMP:
                if self._after is not None and self.number <= self._after < self.number + jump:
                    raise CannotTakeBack
                self.number += jump
            self._epoch, self._epoch_text = int(epoch), epoch
        return self._epoch

    def emit(self, kind: str, data: Json) -> None:
        """One event."""
        if self._next():
            body = orjson.dumps({"type": kind, "sequence_number": self.number - 1} | data)
            self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), body))

    def open_delta(self, kind: str, data: Json) -> None:
        """What all events by `delta` share, from now on."""
        self._frame = b"event: %b\ndata: %b," % (kind.encode(), orjson.dumps({"type": kind} | data)[:-1])

    def delta(self, text: str) -> None:
        """A piece of text: nearly all events are one."""
        if self._next():
            frame = self._frame, orjson.dumps(text), self.number - 1
            self._out.append(b'%b"delta":%b,"sequence_number":%d}\n\n' % frame)

    def taken(self) -> bytes:
        """What was written since this was last asked."""
        out, self._out = self._out, []
        return b"".join(out)

    def _next(self) -> bool:
        """Count one event; whether it is written."""
        number = self.number
        self.number += 1
        return not self._mute and (self._after is None or number > self._after)

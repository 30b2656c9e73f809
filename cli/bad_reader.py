"""The demo's reader: a client of the stream that treats its own connection as badly as a train does.

It reads the raw bytes of the socket, throws them away from a point on that was not a good one (inside a header, a
frame, a character), and comes back with the last id it has. What it does with events is the least a client must do. One
thing it does not do: wait for `retry:`, so that the show is short.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.position import START, Position
from cli.eventsource import TERMINAL, EventReader, Frame
from cli.wire import Place, Wire

#: How long to wait for bytes before the caller is asked whether to go on.
_RECEIVE_SECONDS: Final = 0.5
_RECEIVE_BYTES: Final = 2048

#: How many bytes to go on, at most, for the place a cut should have.
_SEARCH_BYTES: Final = 600
#: How many bytes to let pass, at most, before looking for that place.
_SKIP_BYTES: Final = 60
#: How many bytes of its answer's header a reader gets to see that is cut there.
_HEADER_BYTES: Final = 150

#: The part of the text that cuts fall into.
_CUTS_UNTIL: Final = 0.85

#: close() then sends RST instead of FIN.
_LINGER_ZERO: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Once there are `after` characters, and `skip` bytes more, at the next byte that is in `place`. The line that is
    on its way counts by its bytes: a reader that comes late gets much of the text in one."""

    after: float
    skip: int
    place: Place
    reset: bool  # the connection, instead of closing it


def plan(characters: int, cuts: int, rng: random.Random) -> list[Cut]:
    """Cuts spread at random over a text, in all kinds of places. One in a header belongs to the connection after it."""
    kinds = [Place.CHARACTER, Place.DATA, Place.HEADER, Place.ID, Place.CHUNK, Place.FRAMES, Place.EVENT]
    places = [kinds[number % len(kinds)] for number in range(cuts)]
    rng.shuffle(places)
    slot = characters * _CUTS_UNTIL / max(cuts, 1)
    return [
        Cut(
            after=slot * (number + rng.random()),
            skip=rng.randrange(_HEADER_BYTES if place is Place.HEADER else _SKIP_BYTES),
            place=place,
            reset=rng.random() < 0.5,
        )
        for number, place in enumerate(places)
    ]


class Reading:
    """The text and the cursor as a client keeps them, and counts that only a demo needs."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor: str | None = None
        self.end: Frame | None = None
        self.verdict = ""  # of the last `open`
        self.deltas = 0
        self.frames = 0  # that carried text
        self.duplicates = 0
        self.resets = 0
        self._seq = START.seq

    def take(self, frame: Frame) -> None:
        """The next event, on whichever connection it came."""
        data = frame.data
        if frame.event == "open":
            self.verdict = str(data.get("verdict"))
        if frame.id is not None:
            self._count(frame.event, Position.parse(frame.id).seq)
            self.cursor = frame.id
        match frame.event:
            case "delta" if "kind" not in data:
                self.text += data["text"]
            case "reset":
                self.text = ""
                self.resets += 1
            case "snapshot":
                self.text = data["text"]
            case event if event in TERMINAL:
                self.end = frame

    def _count(self, event: str, seq: int) -> None:
        if event == "delta":
            self.frames += 1
            self.deltas += max(0, seq - self._seq)  # a frame may carry several, joined, under the last one's id
        if event != "snapshot" and seq <= self._seq:
            self.duplicates += 1
        self._seq = seq


class BadReader:
    """Reads one generation, a connection a call."""

    def __init__(self, reading: Reading, path: str) -> None:
        self._reading = reading
        self._path = path

    def read(self, port: int, cut: Cut | None, go_on: Callable[[], None]) -> Place | None:
        """Read until the end, or the cut: then where it was. `go_on` is called often, and may raise.

        Raises `ValueError` for an answer that is no stream, `OSError` where there is no connection.
        """
        wire, events, passed = Wire(), EventReader(), 0
        with socket.create_connection(("127.0.0.1", port), timeout=_RECEIVE_SECONDS) as connection:
            connection.sendall(self._request(port))
            while not wire.ended:
                go_on()
                try:
                    received = connection.recv(_RECEIVE_BYTES)
                except TimeoutError:
                    continue
                if not received:
                    return None
                for number in received:
                    for frame in events.feed(wire.feed(bytes((number,)))):
                        self._reading.take(frame)
                    if wire.status not in (0, 200):
                        raise ValueError(f"the API answers {wire.status}")
                    if cut is None or self._reading.end is not None:
                        continue
                    if cut.place is Place.HEADER or len(self._reading.text) + wire.line_bytes >= cut.after:
                        passed += 1
                    if passed > cut.skip and (wire.place is cut.place or passed > _SEARCH_BYTES):
                        if cut.reset:
                            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
                        return wire.place
        return None

    def _request(self, port: int) -> bytes:
        lines = [f"GET {self._path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Accept: text/event-stream"]
        if self._reading.cursor is not None:
            lines.append(f"Last-Event-ID: {self._reading.cursor}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

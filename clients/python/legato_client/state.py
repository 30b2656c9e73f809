"""What a reader of one generation knows, and how each thing that happens changes it. Pure: every transition returns a
new state; clocks and dice are arguments.

    asking ── a body ──▶ reading ── terminal event ──▶ over
      ▲ │                   │
      │ └── 204 ───────────────────────────────────▶ over
      │                     │
      └──── a cut ◀─────────┘     (any other end, silence, a fault, no connection)

A reader of a thread is over only with the 204: behind a terminal event it asks for the next generation. Its positions
say whose they are, `<generation>/<seq>-<epoch>`.

The cursor moves with whole events that have a position, and with nothing else. An event that came before is dropped: a
server sends none twice, but what stands in between may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from legato_client.events import (
    BEGINNING,
    Cancelled,
    Completed,
    Event,
    Failed,
    Open,
    ServerFault,
    Snapshot,
    Terminal,
    decode,
)
from legato_client.frames import Frame
from legato_client.patience import GiveUp, Patience, Wait, next_try

#: How many of the last positions are kept to know an event again.
REMEMBERED: Final = 64
#: A connection that held so long was good, even if nothing came: the model may think, a tool may run.
STEADY_SECONDS: Final = 10.0

SSE: Final = "text/event-stream"


class Head(Enum):
    """What the head of an answer means to a reader."""

    BODY = "body"  # events follow
    NOTHING_MORE = "nothing more"  # the cursor is the end
    PASSING = "passing"  # a fault that may be gone at the next try
    REFUSED = "refused"  # the same question gets the same answer
    FOREIGN = "foreign"  # whoever answered is not Legato


def judge(status: int, content_type: str) -> Head:
    """The head of an answer to a stream's request."""
    if status == 200:
        return Head.BODY if content_type.partition(";")[0].strip().lower() == SSE else Head.FOREIGN
    if status == 204:
        return Head.NOTHING_MORE
    if may_pass(status):
        return Head.PASSING
    return Head.REFUSED if 400 <= status < 500 else Head.FOREIGN


def may_pass(status: int) -> bool:
    """Whether the same request may be answered otherwise later."""
    return status >= 500 or status in (408, 425, 429)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`cursor` is the last position received, or what the user came with. Times are of a monotonic clock, in
    seconds."""

    cursor: str | None = None
    snapshot: bool = False  # ask for the folded state, while there is no cursor
    thread: bool = False  # one generation after the other
    recent: tuple[str, ...] = ()  # the last positions received, since the last snapshot
    retry_seconds: float | None = None
    failures: int = 0  # connections in a row that brought nothing of the log
    lost_at: float | None = None  # since then there is no good connection
    opened_at: float | None = None  # when this connection became good
    end: Terminal | None = None
    over: bool = False

    def query(self) -> dict[str, str]:
        """Of the next request."""
        return {"from": "snapshot"} if self.snapshot and self.cursor is None else {}

    def headers(self) -> dict[str, str]:
        """Of the next request. Nothing may keep the answer, or hold it back to pack it."""
        headers = {"Accept": SSE, "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        return headers if self.cursor is None else {**headers, "Last-Event-ID": self.cursor}


@dataclass(frozen=True, slots=True)
class Taken:
    """What a frame came to: what the user is given, if anything, and why the connection is no good, if it is not.
    `done`: there is nothing more to read from it."""

    state: Reading
    event: Event | None = None
    fault: str | None = None
    done: bool = False


def asked(state: Reading, *, now: float) -> Reading:
    """A request goes out."""
    return replace(state, opened_at=None, lost_at=now if state.lost_at is None else state.lost_at)


def nothing_more(state: Reading) -> Reading:
    """The server says that the cursor is the end."""
    return replace(state, over=True)


def received(state: Reading, frame: Frame, *, now: float) -> Taken:
    """A whole frame. Raises `Garbled`; the cursor is then where it was."""
    if frame.retry_ms is not None:
        state = replace(state, retry_seconds=frame.retry_ms / 1000)
    if state.over or not frame.data or (frame.id is not None and frame.id in state.recent and not _replaces(frame)):
        return Taken(state)
    event = decode(frame)
    match event:
        case Open(verdict=None):
            return Taken(state)
        case Open():
            return _opened(state, event, now)
        case ServerFault(code=code, message=message):
            return Taken(state, fault=f"the server says {code}: {message}")
        case Snapshot(position=str(position)):
            return Taken(_good(replace(state, cursor=position, recent=()), now), event)
        case Completed() | Failed() | Cancelled():
            ended = replace(_moved(state, frame.id, now), end=event, over=not state.thread)
            return Taken(ended, event, done=True)
        case _:
            return Taken(_moved(state, frame.id, now), event)


def cut(
    state: Reading, patience: Patience, *, now: float, chance: float, retry_after_seconds: float | None = None
) -> tuple[Reading, Wait | GiveUp]:
    """The connection is over, and the generation is not. `chance` is a random number of [0, 1)."""
    steady = state.opened_at is not None and now - state.opened_at >= STEADY_SECONDS
    lost_at = now if state.lost_at is None else state.lost_at
    failures = 0 if steady else state.failures
    step = next_try(
        patience,
        failures=failures,
        lost_seconds=now - lost_at,
        retry_seconds=state.retry_seconds,
        retry_after_seconds=retry_after_seconds,
        chance=chance,
    )
    return replace(state, failures=failures + 1, lost_at=lost_at, opened_at=None), step


def _replaces(frame: Frame) -> bool:
    return frame.event == "snapshot"


def _opened(state: Reading, opened: Open, now: float) -> Taken:
    ended, cursor = state.end is not None, state.cursor
    state = replace(state, lost_at=None, opened_at=now, end=None)
    if opened.verdict != "start" or cursor is None or cursor.endswith(BEGINNING):
        return Taken(state)
    place = BEGINNING
    if state.thread:
        if cursor.partition("/")[0] != opened.generation:
            return Taken(state)  # the next one
        if ended:  # and again from its start: the header was dropped, and would be for ever
            return Taken(nothing_more(state), done=True)
        place = f"{opened.generation}/{BEGINNING}"
    # Something on the way dropped the header. All comes again, maybe merged otherwise, so what there was must go.
    return Taken(replace(state, cursor=place, recent=()), Snapshot(position=place, text=""))


def _moved(state: Reading, position: str | None, now: float) -> Reading:
    if position is None:
        return _good(state, now)
    recent = (*state.recent[1 - REMEMBERED :], position)
    return _good(replace(state, cursor=position, recent=recent), now)


def _good(state: Reading, now: float) -> Reading:
    opened_at = now if state.opened_at is None else state.opened_at
    return replace(state, failures=0, lost_at=None, opened_at=opened_at)

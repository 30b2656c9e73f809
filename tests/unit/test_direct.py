"""Viewers that are written to directly: they take a chain of entries and nothing else, and leave at anything odd."""

from __future__ import annotations

from broker.events import Entry
from broker.tail import Topic
from broker.window import Encoder


def positions(entry: Entry) -> bytes:
    return entry.position.encode() + b" "


class Taker:
    """A sink that notes what it is offered, and takes so much of it."""

    def __init__(self, most: int = 1000) -> None:
        self.offered: list[tuple[str, list[str]]] = []
        self.disturbances = 0
        self.written: list[bytes] = []
        self.encoder: Encoder = positions
        self._most = most

    def offer(self, prev: str, entries: list[Entry], encoded: bytes) -> bool:
        if len(self.offered) == self._most:
            return False
        self.offered.append((prev, [entry.position for entry in entries]))
        self.written.append(encoded)
        return True

    def disturbed(self) -> None:
        self.disturbances += 1


def news(prev: str, *positions: str) -> tuple[str, list[Entry]]:
    return prev, [Entry(position, b"d", b"text") for position in positions]


def topic(*sinks: Taker) -> Topic:
    made = Topic("gen_x")
    made.viewers = len(sinks)
    made.window.start("3-1")
    for sink in sinks:
        made.attach(sink)
    return made


def test_what_comes_is_offered_in_the_order_of_the_chain() -> None:
    taker = Taker()
    followed = topic(taker)
    followed.notify(*news("3-1", "4-1"))
    followed.notify(*news("4-1", "5-1", "6-1"))
    assert taker.offered == [("3-1", ["4-1"]), ("4-1", ["5-1", "6-1"])]
    assert taker.disturbances == 0


def test_a_notification_that_comes_twice_is_offered_once() -> None:
    taker = Taker()
    followed = topic(taker)
    for _ in range(2):
        followed.notify(*news("3-1", "4-1"))
    assert taker.offered == [("3-1", ["4-1"])]


def test_behind_a_gap_it_is_told_what_it_follows() -> None:
    """The chain begins anew: who is elsewhere sees by `prev` that it is, and looks for itself."""
    taker = Taker()
    followed = topic(taker)
    followed.notify(*news("6-1", "7-1"))
    assert taker.offered == [("6-1", ["7-1"])]


def test_who_does_not_take_is_let_go_and_told_and_the_others_are_not() -> None:
    full, taker = Taker(most=1), Taker()
    followed = topic(full, taker)
    for at in range(3, 6):
        followed.notify(*news(f"{at}-1", f"{at + 1}-1"))
    assert len(full.offered) == 1
    assert full.disturbances == 1
    assert len(taker.offered) == 3
    assert taker.disturbances == 0


def test_a_disturbance_lets_everybody_go_once() -> None:
    takers = [Taker(), Taker()]
    followed = topic(*takers)
    followed.disturb()
    followed.disturb()
    followed.notify(*news("3-1", "4-1"))
    assert [taker.disturbances for taker in takers] == [1, 1]
    assert [taker.offered for taker in takers] == [[], []]


def test_who_is_detached_is_offered_nothing() -> None:
    taker = Taker()
    followed = topic(taker)
    followed.detach(taker)
    followed.detach(taker)
    followed.notify(*news("3-1", "4-1"))
    assert (taker.offered, taker.disturbances) == ([], 0)


def test_what_everybody_was_written_is_not_kept() -> None:
    """A window is for who reads from it. Who comes now, or comes late, asks the log; what comes next fits on."""
    taker = Taker()
    followed = topic(taker)
    followed.notify(*news("3-1", "4-1"))
    assert followed.window.after("3-1") is None
    assert followed.window.after("4-1") == []
    followed.viewers += 1  # somebody reads up
    followed.notify(*news("4-1", "5-1"))
    assert [notice.entry.position for notice in followed.window.after("4-1") or []] == ["5-1"]
    assert [places for _, places in taker.offered] == [["4-1"], ["5-1"]]


def test_each_gets_it_as_its_encoder_writes_it_and_each_encoder_writes_it_once() -> None:
    calls = []

    def loud(entry: Entry) -> bytes:
        calls.append(entry.position)
        return entry.payload.upper()

    quiet, first, second = Taker(), Taker(), Taker()
    first.encoder = second.encoder = loud
    followed = topic(quiet, first, second)
    followed.notify(*news("3-1", "4-1", "5-1"))
    assert (quiet.written, first.written, second.written) == ([b"4-1 5-1 "], [b"TEXTTEXT"], [b"TEXTTEXT"])
    assert calls == ["4-1", "5-1"]


def test_much_at_once_is_not_written_entry_by_entry() -> None:
    """Who looks for itself gets it joined."""
    taker = Taker()
    followed = topic(taker)
    followed.notify(*news("3-1", *(f"{seq}-1" for seq in range(4, 30))))
    assert (taker.offered, taker.disturbances) == ([], 1)

"""How long a busy loop leaves its subscription unread."""

from __future__ import annotations

from broker.pace import Pace


class Day:
    """A loop whose thread is busy for a share of each second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spent = 0.0
        self.pace = Pace(clock=lambda: self.now, spent=lambda: self.spent)

    def passes(self, seconds: float, *, busy: float, messages: int = 10) -> float:
        """The pause that is asked for at its end, after a read of so many messages each hundredth of a second."""
        for _ in range(round(seconds * 100)):
            self.now += 0.01
            self.spent += 0.01 * busy
            pause = self.pace.pause(messages)
        return pause


def test_a_loop_with_little_to_do_reads_at_once() -> None:
    assert Day().passes(10, busy=0.2) == 0


def test_a_busy_one_pauses_ever_longer_and_never_longer_than_ten_milliseconds() -> None:
    day = Day()
    pauses = [day.passes(0.1, busy=0.6) for _ in range(10)]
    assert pauses == sorted(pauses)
    assert 0 < pauses[1] < pauses[-1] == 0.01


def test_a_pause_does_not_end_by_making_the_same_load_cheaper() -> None:
    day = Day()
    day.passes(1, busy=0.4)
    assert day.passes(10, busy=0.2) == 0.01


def test_it_reads_at_once_again_when_the_load_has_gone() -> None:
    day = Day()
    day.passes(1, busy=0.9)
    assert day.passes(1, busy=0.02) == 0


def test_a_loop_that_is_busy_with_few_messages_does_not_let_them_wait() -> None:
    """One that a thousand read, say: to take in two of it at once would cost its readers time, and save nothing."""
    assert Day().passes(10, busy=0.9, messages=1) == 0


def test_a_pause_ends_when_messages_come_one_by_one() -> None:
    day = Day()
    day.passes(1, busy=0.9)
    assert day.passes(1, busy=0.9, messages=1) == 0

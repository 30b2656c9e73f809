"""What a reader knows, and how it changes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from legato_client.answer import Fold
from legato_client.errors import Garbled
from legato_client.events import Completed, Delta, Event, Snapshot
from legato_client.frames import Frame
from legato_client.patience import GiveUp, Patience, Wait, next_try
from legato_client.state import STEADY_SECONDS, Head, Reading, Taken, asked, cut, judge, nothing_more, received


def frame(event: str, position: str | None = None, retry_ms: int | None = None, **data: Any) -> Frame:
    return Frame(event, position, json.dumps(data).encode(), retry_ms)


def after(state: Reading, *frames: Frame, now: float = 0.0) -> tuple[Reading, list[Event]]:
    events = []
    for each in frames:
        taken = received(state, each, now=now)
        state = taken.state
        if taken.event is not None:
            events.append(taken.event)
    return state, events


OPEN = frame("open", verdict="start")
TEXT = [frame("delta", f"{seq}-1", text=f"t{seq} ") for seq in range(2, 9)]
END = frame("completed", "9-1", finish_reason="stop")


def test_the_cursor_is_the_last_position_and_goes_out_with_the_next_request() -> None:
    state, _ = after(Reading(), OPEN, *TEXT[:2], frame("error", code="x", message="y"))
    assert state.cursor == "3-1"
    assert state.headers()["Last-Event-ID"] == "3-1"
    assert state.query() == {}


def test_without_a_cursor_none_is_sent_and_the_snapshot_may_be_asked_for() -> None:
    assert "Last-Event-ID" not in Reading(snapshot=True).headers()
    assert Reading(snapshot=True).query() == {"from": "snapshot"}
    assert Reading(snapshot=True, cursor="1-1").query() == {}


def test_an_event_that_came_before_is_dropped() -> None:
    state, events = after(Reading(), OPEN, *TEXT, frame("open", verdict="resumed"), *TEXT[-3:], END)
    assert [event.position for event in events] == [each.id for each in (*TEXT, END)]
    assert state.over


def test_an_unknown_event_moves_the_cursor_and_is_not_given() -> None:
    state, events = after(Reading(), OPEN, Frame("novelty", "2-1", b"no JSON"))
    assert (state.cursor, events) == ("2-1", [])


def test_a_snapshot_moves_the_cursor_back_and_makes_old_positions_new() -> None:
    state, events = after(Reading(), OPEN, *TEXT, frame("snapshot", "3-1", text="new"), frame("delta", "4-1", text="!"))
    assert state.cursor == "4-1"
    assert isinstance(events[-2], Snapshot)
    assert events[-1] == Delta(position="4-1", text="!")


def test_a_server_that_did_not_get_the_cursor_is_taken_for_the_whole() -> None:
    """A proxy that drops the header must not double the text: what is replayed may be merged otherwise."""
    state, events = after(Reading(cursor="5-1"), OPEN)
    assert events == [Snapshot(position="0-0", text="")]
    assert state.cursor == "0-0"
    assert after(Reading(cursor="0-0"), OPEN)[1] == []


THREAD = Reading(thread=True)


def of(generation: str, event: str, place: str | None, **data: Any) -> Frame:
    return frame(event, f"{generation}/{place}" if place else None, **data)


def test_a_thread_goes_on_behind_a_terminal_event_and_ends_with_204() -> None:
    opened = frame("open", verdict="start", generation="a")
    state, _ = after(THREAD, opened, of("a", "delta", "2-1", text="x"))
    taken = received(state, of("a", "completed", "3-1", finish_reason="stop"), now=0.0)
    assert taken.done
    assert not taken.state.over
    assert taken.state.headers()["Last-Event-ID"] == "a/3-1"
    state, events = after(
        taken.state, frame("open", verdict="start", generation="b"), of("b", "delta", "2-1", text="y")
    )
    assert [event.position for event in events] == ["b/2-1"]
    assert state.cursor == "b/2-1"
    assert nothing_more(state).over


def test_a_thread_whose_cursor_is_lost_neither_doubles_text_nor_begins_for_ever() -> None:
    opened = frame("open", verdict="start", generation="a")
    state, _ = after(THREAD, opened, of("a", "delta", "2-1", text="x"))
    again, events = after(state, opened)
    assert events == [Snapshot(position="a/0-0", text="")]
    assert again.cursor == "a/0-0"
    state, _ = after(again, of("a", "completed", "3-1", finish_reason="stop"))
    taken = received(state, opened, now=0.0)
    assert taken.done
    assert taken.state.over


def test_a_generation_of_a_thread_that_is_deleted_is_left_for_the_next() -> None:
    state, _ = after(THREAD, frame("open", verdict="start", generation="a"), of("a", "delta", "2-1", text="x"))
    taken = received(state, of("a", "cancelled", None, reason="deleted"), now=0.0)
    assert taken.done
    assert taken.state.cursor == "a/2-1"
    _, events = after(taken.state, frame("open", verdict="start", generation="b"), of("b", "delta", "2-1", text="y"))
    assert [event.position for event in events] == ["b/2-1"]


def test_an_open_without_verdict_and_an_error_make_no_connection_good() -> None:
    state = asked(Reading(), now=5.0)
    taken = received(state, frame("open", retry_ms=4000, verdict=None), now=6.0)
    assert (taken.state.lost_at, taken.state.retry_seconds) == (5.0, 4.0)
    taken = received(taken.state, frame("error", code="store_unavailable", message="away", retryable=True), now=6.0)
    assert taken.fault == "the server says store_unavailable: away"
    assert taken.state.lost_at == 5.0


@pytest.mark.parametrize(
    "bad",
    [
        Frame("delta", "2-1", b"{"),
        Frame("delta", "2-1", b"[]"),
        frame("delta", "2-1"),
        frame("delta", "2-1", text=5),
        frame("snapshot", None, text="x"),
        frame("snapshot", "2-1", text="x", tool_calls=[1]),
        Frame("delta", "2-1", b"[" * 100_000),
    ],
)
def test_a_known_event_that_cannot_be_read_leaves_the_cursor_where_it_was(bad: Frame) -> None:
    with pytest.raises(Garbled):
        received(Reading(cursor="1-1"), bad, now=0.0)


def test_nothing_is_taken_behind_the_end() -> None:
    state, events = after(Reading(), OPEN, END, frame("delta", "10-1", text="more"))
    assert len(events) == 1
    assert isinstance(state.end, Completed)
    assert nothing_more(Reading(cursor="9-1")).over


def test_an_end_without_a_position_is_an_end() -> None:
    """Of a generation that is deleted under its reader."""
    state, _ = after(Reading(cursor="4-1"), frame("cancelled", None, reason="deleted"))
    assert state.over
    assert state.cursor == "4-1"


@pytest.mark.parametrize(
    ("status", "kind", "head"),
    [
        (200, "text/event-stream; charset=utf-8", Head.BODY),
        (200, "Text/Event-Stream", Head.BODY),
        (200, "text/html", Head.FOREIGN),
        (204, "", Head.NOTHING_MORE),
        (206, "text/event-stream", Head.FOREIGN),
        (302, "", Head.FOREIGN),
        (400, "", Head.REFUSED),
        (404, "", Head.REFUSED),
        (408, "", Head.PASSING),
        (410, "", Head.REFUSED),
        (429, "", Head.PASSING),
        (500, "", Head.PASSING),
        (502, "text/html", Head.PASSING),
        (503, "", Head.PASSING),
    ],
)
def test_every_head_means_one_thing(status: int, kind: str, head: Head) -> None:
    assert judge(status, kind) is head


def test_waits_grow_while_connections_bring_nothing_and_shrink_when_one_does() -> None:
    patience = Patience(first_delay_seconds=1, max_delay_seconds=8, give_up_seconds=None)
    state, waits = Reading(), []
    for _ in range(6):
        state, step = cut(asked(state, now=0.0), patience, now=0.0, chance=0.999)
        assert isinstance(step, Wait)
        waits.append(round(step.seconds))
    assert waits == [1, 2, 4, 8, 8, 8]
    state, _ = after(state, OPEN, TEXT[0])
    _, step = cut(state, patience, now=1.0, chance=0.5)
    assert step == Wait(0.5)


def test_connections_that_only_open_and_are_cut_do_not_make_a_hot_loop() -> None:
    patience = Patience(first_delay_seconds=1, max_delay_seconds=8, give_up_seconds=5)
    state = Reading()
    for _ in range(5):
        state, _ = after(asked(state, now=0.0), frame("open", retry_ms=0, verdict="resumed"))
        state, step = cut(state, patience, now=0.0, chance=0.5)
    assert step == Wait(4.0)


def test_a_connection_that_held_was_good_though_it_brought_nothing() -> None:
    """A model that thinks behind a proxy that cuts idle connections must not be read ever more seldom."""
    patience = Patience(first_delay_seconds=1, give_up_seconds=5)
    state = Reading()
    for tries in range(20):
        now = tries * (STEADY_SECONDS + 1)
        state, _ = after(asked(state, now=now), frame("open", retry_ms=100, verdict="resumed"), now=now)
        state, step = cut(state, patience, now=now + STEADY_SECONDS, chance=0.5)
        assert step == Wait(0.1)


def test_it_gives_up_when_no_connection_was_good_for_long_enough() -> None:
    patience = Patience(give_up_seconds=10)
    state = asked(Reading(), now=100.0)
    state, step = cut(state, patience, now=109.0, chance=0.0)
    assert isinstance(step, Wait)
    state, step = cut(asked(state, now=109.0), patience, now=110.0, chance=0.0)
    assert step == GiveUp()


def test_what_the_server_asks_for_is_a_least_time() -> None:
    def pause(failures: int, retry: float | None, retry_after: float | None, chance: float = 0.5) -> Wait | GiveUp:
        return next_try(
            Patience(first_delay_seconds=1, max_delay_seconds=4, give_up_seconds=60),
            failures=failures,
            lost_seconds=30,
            retry_seconds=retry,
            retry_after_seconds=retry_after,
            chance=chance,
        )

    assert pause(0, 2.0, None) == Wait(2.0)
    assert pause(1, 2.0, None) == Wait(3.0)
    assert pause(1, 2.0, 7.0) == Wait(8.0)
    assert pause(9, None, None) == Wait(2.0)
    assert pause(0, 1e9, None) == Wait(30.0)  # no more than is left
    assert pause(0, None, 31.0) == GiveUp(31.0)  # to knock earlier would be no use


@pytest.mark.parametrize("bad", [-1, float("nan")])
def test_patience_cannot_be_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="give_up_seconds"):
        Patience(give_up_seconds=bad)


@given(seed=st.integers(0, 2**32))
def test_the_text_is_whole_whatever_is_cut_merged_repeated_or_rewound(seed: int) -> None:
    """A server that serves by the cursor, as the real one does, over connections that break anywhere."""
    dice = random.Random(seed)
    log = [frame("started", "1-1", attempt=1)]
    for seq in range(2, 40):
        log.append(frame("reset", f"{seq}-1", attempt=2, reason="x") if dice.random() < 0.05 else _text(seq))
    log.append(frame("completed", "40-1", finish_reason="stop"))
    state, fold = Reading(), Fold()
    sent: list[Frame] = []
    for _ in range(200):
        body = _serve(log, state.cursor, sent, dice)
        for each in body:
            taken: Taken = received(state, each, now=0.0)
            state = taken.state
            if taken.event is not None:
                fold.add(taken.event)
        sent = body
        if state.over:
            break
    assert fold.answer().text == _folded(log)


def _text(seq: int) -> Frame:
    return frame("delta", f"{seq}-1", text=f"{seq} ")


def _folded(frames: list[Frame]) -> str:
    text = ""
    for each in frames:
        if each.event == "delta":
            text += json.loads(each.data)["text"]
        elif each.event == "reset":
            text = ""
    return text


def _serve(log: list[Frame], cursor: str | None, sent: list[Frame], dice: random.Random) -> list[Frame]:
    ids = [each.id for each in log]
    place = ids.index(cursor) + 1 if cursor in ids else 0
    body: list[Frame]
    match dice.random():
        case chance if chance < 0.1 and cursor is not None:
            at = dice.randrange(len(log) - 1)
            opened = frame("open", verdict="rewound")
            body = [opened, frame("snapshot", ids[at], text=_folded(log[: at + 1])), *log[at + 1 :]]
        case chance if chance < 0.2:
            body = [frame("open", verdict="start"), *_merged(log, dice)]
        case chance if chance < 0.4:
            again = sent[len(sent) - dice.randrange(1 + len(sent)) :]  # what a proxy has kept of the last body
            body = [*again, frame("open", verdict="resumed"), *log[place:]]
        case _:
            body = [frame("open", verdict="resumed"), *_merged(log[place:], dice)]
    return body[: dice.randrange(1, 12)]


def _merged(frames: list[Frame], dice: random.Random) -> list[Frame]:
    joined: list[Frame] = []
    for each in frames:
        if joined and joined[-1].event == each.event == "delta" and dice.random() < 0.5:
            text = json.loads(joined[-1].data)["text"] + json.loads(each.data)["text"]
            joined[-1] = frame("delta", each.id, text=text)
        else:
            joined.append(each)
    return joined

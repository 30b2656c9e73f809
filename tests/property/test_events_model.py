"""The pure core: events survive the log, positions are what their grammar says, a window never skips or invents."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Final

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker import events
from broker.errors import InvalidPosition
from broker.events import Entry, Event
from broker.position import BEGINNING, Position
from broker.window import Window
from tests.property.schedules import schedules

#: Text of all scripts and planes, controls and unassigned code points among it; no lone surrogates.
text = st.text(st.characters(exclude_categories=["Cs"]))
#: Text as a careless provider may send it: lone surrogates are not text, but arrive as such.
torn_text = st.text(st.characters())
counts = st.integers(0, 2**53)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=10,
)
usages = st.builds(
    events.Usage,
    input_tokens=counts,
    output_tokens=counts,
    cached_tokens=st.none() | counts,
    reasoning_tokens=st.none() | counts,
)
#: One strategy an event; a test below sees to it that none is forgotten.
OF_TYPE: Final[dict[type[Event], st.SearchStrategy[Event]]] = {
    events.Started: st.builds(events.Started, attempt=counts, provider=text, model=text),
    events.Delta: st.builds(events.Delta, text=text.filter(bool), kind=st.sampled_from(events.DeltaKind)),
    events.ToolCall: st.builds(
        events.ToolCall, index=counts, arguments=text, id=st.none() | text, name=st.none() | text
    ),
    events.ToolCallDone: st.builds(events.ToolCallDone, index=counts, id=text, name=text, arguments=text),
    events.Part: st.builds(events.Part, type=text, data=st.dictionaries(text, json_values, max_size=5)),
    events.ToolResult: st.builds(events.ToolResult, id=text, name=text, content=text, is_error=st.booleans()),
    events.Status: st.builds(
        events.Status,
        phase=text,
        detail=st.dictionaries(text.filter(lambda key: key != "phase"), json_values, max_size=5),
    ),
    events.Reset: st.builds(events.Reset, attempt=counts, reason=text),
    events.UsageReport: st.builds(events.UsageReport, usage=usages),
    events.Completed: st.builds(
        events.Completed,
        finish_reason=st.sampled_from(events.FinishReason),
        usage=st.none() | usages,
        characters=counts,
    ),
    events.Failed: st.builds(
        events.Failed,
        code=st.sampled_from(events.FailureCode),
        message=text,
        retryable=st.booleans(),
        partial=st.booleans(),
        characters=counts,
    ),
    events.Cancelled: st.builds(
        events.Cancelled, reason=st.sampled_from(events.CancelReason), usage=st.none() | usages
    ),
}


def test_every_event_has_a_strategy() -> None:
    assert set(OF_TYPE) == set(Event.__args__)


@pytest.mark.parametrize("kind", OF_TYPE, ids=lambda kind: kind.__name__)
def test_an_event_comes_out_of_the_log_as_it_went_in(kind: type[Event]) -> None:
    @schedules(100)
    @given(OF_TYPE[kind])
    def survives(event: Event) -> None:
        stored = events.encode(event)
        assert events.decode(stored) == event
        assert events.decode(Entry("1-1", *stored)) == event
        assert Entry("1-1", *stored).is_terminal == isinstance(event, events.Terminal)

    survives()


@pytest.mark.parametrize("kind", OF_TYPE, ids=lambda kind: kind.__name__)
def test_an_event_is_sent_as_one_line_of_json(kind: type[Event]) -> None:
    """A line break in the data would end an SSE frame."""

    @schedules(50)
    @given(OF_TYPE[kind])
    def is_one_line(event: Event) -> None:
        name, data = events.wire(events.encode(event))
        assert re.fullmatch(rb"[a-z_]+", name)
        assert not set(data) & set(b"\r\n")
        assert isinstance(orjson.loads(data), dict)

    is_one_line()


@schedules(200)
@given(torn_text)
@example("\ud83d")
@example("a\ude00b")
def test_lone_surrogates_are_replaced_and_cost_nothing_else(torn: str) -> None:
    whole = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in torn)
    for event, wanted in (
        (events.Delta(text=torn), events.Delta(text=whole)),
        (events.ToolCall(index=0, arguments=torn), events.ToolCall(index=0, arguments=whole)),
        (
            events.Status(phase="tool", detail={f"x{torn}": [{"y": torn}]}),
            events.Status(phase="tool", detail={f"x{whole}": [{"y": whole}]}),
        ),
    ):
        assert events.decode(events.encode(event)) == wanted


@given(st.integers(2**64, 10**400) | st.integers(-(10**400), -(2**63) - 1))
def test_numbers_beyond_64_bits_do_not_break_an_event(number: int) -> None:
    back = events.decode(events.encode(events.Status(phase="tool", detail={"n": number, "text": "kept"})))
    assert isinstance(back, events.Status)
    assert back.detail["text"] == "kept"
    assert back.detail["n"] is None or math.isclose(back.detail["n"], number, rel_tol=1e-9)


# Positions.


def is_part(digits: str) -> bool:
    """A number from 1 of at most 16 ASCII digits, in its one spelling."""
    return 1 <= len(digits) <= 16 and set(digits) <= set("0123456789") and digits[0] != "0"


def is_position(candidate: str) -> bool:
    """The grammar, spelled out without the regular expression under test."""
    parts = candidate.split("-")
    return candidate == "0-0" or (len(parts) == 2 and all(is_part(part) for part in parts))


parts = st.integers(1, 10**16 - 1)
#: Near misses: everything that a store would take for an id, and what looks like digits.
near_misses = st.text(st.sampled_from("0012359-+$(*. \n\t٣९０²"), max_size=20) | st.from_regex(
    r"\A\s?[($]?[0-9]{0,18}-?[0-9]{0,18}\s?\Z"
)


@given(parts, parts)
def test_positions_read_back_as_they_were_written(seq: int, epoch: int) -> None:
    position = Position(seq, epoch)
    assert Position.parse(str(position)) == position
    assert Position.of_entry_id(str(position).encode()) == position


@schedules(1000)
@given(near_misses)
def test_nothing_but_the_grammar_is_a_position(candidate: str) -> None:
    if is_position(candidate):
        assert str(Position.parse(candidate)) == candidate
    else:
        with pytest.raises(InvalidPosition):
            Position.parse(candidate)


@pytest.mark.parametrize(
    "candidate",
    [
        *(
            "",
            "5",
            "05-1",
            "5-01",
            "0-1",
            "1-0",
            "00-0",
            "(5-1",
            "-",
            "+",
            "$",
            "*",
            "5-",
            "-1",
            "5-1-1",
            "5-*",
            "+5-1",
        ),
        *("٥-1", "5-１", "5²-1", "5-1\n", "\n5-1", " 5-1", "5 -1", "5-1 ", "5-1\0", "5_0-1", "5e3-1", "0x5-1", "5.0-1"),
        *("1" * 17 + "-1", "1-" + "1" * 17),
    ],
)
def test_what_a_store_would_take_for_an_id_is_no_position(candidate: str) -> None:
    with pytest.raises(InvalidPosition):
        Position.parse(candidate)


@pytest.mark.parametrize("candidate", ["0-0", "1-1", "42-1", "9" * 16 + "-" + "9" * 16])
def test_positions_are_accepted(candidate: str) -> None:
    assert str(Position.parse(candidate)) == candidate


# The window.


@dataclass
class ListOfPositions:
    """What a window is, said with one list: a chain of positions, of which the window may forget the oldest."""

    most: int
    chain: list[str] = field(default_factory=list)

    def start(self, position: str) -> None:
        if not self.chain:
            self.chain = [position]

    def push(self, prev: str, positions: list[str], *, remembered: bool) -> None:
        """`remembered`: whether the window itself still knew the end of this message."""
        if not self.chain or prev != self.chain[-1]:
            if remembered:
                assert positions[-1] in self.chain, "the window knows a position that no link led to"
                return
            assert positions[-1] not in self.chain[-self.most :], "the window forgot what it has to keep"
            self.chain = [prev]
        self.chain += positions

    def check(self, window: Window, cursor: str) -> None:
        got = window.after(cursor)
        if cursor not in self.chain:
            assert got is None, "a window answers for a position it never had"
            return
        wanted = self.chain[self.chain.index(cursor) + 1 :]
        if got is None:
            assert len(wanted) > self.most, "the window forgot what it has to keep"
        else:
            assert [notice.entry.position for notice in got] == wanted
            assert len(got) <= 2 * self.most, "the window does not forget"


def entry_of(position: str) -> Entry:
    return Entry(position, b"d", position.encode())


#: A log as it is written, cut and written anew, and how many events each of that concerns.
happenings = st.sampled_from(["write", "write", "write", "lose", "again", "miss", "clear", "start"])
histories = st.lists(st.tuples(happenings, st.integers(1, 5)), max_size=40)


@schedules(500)
@given(histories, st.integers(1, 4), st.data())
def test_a_window_gives_exactly_what_follows_a_cursor(
    history: list[tuple[str, int]], most: int, data: st.DataObject
) -> None:
    """Notifications of a log that is rolled back and written under another epoch; some are missed, some come twice."""
    window, model = Window(most_entries=most), ListOfPositions(most)
    log, epoch = [BEGINNING], 1
    sent: list[tuple[str, list[str]]] = []
    seen = {BEGINNING}

    def deliver(prev: str, positions: list[str]) -> None:
        remembered = window.after(positions[-1]) is not None
        window.push(prev, [entry_of(position) for position in positions])
        model.push(prev, positions, remembered=remembered)

    for what, size in history:
        match what:
            case "write" | "miss":
                prev = log[-1]
                added = [f"{len(log) + at}-{epoch}" for at in range(size)]
                log += added
                seen.update(added)
                sent.append((prev, added))
                if what == "write":
                    deliver(prev, added)
            case "lose":
                log, epoch = log[: max(1, len(log) - size)], epoch + 1
            case "again" if sent:
                deliver(*data.draw(st.sampled_from(sent), label="comes again"))
            case "clear":
                window.clear()
                model.chain = []
            case "start":
                window.start(log[-1])
                model.start(log[-1])
        for cursor in (*sorted(seen), "999-9"):
            model.check(window, cursor)
        assert window.last == (model.chain[-1] if model.chain else None)


def test_a_window_that_fell_behind_begins_anew_and_sends_readers_to_the_log() -> None:
    """The log lost 2-1 and 3-1 unseen, and 2-2 and 3-2 stand there now; the next message fits by its number alone."""
    window = Window()
    window.push(BEGINNING, [entry_of(position) for position in ("1-1", "2-1", "3-1")])
    window.push("3-2", [entry_of("4-2")])
    assert window.after("3-1") is None
    followed = window.after("3-2")
    assert followed is not None
    assert [notice.entry.position for notice in followed] == ["4-2"]

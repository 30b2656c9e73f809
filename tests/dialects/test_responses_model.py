"""Any log, any cut: what a client of the Responses dialect holds is always the beginning of one and the same stream."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type_unchecked
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from api.dialects.encoder import CannotTakeBack
from api.dialects.responses_events import ResponseStream
from api.dialects.responses_numbers import LEAST_JUMP, START, Origin
from broker.events import Completed, DeltaKind, Entry, FinishReason
from broker.snapshot import Fold
from broker.store import jump
from tests.dialects.logs import Shown, blocks, logs, subject


def seen_by(entries: list[Entry], *, after: int | None = None) -> ResponseStream:
    """The whole log, read and not shown."""
    stream = ResponseStream(subject(), after=after, mute=True)
    stream.begin()
    stream.encode(entries)
    return stream


def shown_behind(entries: list[Entry], origin: Origin = START, *, after: int | None = None) -> bytes:
    """What a reader of the log gets that begins at `origin`."""
    stream = ResponseStream(subject(), origin=origin, after=after)
    return stream.begin() + stream.encode(rest_of(entries, origin))


def rest_of(entries: list[Entry], origin: Origin) -> list[Entry]:
    """The entries behind the origin."""
    places = [entry.position for entry in entries]
    return entries[places.index(origin.position) + 1 :] if origin.position in places else entries


def replayed(entries: list[Entry]) -> tuple[Origin, list[Shown]]:
    """Where a full replay begins, and its events."""
    origin = seen_by(entries).origin
    return origin, list(blocks(shown_behind(entries, origin)))


@given(logs(jumps=False))
def test_numbers_have_no_holes(entries: list[Entry]) -> None:
    """Behind the last `reset`, in ordinary life."""
    origin, events = replayed(entries)
    assert [event.number for event in events] == list(range(origin.number, origin.number + len(events)))
    assert events[0].kind == "response.created"


@given(logs(), st.data())
def test_a_replay_behind_any_event_is_exactly_the_rest(entries: list[Entry], data: st.DataObject) -> None:
    """To the byte."""
    origin, events = replayed(entries)
    number = data.draw(st.sampled_from([event.number for event in events]))
    rest = b"".join(event.raw for event in events if event.number > number)
    assert origin.answers(number)
    assert shown_behind(entries, origin, after=number) == rest


@given(logs(), st.lists(st.integers(1, 5)))
def test_it_does_not_matter_how_entries_come_together(entries: list[Entry], sizes: list[int]) -> None:
    """One by one, in pages, all at once."""
    origin = seen_by(entries).origin
    stream = ResponseStream(subject(), origin=origin)
    body = stream.begin()
    rest = rest_of(entries, origin)
    for size in [*sizes, len(rest)]:
        body += stream.encode(rest[:size])
        rest = rest[size:]
    assert body == shown_behind(entries, origin)


@given(logs(), st.data())
def test_a_number_names_one_event_for_ever(entries: list[Entry], data: st.DataObject) -> None:
    """A reader that was attached at any time, and saw any number, comes back later: it is told that the answer began
    anew, or it gets what follows on what it saw."""
    earlier = entries[: data.draw(st.integers(0, len(entries)))]
    before, shown = replayed(earlier)
    number = data.draw(st.sampled_from([event.number for event in shown]))
    kept = b"".join(event.raw for event in shown if event.number <= number)
    after = seen_by(entries).origin
    if after != before:
        assert not after.answers(number)
    else:
        assert kept + shown_behind(entries, after, after=number) == shown_behind(entries, after)


@given(logs())
def test_text_that_was_taken_back_is_never_gone_on_with(entries: list[Entry]) -> None:
    """A `reset` in mid-stream ends it."""
    stream = ResponseStream(subject())
    stream.begin()
    if any(entry.field == b"reset" for entry in entries):
        with pytest.raises(CannotTakeBack):
            stream.encode(entries)


@given(logs(jumps=False), st.data())
def test_events_that_the_store_lost_are_never_passed_for_others(entries: list[Entry], data: st.DataObject) -> None:
    """The store forgets the end of a log and who wrote it. The next claim jumps, and goes on from what is there: a
    reader that has seen lost events is told so, at once or as soon as the log goes on."""
    lost = data.draw(st.integers(0, len(entries)))
    left, gone = entries[: len(entries) - lost], entries[len(entries) - lost :]
    origin, shown = replayed(entries)
    if any(entry.field == b"reset" for entry in gone):
        return
    held = seen_by(left).number
    number = data.draw(st.sampled_from([event.number for event in shown]))
    epoch = data.draw(st.integers(LEAST_JUMP, 1 << 31)) + 8
    mended = [
        *left,
        Entry(f"{len(left) + 1}-{epoch}", b"started", orjson.dumps({"attempt": 9, "provider": "", "model": ""})),
    ]
    if number < held:
        assert seen_by(mended, after=number).origin == origin
        return
    for mute in (True, False):
        stream = ResponseStream(subject(), origin=START if mute else origin, after=number, mute=mute)
        stream.begin()
        try:
            stream.encode(mended if mute else rest_of(mended, origin))
        except CannotTakeBack:
            continue
        raise AssertionError(number)


@given(logs())
def test_the_sdk_makes_the_same_answer_of_it(entries: list[Entry]) -> None:
    """Its own accumulator takes every event, and holds what the log holds: after each one, and at the end."""
    _, events = replayed(entries)
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(construct_type_unchecked(type_=ResponseStreamEvent, value=event.data))
    fold = Fold()
    for entry in entries:
        fold.add(entry)
    last = events[-1].data
    match fold.end:
        case None:
            assert last["type"] not in {"response.completed", "response.failed", "response.incomplete"}
        case Completed(finish_reason=FinishReason.STOP):
            assert state._completed_response is not None
            assert state._completed_response.output_text == fold.text
        case _:
            assert last["type"] in {"response.failed", "response.incomplete"}
    whole = seen_by(entries).response()
    if fold.end is not None:
        assert whole == last["response"]
    assert said(whole, "output_text", "text") == fold.text
    assert said(whole, "refusal", "refusal") == "".join(fold.parts.get(DeltaKind.REFUSAL, ()))
    thought = "".join(part["text"] for item in whole["output"] for part in item.get("summary", ()))
    assert thought == "".join(fold.parts.get(DeltaKind.REASONING, ()))
    for item in whole["output"]:
        if item["type"] == "function_call":
            index = int(item["call_id"].removeprefix("call_"))
            assert item["arguments"] == fold.tool_calls[index].arguments


def said(response: dict[str, Any], kind: str, name: str) -> str:
    """The text of all parts of a kind."""
    parts = (part for item in response["output"] if item["type"] == "message" for part in item["content"])
    return "".join(part[name] for part in parts if part["type"] == kind)


def test_a_jump_of_epochs_is_told_from_an_ordinary_claim() -> None:
    """By the least that `broker.store` jumps."""
    assert min(jump() for _ in range(1000)) >= LEAST_JUMP

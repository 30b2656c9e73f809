"""A log read as turns: wherever it was cut, the whole ones are found as they were, and nothing else is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from hypothesis import given
from hypothesis import strategies as st

from broker.events import (
    Delta,
    DeltaKind,
    Entry,
    Event,
    Part,
    Reset,
    Started,
    Status,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    UsageReport,
    encode,
)
from worker import turns
from worker.turns import Progress, Turn, progress

STARTED = Started(attempt=1, provider="p", model="m")
RESET = Reset(attempt=2, reason="worker_lost")


@dataclass(slots=True, kw_only=True)
class Logged:
    """A conversation as a worker logs it. `whole[i]` is how many events there are when turn `i` is whole."""

    events: list[Event] = field(default_factory=lambda: [STARTED])
    turns: list[Turn] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)


def entries(events: Sequence[Event]) -> list[Entry]:
    return [Entry(f"{number}-1", *encode(event)) for number, event in enumerate(events, 1)]


@st.composite
def conversations(draw: st.DrawFn) -> Logged:
    """Turns with text, reasoning, parts and calls; tools run by the worker or by the client."""
    log, calls = Logged(), 0
    interactive = draw(st.booleans())
    for number in range(draw(st.integers(0, 3))):
        made = Turn()
        for piece in draw(st.lists(st.sampled_from(["text", "reasoning", "citation", "block"]), max_size=5)):
            match piece:
                case "text" | "reasoning":
                    kind = DeltaKind(piece)
                    text = draw(st.text("añ🚀 ", min_size=1, max_size=4))
                    made.texts[kind] = made.texts.get(kind, "") + text
                    log.events.append(Delta(text=text, kind=kind))
                case "citation" | "block":
                    part = Part(type="citation" if piece == "citation" else "reasoning", data={"n": len(log.events)})
                    made.parts.append(part)
                    log.events.append(part)
        for index in range(calls, calls + draw(st.integers(1, 3))):
            done = ToolCallDone(index=index, id=f"c{index}", name="f", arguments='{"a": 1}')
            made.calls.append(done)
            log.events += [
                ToolCall(index=index, id=done.id, name=done.name, arguments='{"a"'),
                ToolCall(index=index, arguments=": 1}"),
                done,
            ]
        calls += len(made.calls)
        if draw(st.booleans()):
            log.events.append(UsageReport(usage=Usage(input_tokens=number, output_tokens=number)))
        log.whole.append(len(log.events) + 1)
        if interactive:
            log.events.append(turns.waiting(made.calls, seconds=1))
            order = made.calls
        else:
            log.events += [turns.running(call) for call in made.calls]
            made.started = {call.id for call in made.calls}
            order = draw(st.permutations(made.calls))
        for call in order:
            result = ToolResult(id=call.id, name=call.name, content=f"of {call.id}", is_error=draw(st.booleans()))
            made.results[call.id] = result
            log.events.append(result)
        log.turns.append(made)
    log.events += [Delta(text=text) for text in draw(st.lists(st.text("xyz", min_size=1, max_size=3), max_size=3))]
    return log


def same(one: Turn, other: Turn) -> bool:
    """Whether two turns are one, whatever order their results came in."""
    return (
        one.texts == other.texts
        and sorted(one.parts, key=repr) == sorted(other.parts, key=repr)
        and one.calls == other.calls
        and one.results == other.results
    )


@given(log=conversations(), data=st.data())
def test_wherever_a_log_is_cut_the_whole_turns_are_found(log: Logged, data: st.DataObject) -> None:
    seam = data.draw(st.integers(0, len(log.events)))
    kept = log.events[:seam]
    found = progress(entries(kept))
    count = sum(whole <= seam for whole in log.whole)
    assert len(found.turns) == count
    for turn, made in zip(found.turns, log.turns, strict=False):
        assert (turn.texts, turn.parts, turn.calls) == (made.texts, made.parts, made.calls)
        results = {event.id: event for event in kept if isinstance(event, ToolResult)}
        begun = {event.detail["id"] for event in kept if isinstance(event, Status) and event.phase == "running_tool"}
        ids = {call.id for call in turn.calls}
        assert turn.results == {name: result for name, result in results.items() if name in ids}
        assert turn.started == begun & ids
        assert {call.id for call in turn.open_calls} == ids - set(results)
    behind = kept[log.whole[count - 1] if count else 0 :]
    assert found.text == "".join(event.text for event in behind if isinstance(event, Delta) and _is_plain(event))
    assert found.shown == any(isinstance(event, Delta | ToolCall | ToolCallDone | Part) for event in behind)
    assert found.characters == sum(len(event.text) for event in kept if isinstance(event, Delta) and _is_plain(event))
    assert found.calls == sum(len(turn.calls) for turn in found.turns)
    used = [event.usage for event in kept if isinstance(event, UsageReport)]
    assert found.usage == (used[-1] if used else None)


def _is_plain(event: Delta) -> bool:
    return event.kind is DeltaKind.TEXT


def finished(log: Logged) -> list[Event]:
    """The log up to the last result: every turn has what it called for."""
    ends = [number for number, event in enumerate(log.events, 1) if isinstance(event, ToolResult)]
    return log.events[: ends[-1]] if ends else log.events[:1]


@given(conversations())
def test_turns_that_are_logged_again_are_the_same_turns(log: Logged) -> None:
    found = progress(entries(log.events))
    anew = progress(entries([*log.events, RESET, STARTED, *found.events()]))
    assert len(anew.turns) == len(log.turns)
    assert all(same(one, other) for one, other in zip(anew.turns, log.turns, strict=True))
    assert anew.messages() == found.messages(), "the model is told the very same, so that what it remembers is of use"
    assert not anew.shown
    assert anew.usage == anew.usage_of_turns == found.usage_of_turns
    assert anew.characters == found.characters - len(found.text)
    assert anew.events() == found.events()


@given(log=conversations(), data=st.data())
def test_a_worker_lost_while_it_logs_them_again_loses_none(log: Logged, data: st.DataObject) -> None:
    """They may be more than one append holds. What was a finished turn before the reset is one behind it: else its
    tools would run a second time. And what was shown of it again has to be taken back again."""
    found = progress(entries(log.events))
    again = found.events()
    seam = data.draw(st.integers(0, len(again)))
    cut = progress(entries([*log.events, RESET, STARTED, *again[:seam]]))
    assert cut.messages() == found.messages()
    assert not [call for turn in cut.turns for call in turn.open_calls]
    assert cut.usage_of_turns == found.usage_of_turns
    relogged = progress(entries([STARTED, *again[:seam]]))
    assert cut.shown or relogged.messages() == found.messages()


def test_a_second_reset_counts_from_the_turns_of_the_first() -> None:
    call = ToolCallDone(index=0, id="c", name="f", arguments="{}")
    result = ToolResult(id="c", name="f", content="of c", is_error=False)
    first = [STARTED, Delta(text="Look: "), call, turns.running(call), result, Delta(text="lost")]
    again = progress(entries(first)).events()
    found = progress(entries([*first, RESET, STARTED, *again, Delta(text="lost too"), RESET, STARTED, *again]))
    assert [turn.texts for turn in found.turns] == [{DeltaKind.TEXT: "Look: "}]
    assert (found.text, found.shown) == ("", False)


def test_a_turn_is_told_as_chat_completions_say_it() -> None:
    call = ToolCallDone(index=0, id="c", name="f", arguments='{"a": 1}')
    turn = Turn(
        texts={DeltaKind.TEXT: "Look.", DeltaKind.REASONING: "Hm."},
        parts=[
            Part(type="citation", data={"of": 1}),
            Part(type="reasoning", data={"type": "thinking", "signature": "s"}),
        ],
        calls=[call],
        results={"c": ToolResult(id="c", name="f", content="no", is_error=True)},
    )
    assistant, result = turn.messages()
    assert assistant == {
        "role": "assistant",
        "content": [{"type": "thinking", "signature": "s"}, {"type": "text", "text": "Look."}],
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    assert result == {"role": "tool", "tool_call_id": "c", "content": "no", "is_error": True}


def test_results_are_told_in_the_order_of_the_calls() -> None:
    """However long each took: the next worker, which reads them from the log, then asks in the same words."""
    calls = [ToolCallDone(index=index, id=f"c{index}", name="f", arguments="{}") for index in range(3)]
    results = {f"c{index}": ToolResult(id=f"c{index}", name="f", content="x", is_error=False) for index in (2, 0, 1)}
    messages = Turn(calls=calls, results=results).messages()
    assert [message["tool_call_id"] for message in messages[1:]] == ["c0", "c1", "c2"]


def test_a_turn_without_text_has_none_and_a_log_without_turns_no_messages() -> None:
    call = ToolCallDone(index=0, id="c", name="f", arguments="{}")
    assert Turn(calls=[call]).messages()[0]["content"] is None
    assert progress([]) == Progress()
    assert progress(entries([STARTED, Delta(text="only text")])).messages() == []


def test_statuses_of_other_kinds_end_no_turn() -> None:
    call = ToolCallDone(index=0, id="c", name="f", arguments="{}")
    waiting = Status(phase="waiting", detail={"reason": "handed_over"})
    foreign = Status(phase="running_tool", detail={"id": "of another turn", "name": "f"})
    found = progress(entries([STARTED, call, waiting, foreign]))
    assert not found.turns
    assert found.rest.calls == [call]
    assert found.shown


def test_what_the_client_is_asked_and_what_the_record_notes_name_the_same_calls() -> None:
    calls = [ToolCallDone(index=index, id=f"c{index}", name="f", arguments="{}") for index in range(2)]
    asked = turns.waiting(calls, seconds=1.5)
    assert asked.detail == {
        "calls": [{"id": "c0", "name": "f"}, {"id": "c1", "name": "f"}],
        "timeout_seconds": 1.5,
    }
    assert orjson.loads(turns.pending(calls)) == ["c0", "c1"]

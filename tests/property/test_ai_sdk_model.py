"""Any log, read in any pieces, from any chunk on: an AI SDK client ends with exactly what the log says."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.ai_sdk import _Encoder
from api.dialects.ai_sdk_stream import Chunk, UiMessageStream, joined
from api.dialects.encoder import CannotTakeBack
from broker.events import (
    Cancelled,
    CancelReason,
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Event,
    Failed,
    FailureCode,
    FinishReason,
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
from broker.snapshot import Fold
from tests.support.ui_message import built
from worker.turns import Turn

MESSAGE = "msg_1"


@dataclass
class _Talk:
    """A conversation of one generation, as a worker would log it."""

    events: list[Event] = field(default_factory=list)
    done: list[Turn] = field(default_factory=list)
    attempt: int = 1


words = st.text(min_size=1, max_size=8)
deltas = st.builds(Delta, text=words, kind=st.sampled_from(DeltaKind))
noise = st.sampled_from(
    [
        Status(phase="waiting", detail={"reason": "concurrency"}),
        UsageReport(usage=Usage(input_tokens=1, output_tokens=1)),
        Part(type="citation", data={"url": "https://example.com", "title": "Example"}),
        Part(type="citation", data={"index": 3}),
        Part(type="reasoning", data={"type": "thinking", "signature": "c2ln"}),
    ]
)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    talk = _Talk()
    talk.events.append(Started(attempt=1, provider="sim", model="m"))
    calls = 0
    for _ in range(draw(st.integers(0, 3))):
        while not _turn(draw, talk, first_call=calls):
            pass
        calls += len(talk.done[-1].calls)
    while not _last(draw, talk):
        pass
    talk.events.append(
        draw(
            st.sampled_from(
                [
                    Completed(finish_reason=FinishReason.STOP, usage=None, characters=0),
                    Failed(code=FailureCode.STALLED, message="it was silent", retryable=True, partial=True),
                    Cancelled(reason=CancelReason.USER),
                ]
            )
        )
    )
    return [Entry(f"{seq}-1", *encode(event)) for seq, event in enumerate(talk.events, 1)]


def _turn(draw: st.DrawFn, talk: _Talk, *, first_call: int) -> bool:
    """One turn that ends in calls, or a part of it and a reset; whether it is whole."""
    shown: list[Event] = draw(st.lists(st.one_of(deltas, noise), max_size=4))
    turn = Turn()
    for event in shown:
        match event:
            case Delta():
                turn.texts[event.kind] = turn.texts.get(event.kind, "") + event.text
            case Part():
                turn.parts.append(event)
            case _:
                pass
    for index in range(first_call, first_call + draw(st.integers(1, 2))):
        arguments = orjson.dumps({"q": draw(words)}).decode()
        half = len(arguments) // 2
        call = ToolCallDone(index=index, id=f"call_{index}", name="look_up", arguments=arguments)
        shown.append(ToolCall(index=index, id=call.id, name=call.name, arguments=arguments[:half]))
        shown.append(ToolCall(index=index, arguments=arguments[half:]))
        shown.append(call)
        turn.calls.append(call)
    for call in turn.calls:
        shown.append(Status(phase="running_tool", detail={"id": call.id, "name": call.name}))
        result = ToolResult(
            id=call.id,
            name=call.name,
            content=draw(st.sampled_from(['{"n": 1}', "plain", "[bad"])),
            is_error=draw(st.booleans()),
        )
        shown.append(result)
        turn.started.add(call.id)
        turn.results[call.id] = result
    if draw(st.integers(0, 3)) == 3:
        talk.events += shown[: draw(st.integers(0, len(shown) - 1))]
        _reset(draw, talk)
        return False
    talk.events += shown
    talk.done.append(turn)
    return True


def _last(draw: st.DrawFn, talk: _Talk) -> bool:
    talk.events += draw(st.lists(st.one_of(deltas, noise), max_size=5))
    if draw(st.integers(0, 3)) == 3:
        _reset(draw, talk)
        return False
    return True


def _reset(draw: st.DrawFn, talk: _Talk) -> None:
    """What a worker logs behind a lost attempt; it may be lost itself before it has logged all of the whole turns."""
    for _ in range(draw(st.integers(0, 1)) + 1):
        talk.attempt += 1
        again = [event for turn in talk.done for event in turn.events()]
        cut = draw(st.integers(0, len(again)))
        talk.events += [Reset(attempt=talk.attempt, reason="worker_lost"), *again[:cut]]
    talk.events += again[cut:]
    talk.events.append(Started(attempt=talk.attempt, provider="sim", model="m"))


def chunks_of(entries: list[Entry]) -> list[Chunk]:
    stream = UiMessageStream(MESSAGE)
    return [*stream.begin(), *(chunk for entry in entries for chunk in stream.add(entry))]


def parsed(body: bytes) -> list[Chunk]:
    blocks = [block.removeprefix(b"data: ") for block in body.split(b"\n\n") if block]
    return [orjson.loads(block) for block in blocks if block != b"[DONE]"]


@given(logs())
def test_a_client_ends_with_what_the_log_says(entries: list[Entry]) -> None:
    """Text, reasoning, tools and their results are those of the folded log, whatever was reset on the way."""
    fold = Fold()
    for entry in entries:
        fold.add(entry)
    message = built(chunks_of(entries))
    refused = "".join(fold.parts.get(DeltaKind.REFUSAL, ()))
    assert sorted(message.text) == sorted(fold.text + refused)
    if not refused:
        assert message.text == fold.text
    assert message.reasoning == "".join(fold.parts.get(DeltaKind.REASONING, ()))
    assert [tool["id"] for tool in message.tools] == [call.id for _, call in sorted(fold.tool_calls.items())]
    results = {result.id: result for result in fold.tool_results}
    for tool in message.tools:
        result = results[tool["id"]]
        assert tool["state"] == ("output-error" if result.is_error else "output-available")
    assert message.ended is not None
    assert message.id == MESSAGE


@given(logs(), st.data())
def test_the_rest_from_any_chunk_on_is_exactly_the_rest(entries: list[Entry], data: st.DataObject) -> None:
    """`startIndex=N` gives chunk N and those behind it, however the entries come together; there is always `finish`."""
    whole = chunks_of(entries)
    index = data.draw(st.integers(0, len(whole) + 3))
    encoder = _Encoder(UiMessageStream(MESSAGE), counting=True, skip=index)
    body = encoder.begin()
    at = 0
    while at < len(entries):
        step = data.draw(st.integers(1, 5))
        body += encoder.encode(entries[at : at + step])
        at += step
    assert parsed(body) == (whole[index:] or whole[-1:])
    assert body.endswith(b"data: [DONE]\n\n")


@given(logs(), st.data())
def test_joined_chunks_make_the_same_message(entries: list[Entry], data: st.DataObject) -> None:
    """A replay from behind the last reset, with its deltas joined, builds the message that the live stream built."""
    last_reset = max((at for at, entry in enumerate(entries) if entry.field == b"reset"), default=-1)
    encoder = _Encoder(UiMessageStream(MESSAGE), counting=False)
    body = encoder.begin()
    at = last_reset + 1
    while at < len(entries):
        step = data.draw(st.integers(1, 9))
        body += encoder.encode(entries[at : at + step])
        at += step
    replay, live = built(parsed(body)), built(chunks_of(entries))
    assert sorted(replay.text) == sorted(live.text)
    assert [tool["id"] for tool in replay.tools] == [tool["id"] for tool in live.tools]
    assert (replay.ended, replay.error, replay.aborted) == (live.ended, live.error, live.aborted)


@given(logs())
def test_a_client_that_knows_no_reset_is_never_shown_one(entries: list[Entry]) -> None:
    """With `cut` no chunk takes anything back: the body ends where one would have to."""
    stream = UiMessageStream(MESSAGE, resets="cut")
    chunks = stream.begin()
    try:
        for entry in entries:
            chunks += stream.add(entry)
    except CannotTakeBack:
        assert not any(chunk["type"] == "finish" for chunk in chunks)
    assert not any(chunk["type"] == "reset-step" for chunk in chunks)


@given(logs())
def test_deltas_stay_deltas(entries: list[Entry]) -> None:
    """Joining changes no text and no order."""
    whole = chunks_of(entries)
    assert built(list(joined(whole))).parts == built(whole).parts

"""Any log, any cut: chat completion chunks join to what the log holds, from wherever a reader goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type_unchecked
from openai._types import omit
from openai.lib.streaming.chat._completions import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from api.dialects.chat_chunks import ChunkStream, completion
from api.dialects.encoder import CannotTakeBack
from broker.events import Completed, Entry
from broker.snapshot import Fold
from tests.dialects.logs import CITED, STARTED, THOUGHT, Shown, blocks, chat_subject, completed, log, logs, texts


def behind_the_reset(entries: list[Entry]) -> list[Entry]:
    """What a full replay is made of."""
    resets = [at for at, entry in enumerate(entries) if entry.field == b"reset"]
    return entries[resets[-1] + 1 :] if resets else entries


def chunks(entries: list[Entry], *, resumed: bool = False) -> list[Shown]:
    """The blocks that a reader is sent."""
    stream = ChunkStream(chat_subject(), include_usage=True, resumed=resumed)
    return list(blocks(stream.begin() + stream.encode(entries)))


def said(shown: list[Shown]) -> dict[str, Any]:
    """What the deltas of chunks join to, and how the stream ended."""
    whole: dict[str, Any] = {"calls": {}, "end": None}
    for chunk in shown:
        if "error" in chunk.data:
            whole["end"] = chunk.data["error"]
        for choice in chunk.data.get("choices", ()):
            whole["end"] = choice["finish_reason"] or whole["end"]
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    for call in value:
                        known = whole["calls"].setdefault(call["index"], {"arguments": ""})
                        known["arguments"] += call["function"].pop("arguments")
                        known |= call.pop("function") | call
                elif name != "role":
                    whole[name] = whole.get(name, type(value)()) + value
    return whole


@given(logs(), st.data())
def test_a_reader_that_goes_on_has_what_it_would_have_had(entries: list[Entry], data: st.DataObject) -> None:
    """Behind any position, however entries were joined before and after."""
    rest = behind_the_reset(entries)
    at = data.draw(st.integers(0, len(rest)))
    assert said(chunks(rest[:at]) + chunks(rest[at:], resumed=True)) == said(chunks(rest))


@given(logs())
def test_positions_name_what_was_sent(entries: list[Entry]) -> None:
    """Whoever gives back the last `id:` it received gets what it has not."""
    rest = behind_the_reset(entries)
    stream = ChunkStream(chat_subject())
    body = stream.begin() + stream.encode(rest)
    ids = [line[4:].decode() for line in body.split(b"\n") if line.startswith(b"id: ")]
    places = [entry.position for entry in rest]
    for position in ids:
        before, _, after = body.partition(f"id: {position}\n".encode())
        first, _, later = after.partition(b"\n\n")
        kept = before + f"id: {position}\n".encode() + first + b"\n\n"
        cut = rest[places.index(position) + 1 :]
        assert said([*blocks(kept), *chunks(cut, resumed=True)]) == said(chunks(rest))
        assert later is not None


@given(logs())
def test_the_sdk_makes_the_same_answer_of_it(entries: list[Entry]) -> None:
    """Streamed, by its own accumulator, as when it is asked for whole."""
    rest = behind_the_reset(entries)
    fold = Fold()
    for entry in entries:
        fold.add(entry)
    if not isinstance(fold.end, Completed):
        return
    streamed = accumulated(chunks(rest))
    whole = completion(chat_subject(), fold, fold.end)
    assert streamed["usage"] == whole["usage"]
    (left,), (right,) = streamed["choices"], whole["choices"]
    assert left["finish_reason"] == right["finish_reason"]
    for name in ("content", "refusal", "reasoning_content"):
        assert (left["message"].get(name) or None) == (right["message"].get(name) or None), name
    for name in ("annotations", "reasoning_details"):
        assert without_index(left["message"].get(name)) == without_index(right["message"].get(name)), name
    calls = [(call["id"], call["function"]["arguments"]) for call in left["message"].get("tool_calls") or ()]
    assert calls == [(call["id"], call["function"]["arguments"]) for call in right["message"].get("tool_calls", ())]


def accumulated(shown: list[Shown]) -> dict[str, Any]:
    """What the SDK's accumulator makes of chunks."""
    state: Any = ChatCompletionStreamState(input_tools=omit, response_format=omit)
    for chunk in shown:
        if chunk.data:
            state.handle_chunk(construct_type_unchecked(type_=ChatCompletionChunk, value=chunk.data))
    snapshot: dict[str, Any] = state.current_completion_snapshot.to_dict()
    return snapshot


def without_index(parts: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Parts of a stream as they are in a whole answer; what the SDK adds is empty."""
    return [
        {name: value for name, value in part.items() if name != "index" and value is not None} for part in parts or ()
    ]


def test_the_sdk_takes_several_citations_and_blocks_of_reasoning() -> None:
    """It puts together what comes in lists by `index`, and fails where there is none: each part is one of its own."""
    entries = log([STARTED, THOUGHT, THOUGHT, *texts("Rain."), CITED, CITED, CITED, completed()])
    message = accumulated(chunks(entries))["choices"][0]["message"]
    assert without_index(message["reasoning_details"]) == [THOUGHT.data] * 2
    assert without_index(message["annotations"]) == [CITED.data] * 3


@given(logs())
def test_text_that_was_taken_back_is_never_gone_on_with(entries: list[Entry]) -> None:
    """A `reset` in mid-stream ends it."""
    if any(entry.field == b"reset" for entry in entries):
        with pytest.raises(CannotTakeBack):
            chunks(entries)

"""UI messages of the AI SDK as a job's messages, and the way back: what the stream gave a client comes back whole."""

from __future__ import annotations

from typing import Any

import pytest

from api.dialects.ai_sdk_messages import converted
from api.dialects.ai_sdk_stream import UiMessageStream, joined, replayed
from api.submit import validate
from broker.events import (
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Event,
    FinishReason,
    Part,
    Started,
    ToolCall,
    ToolCallDone,
    ToolResult,
    encode,
)
from broker.settings import Settings
from tests.support.ui_message import built

PNG = "data:image/png;base64,iVBORw0KGgo="
TOOL = {
    "type": "tool-weather",
    "toolCallId": "call_1",
    "state": "output-available",
    "input": {"city": "Rome"},
    "output": {"sky": "clear"},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"sky":"clear"}'}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "u", "role": "user", "parts": list(parts)}


def assistant(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "a", "role": "assistant", "parts": list(parts)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


STEP = {"type": "step-start"}

CONVERTED = {
    "text": ([user(text("a"), text("b"))], [{"role": "user", "content": "ab"}]),
    "a system message": (
        [{"id": "s", "role": "system", "parts": [text("Be brief.")]}, user(text("a"))],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
    ),
    "an image": (
        [user(text("a"), {"type": "file", "mediaType": "image/png", "url": PNG})],
        [{"role": "user", "content": [text("a"), {"type": "image_url", "image_url": {"url": PNG}}]}],
    ),
    "what is for people": (
        [
            user(text("a"), {"type": "data-note", "data": 1}),
            assistant(
                STEP,
                {"type": "reasoning", "text": "hm"},
                text("b"),
                {"type": "source-url", "sourceId": "1", "url": "https://x.example"},
                {"type": "data-chart", "data": {}},
            ),
        ],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ),
    "steps with tools": (
        [user(text("a")), assistant(STEP, text("I look."), TOOL, STEP, text("Clear."))],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
            RESULT,
            {"role": "assistant", "content": "Clear."},
        ],
    ),
    "text behind tools, without steps": (
        [user(text("a")), assistant(TOOL, text("Clear."))],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            RESULT,
            {"role": "assistant", "content": "Clear."},
        ],
    ),
    "a dynamic tool that failed": (
        [
            user(text("a")),
            assistant(
                {
                    "type": "dynamic-tool",
                    "toolName": "weather",
                    "toolCallId": "call_1",
                    "state": "output-error",
                    "input": {"city": "Rome"},
                    "errorText": "no sky",
                }
            ),
        ],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "no sky", "is_error": True},
        ],
    ),
    "a call that nothing came of": (
        [user(text("a")), assistant(STEP, text("b"), TOOL | {"state": "input-available"}), user(text("c"))],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ),
    "an answer that was stopped before it said anything": (
        [user(text("a")), assistant(STEP), user(text("b"))],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    ),
}


@pytest.mark.parametrize(("messages", "expected"), CONVERTED.values(), ids=list(CONVERTED))
def test_messages_are_converted_as_the_sdk_converts_them(messages: list[Any], expected: list[Any]) -> None:
    """And what comes of it is a job that the API takes."""
    found, wrong = converted(messages)
    assert wrong == []
    assert found == expected
    validate({"provider": "sim", "model": "m", "messages": found}, Settings(providers=("sim",)))


WRONG = {
    "not a list": ("hi", "messages"),
    "not a message": (["hi"], "messages.0"),
    "a role": ([{"role": "tool", "parts": []}], "messages.0.role"),
    "content in place of parts": ([{"role": "user", "content": "hi"}], "messages.0.parts"),
    "nothing in it": ([user()], "messages.0.parts"),
    "a part that is none": ([user("hi")], "messages.0.parts.0"),  # type: ignore[arg-type]
    "an image in a system message": (
        [{"role": "system", "parts": [{"type": "file", "mediaType": "image/png", "url": PNG}]}],
        "messages.0.parts.0",
    ),
    "a file of the assistant": (
        [user(text("a")), assistant({"type": "file", "mediaType": "image/png", "url": PNG})],
        "messages.1.parts.0",
    ),
    "a call without an id": (
        [user(text("a")), assistant({"type": "tool-x", "state": "output-available"})],
        "messages.1.parts.0",
    ),
    "an approval": ([user(text("a")), assistant(TOOL | {"state": "approval-responded"})], "messages.1.parts.0.state"),
    "text that is none": ([user({"type": "text", "text": 1})], "messages.0.parts.0"),
}


@pytest.mark.parametrize(("messages", "path"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_converted_is_named_by_its_path(messages: Any, path: str) -> None:
    _, wrong = converted(messages)
    assert [".".join(map(str, item.path)) for item in wrong] == [path]


def entries(*events: Event) -> list[Entry]:
    return [Entry(f"{seq}-1", *encode(event)) for seq, event in enumerate(events, 1)]


BLOCK = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
LOG = entries(
    Started(attempt=1, provider="anthropic", model="m"),
    Delta(text="h", kind=DeltaKind.REASONING),
    Delta(text="m", kind=DeltaKind.REASONING),
    Part(type="reasoning", data=BLOCK),
    Delta(text="I look."),
    ToolCall(index=0, id="call_1", name="weather", arguments='{"city":'),
    ToolCall(index=0, arguments='"Rome"}'),
    ToolCallDone(index=0, id="call_1", name="weather", arguments='{"city":"Rome"}'),
    ToolResult(id="call_1", name="weather", content='{"sky":"clear"}', is_error=False),
    Delta(text="Clear."),
    Completed(finish_reason=FinishReason.STOP, usage=None, characters=13),
)


def ui_parts() -> list[dict[str, Any]]:
    """The message of `LOG` as a client would post it."""
    stream = UiMessageStream("msg_1")
    chunks = [*stream.begin(), *(chunk for entry in LOG for chunk in stream.add(entry))]
    parts = []
    for part in built(chunks).parts:
        match part:
            case {"type": "tool"}:
                parts.append({**part, "type": f"tool-{part['name']}", "toolCallId": part["id"]})
            case {"metadata": metadata}:
                parts.append({**part, "providerMetadata": metadata})
            case _:
                parts.append(part)
    return parts


def test_what_a_provider_wants_back_comes_back_with_the_message() -> None:
    """A block of reasoning rides on its part, through the client, into the content of the next request."""
    found, wrong = converted([user(text("a")), assistant(*ui_parts()), user(text("b"))])
    assert wrong == []
    assert found[1] == {
        "role": "assistant",
        "content": [BLOCK, {"type": "text", "text": "I look."}],
        "tool_calls": [CALL],
    }
    assert found[2:] == [RESULT, {"role": "assistant", "content": "Clear."}, {"role": "user", "content": "b"}]


def test_a_message_that_is_replayed_from_its_parts_is_the_same_message() -> None:
    parts = ui_parts()
    message = built([{"type": "start", "messageId": "m"}, *replayed(parts), {"type": "finish"}])
    assert [(part["type"], part.get("text")) for part in message.parts] == [
        ("tool" if part["type"].startswith("tool-") else part["type"], part.get("text")) for part in parts
    ]
    assert message.tools[0]["output"] == {"sky": "clear"}


def test_only_deltas_of_one_part_are_joined() -> None:
    stream = UiMessageStream("msg_1")
    chunks = [chunk for entry in LOG for chunk in stream.add(entry)]
    whole = [chunk["delta"] for chunk in joined(chunks) if "delta" in chunk]
    assert whole == ["hm", "I look.", "Clear."]


def test_arguments_that_are_no_json_are_an_error_of_the_input() -> None:
    stream = UiMessageStream("msg_1")
    (entry,) = entries(ToolCallDone(index=0, id="c", name="x", arguments='{"a":'))
    assert stream.add(entry)[-1] == {
        "type": "tool-input-error",
        "toolCallId": "c",
        "toolName": "x",
        "input": '{"a":',
        "errorText": "the arguments of this call are not JSON",
    }

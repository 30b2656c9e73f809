"""What the official SDKs document, once directly and once through Legato: the message at the end is the same.

A server replays each example's stream, in the shape in which the provider sends it. Directly, the SDK's own helper
makes the final message of it; through Legato, a job is submitted, a worker asks the same server, and a reader folds the
events. Both are brought into one form (`Said`) and compared, and so is what the server was asked. Whatever the SDK's
message holds besides must stand in `UNSAID`: the whole list of what the events do not tell.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import anthropic
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from tests.support.sse_client import Frame, Reader, open_stream
from tests.support.stack import Stack
from tests.support.wire_provider import (
    Received,
    Reply,
    WireProvider,
    anthropic_block,
    anthropic_event,
    openai_chunk,
    responses_event,
    responses_frames,
    responses_item,
    sse,
)

Json = dict[str, Any]

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Streams come in HTTP chunks of so many bytes, which cuts frames, lines and characters.
PIECE_BYTES: Final = 61

#: Fields of a final message that no event tells, by provider (`*` is every item of a list): names of the message and
#: echoes of the request; what only bills know; where one block of the same kind ends; and what the model was sure of.
UNSAID: Final[dict[str, set[str]]] = {
    "openai": {
        *("id", "object", "created", "model", "service_tier", "system_fingerprint"),
        *("choices.*.index", "choices.*.message.role", "choices.*.logprobs"),
        *("choices.*.message.tool_calls.*.type", "choices.*.message.tool_calls.*.index"),
        "usage.total_tokens",
        *("usage.prompt_tokens_details.audio_tokens", "usage.completion_tokens_details.audio_tokens"),
        "usage.completion_tokens_details.accepted_prediction_tokens",
        "usage.completion_tokens_details.rejected_prediction_tokens",
    },
    "openai_responses": {
        *("id", "object", "created_at", "model", "status", "parallel_tool_calls", "tool_choice", "store"),
        *("background", "temperature", "top_p", "truncation", "service_tier"),
        *("output.*.id", "output.*.type", "output.*.status", "output.*.role", "output.*.content.*.type"),
        "usage.total_tokens",
    },
    "anthropic": {
        *("id", "type", "role", "model", "stop_sequence", "stop_details", "content.*.type", "content.*.caller.type"),
        *("usage.service_tier", "usage.inference_geo", "usage.cache_creation"),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """An answer, however it was had."""

    #: In order: `(kind, text)` of text, reasoning and refusals, joined where one follows another; `("block", object)`
    #: of what the provider wants back; `("call", id, name, arguments)`.
    parts: list[tuple[Any, ...]]
    citations: list[tuple[int | None, Json]]  # characters of text before it, where it holds no place itself
    finish_reason: str
    usage: Json  # as the `usage` event has it


@dataclass(slots=True)
class Fold:
    """Collects parts."""

    parts: list[tuple[Any, ...]] = field(default_factory=list)
    citations: list[tuple[int | None, Json]] = field(default_factory=list)
    characters: int = 0

    def text(self, kind: str, text: str) -> None:
        if not text:
            return
        if kind == "text":
            self.characters += len(text)
        if self.parts and self.parts[-1][0] == kind:
            text = self.parts.pop()[1] + text
        self.parts.append((kind, text))

    def call(self, call_id: str, name: str, arguments: str) -> None:
        self.parts.append(("call", call_id, name, json.loads(arguments)))

    def said(self, finish_reason: str, usage: Json) -> Said:
        return Said(parts=self.parts, citations=self.citations, finish_reason=finish_reason, usage=usage)


# --- through Legato ---


def said_by(frames: list[Frame], *, placed: bool) -> Said:
    """The answer that events tell. `placed`: a citation belongs to the text right before it."""
    fold = Fold()
    fragments: dict[int, str] = {}
    usage: Json = {}
    for frame in frames:
        match frame.event, frame.data:
            case "delta", {"text": text, **rest}:
                fold.text(str(rest.get("kind", "text")), text)
            case "part", {"type": "citation", "data": data}:
                given = {name: item for name, item in data.items() if item is not None}
                fold.citations.append((fold.characters if placed else None, given))
            case "part", {"type": "reasoning", "data": data}:
                fold.parts.append(("block", data))
            case "tool_call", {"index": index, "arguments": arguments}:
                fragments[index] = fragments.get(index, "") + arguments
            case "tool_call_done", {"index": index, "id": call_id, "name": name, "arguments": arguments}:
                assert fragments.pop(index) == arguments
                fold.call(call_id, name, arguments)
            case "usage", data:
                usage = data
            case name, _:
                assert name in {"open", "started", "completed"}, frame
    assert not fragments
    end = frames[-1].data
    assert end["usage"] == usage
    assert end["characters"] == fold.characters
    return fold.said(end["finish_reason"], usage)


# --- directly ---


def paths(value: Any, path: str = "") -> set[str]:
    """Where in a value something is. Empty texts, lists and objects are nothing."""
    if path in {"choices.*.logprobs", "usage.cache_creation", "stop_details"}:  # told or not told as a whole
        return {path}
    match value:
        case dict():
            return {found for name, item in value.items() for found in paths(item, f"{path}.{name}".strip("."))}
        case list():
            return {found for item in value for found in paths(item, f"{path}.*")}
        case _:
            return {path} if value != "" else set()


def counted(usage: Json, *, input_tokens: int, output_tokens: int, cached: int | None, reasoning: int | None) -> Json:
    """Counts as the `usage` event has them."""
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    counts |= {} if cached is None else {"cached_tokens": cached}
    return counts | ({} if reasoning is None else {"reasoning_tokens": reasoning})


def of_openai(message: Json) -> Said:
    """Takes what a chat completion says."""
    (choice,) = message["choices"]
    said = choice["message"]
    fold = Fold()
    fold.text("reasoning", said.pop("reasoning_content", ""))
    fold.text("text", said.pop("content", ""))
    fold.text("refusal", said.pop("refusal", ""))
    fold.citations += [(None, source) for source in said.pop("annotations", ())]
    if "parsed" in said:
        assert said.pop("parsed") == json.loads(fold.parts[-1][1])
    for call in said.get("tool_calls", ()):
        function = call.pop("function")
        assert function.get("parsed_arguments") in (None, json.loads(function["arguments"]))
        fold.call(call.pop("id"), function["name"], function["arguments"])
    usage = message["usage"]
    counts = counted(
        usage,
        input_tokens=usage.pop("prompt_tokens"),
        output_tokens=usage.pop("completion_tokens"),
        cached=usage["prompt_tokens_details"].pop("cached_tokens"),
        reasoning=usage["completion_tokens_details"].pop("reasoning_tokens"),
    )
    return fold.said(choice.pop("finish_reason"), counts)


def of_responses(message: Json) -> Said:
    """Takes what a response says."""
    fold = Fold()
    for item in message["output"]:
        match item["type"]:
            case "reasoning":
                fold.text("reasoning", "".join(part["text"] for part in item["summary"]))
                fold.parts.append(("block", dict(item)))
                item.clear()
            case "function_call":
                arguments = item.pop("arguments")
                assert item.pop("parsed_arguments", None) in (None, json.loads(arguments))
                fold.call(item.pop("call_id"), item.pop("name"), arguments)
            case "message":
                for part in item["content"]:
                    fold.text("text", part.pop("text", ""))
                    fold.text("refusal", part.pop("refusal", ""))
                    fold.citations += [(None, source) for source in part.pop("annotations", ())]
                    if "parsed" in part:
                        assert part.pop("parsed") == json.loads(fold.parts[-1][1])
    assert message["status"] == "completed"
    usage = message["usage"]
    counts = counted(
        usage,
        input_tokens=usage.pop("input_tokens"),
        output_tokens=usage.pop("output_tokens"),
        cached=usage["input_tokens_details"].pop("cached_tokens"),
        reasoning=usage["output_tokens_details"].pop("reasoning_tokens"),
    )
    return fold.said("tool_calls" if any(kind == "call" for kind, *_ in fold.parts) else "stop", counts)


STOP_REASONS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def of_anthropic(message: Json) -> Said:
    """Takes what a message says."""
    fold = Fold()
    for block in message["content"]:
        match block["type"]:
            case "thinking":
                fold.text("reasoning", block["thinking"])
                fold.parts.append(("block", dict(block)))
                block.clear()
            case "redacted_thinking":
                fold.parts.append(("block", dict(block)))
                block.clear()
            case "text":
                fold.text("text", block.pop("text"))
                fold.citations += [(fold.characters, source) for source in block.pop("citations", ())]
            case "tool_use":
                fold.call(block.pop("id"), block.pop("name"), json.dumps(block.pop("input")))
    usage = message["usage"]
    cached = usage.pop("cache_read_input_tokens")
    counts = counted(
        usage,
        input_tokens=usage.pop("input_tokens") + usage.pop("cache_creation_input_tokens") + cached,
        output_tokens=usage.pop("output_tokens"),
        cached=cached,
        reasoning=usage.pop("output_tokens_details", {}).get("thinking_tokens"),
    )
    return fold.said(STOP_REASONS[message.pop("stop_reason")], counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def ask(self, provider: str, arguments: Json) -> BaseModel:
        """What the SDK's own helper makes of the answer."""
        match provider:
            case "openai":
                async with self.openai.chat.completions.stream(**arguments) as chat:
                    try:
                        return await chat.get_final_completion()
                    except openai.LengthFinishReasonError as cut:
                        return cut.completion
            case "openai_responses":
                async with self.openai.responses.stream(**arguments) as response:
                    return await response.get_final_response()
            case _:
                async with self.anthropic.messages.stream(**arguments) as message:
                    return await message.get_final_message()


def said_in(provider: str, message: BaseModel) -> tuple[Said, set[str]]:
    """What a final message says, and where it holds more than that."""
    rest = message.model_dump(mode="json", exclude_none=True, warnings=False)
    said = {"openai": of_openai, "openai_responses": of_responses, "anthropic": of_anthropic}[provider](rest)
    return said, paths(rest)


def asked(received: Received) -> tuple[str, str, Json]:
    """A request, in one spelling: a message of the Responses API may leave out that it is one."""
    body = dict(received.body)
    if isinstance(body.get("input"), list):
        body["input"] = [{"type": "message"} | item if "role" in item else item for item in body["input"]]
    return received.method, received.path, body


# --- the examples ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """`arguments` are what the SDK is given, `fields` the same for Legato; `kinds` of parts the answer has."""

    provider: str
    arguments: Json
    fields: Json
    stream: bytes
    kinds: str

    def given(self) -> Json:
        """The body of a submit."""
        return {"provider": self.provider, "model": self.arguments["model"], **self.fields}


HAIKU: Final = [{"role": "user", "content": "Write a haiku about the sea – with an 🌊."}]
WEATHER: Final = [{"role": "user", "content": "What's the weather like in Paris and in Bogotá today?"}]
PLACE: Final = {
    "type": "object",
    "properties": {"location": {"type": "string", "description": "City and country, e.g. Bogotá, Colombia"}},
    "required": ["location"],
    "additionalProperties": False,
}
ABOUT_WEATHER: Final = "Get current temperature for a given location."
CHAT_TOOLS: Final = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": ABOUT_WEATHER, "parameters": PLACE, "strict": True},
    }
]


class MathAnswer(BaseModel):
    steps: list[str]
    final_answer: str


MATH: Final = {
    "properties": {
        "steps": {"items": {"type": "string"}, "title": "Steps", "type": "array"},
        "final_answer": {"title": "Final Answer", "type": "string"},
    },
    "required": ["steps", "final_answer"],
    "title": "MathAnswer",
    "type": "object",
    "additionalProperties": False,
}
SOLVE: Final = [
    {"role": "system", "content": "You are a helpful math tutor."},
    {"role": "user", "content": "solve 8x + 31 = 2"},
]
SOLVED: Final = ['{"steps":["Sub', "tract 31: 8x = \\u", '221229"],', '"final_answer":"-29/8"}']
SEA: Final = {"url": "https://example.org/sea", "title": "The sea", "start_index": 4, "end_index": 12}

# chat completions

CHAT: Final[Json] = {
    "id": "chatcmpl-CfK2yQ0vW9hT3xL1",
    "created": 1_795_000_000,
    "model": "gpt-4.1-2026-04-14",
    "service_tier": "default",
    "system_fingerprint": "fp_95d112f245",
}
CHAT_USAGE: Final = {
    "prompt_tokens": 1117,
    "completion_tokens": 46,
    "total_tokens": 1163,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 12,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def chunk(delta: Json, finish_reason: str | None = None, **fields: Any) -> bytes:
    return openai_chunk(delta, finish_reason=finish_reason, **CHAT, usage=None, obfuscation="kQ7xd2", **fields)


def chat_stream(*deltas: Json, finish_reason: str = "stop", logprobs: bool = False) -> bytes:
    """An answer of these deltas, behind the one that names the role."""
    content = None if "tool_calls" in deltas[0] else ""
    frames = [chunk({"role": "assistant", "content": content, "refusal": None})]
    for delta in deltas:
        sure: Json = {"content": [{"token": delta.get("content"), "logprob": -0.01, "bytes": None, "top_logprobs": []}]}
        choice = {"index": 0, "delta": delta, "logprobs": sure if logprobs else None, "finish_reason": None}
        frames.append(chunk({}, choices=[choice]))
    end = openai_chunk(**CHAT, choices=[], usage=CHAT_USAGE, obfuscation="")
    return b"".join([*frames, chunk({}, finish_reason), end, sse("[DONE]")])


def chat_call(index: int, call_id: str, name: str, *fragments: str) -> list[Json]:
    """A call, as deltas."""
    head = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": fragment}} for fragment in fragments]
    return [{"tool_calls": [fragment]} for fragment in [head, *rest]]


def chat_example(stream: bytes, kinds: str, messages: list[Json], **options: Any) -> Example:
    """`options` are what Legato has no field for."""
    tools = {"tools": options.pop("tools")} if "tools" in options else {}
    own = {name: item for name, item in options.items() if name != "response_format"}
    if format_of := options.get("response_format"):
        schema = {"name": format_of.__name__, "strict": True, "schema": MATH}
        own["response_format"] = {"type": "json_schema", "json_schema": schema}
    arguments = {"model": "gpt-4.1", "messages": messages, "stream_options": {"include_usage": True}}
    return Example(
        provider="openai",
        arguments=arguments | tools | options,
        fields={"messages": messages, **tools} | ({"provider_options": own} if own else {}),
        stream=stream,
        kinds=kinds,
    )


def contents(*pieces: str, kind: str = "content") -> list[Json]:
    return [{kind: piece} for piece in pieces]


# responses

RESPONSE: Final = {
    "id": "resp_68af4030592c81938ec0a5fbab4a3e9f",
    "object": "response",
    "created_at": 1_795_000_000,
    "status": "in_progress",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "model": "gpt-5.2-2026-08-07",
    "output": [],
    "parallel_tool_calls": True,
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
}
RESPONSE_USAGE: Final = {
    "input_tokens": 1117,
    "input_tokens_details": {"cached_tokens": 1024},
    "output_tokens": 46,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 1163,
}

Item = tuple[Json, list[tuple[str, Json]]]


def message_item(kind: str, *pieces: str, source: Json | None = None) -> Item:
    """A message, and the events inside it."""
    name = "text" if kind == "output_text" else "refusal"
    more: Json = {"annotations": [source] if source else [], "logprobs": []} if name == "text" else {}
    part = {"type": kind, name: "".join(pieces), **more}
    where = {"content_index": 0}
    events: list[tuple[str, Json]] = [("content_part.added", where | {"part": {"type": kind, name: ""} | more})]
    events += [(f"{kind}.delta", where | {"delta": piece, "logprobs": [], "obfuscation": "hW2"}) for piece in pieces]
    if source:
        events.append(("output_text.annotation.added", where | {"annotation_index": 0, "annotation": source}))
        events[0][1]["part"]["annotations"] = []
    events += [(f"{kind}.done", where | {name: part[name]}), ("content_part.done", where | {"part": part})]
    item = {"id": "msg_68af40", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    return item, events


def reasoning_item(*summaries: list[str]) -> Item:
    """What the model thought: parts of a summary, each in pieces."""
    events: list[tuple[str, Json]] = []
    for number, pieces in enumerate(summaries):
        where = {"summary_index": number}
        whole = {"type": "summary_text", "text": "".join(pieces)}
        events.append(("reasoning_summary_part.added", where | {"part": {"type": "summary_text", "text": ""}}))
        events += [("reasoning_summary_text.delta", where | {"delta": piece, "obfuscation": "a"}) for piece in pieces]
        events.append(("reasoning_summary_text.done", where | {"text": whole["text"]}))
        events.append(("reasoning_summary_part.done", where | {"part": whole}))
    summary = [{"type": "summary_text", "text": "".join(pieces)} for pieces in summaries]
    return {"id": "rs_68af40", "type": "reasoning", "summary": summary, "encrypted_content": "gAAAAABo+w=="}, events


def call_item(number: int, call_id: str, *fragments: str) -> Item:
    """A call of `get_weather`."""
    arguments = "".join(fragments)
    events: list[tuple[str, Json]] = [
        ("function_call_arguments.delta", {"delta": fragment, "obfuscation": "x"}) for fragment in fragments
    ]
    events.append(("function_call_arguments.done", {"arguments": arguments}))
    item = {"id": f"fc_68af4{number}", "type": "function_call", "status": "completed", "call_id": call_id}
    return item | {"name": "get_weather", "arguments": arguments}, events


def responses_stream(*items: Item) -> bytes:
    """A response of these items, its events counted."""
    frames = [responses_event(f"response.{kind}", response=RESPONSE) for kind in ("created", "in_progress")]
    frames += [responses_item(index, item, *events) for index, (item, events) in enumerate(items)]
    end = {"status": "completed", "output": [item for item, _ in items], "usage": RESPONSE_USAGE}
    frames.append(responses_event("response.completed", response=RESPONSE | end))
    return b"".join(responses_frames(b"".join(frames)))


def responses_example(stream: bytes, kinds: str, messages: list[Json], **options: Any) -> Example:
    """`options` are what Legato has no field for."""
    fields: Json = {"messages": messages}
    own = {name: item for name, item in options.items() if name not in {"tools", "text_format", "include"}}
    if format_of := options.get("text_format"):
        own["text"] = {"format": {"type": "json_schema", "strict": True, "name": format_of.__name__, "schema": MATH}}
    if "tools" in options:
        fields["tools"] = CHAT_TOOLS
    return Example(
        provider="openai_responses",
        arguments={"model": "gpt-5.2", "input": messages, "store": False} | options,
        fields=fields | ({"provider_options": own} if own else {}),
        stream=stream,
        kinds=kinds,
    )


RESPONSES_TOOLS: Final = [
    {"type": "function", "name": "get_weather", "description": ABOUT_WEATHER, "parameters": PLACE, "strict": True}
]
REASONING: Final[Json] = {
    "reasoning": {"effort": "medium", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
}

# messages

MESSAGE: Final[Json] = {
    "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-6",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {
        "input_tokens": 93,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 1004,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 2,
        "service_tier": "standard",
        "inference_geo": "not_available",
    },
}

Block = tuple[Json, list[Json]]


def text_block(*pieces: str, source: Json | None = None) -> Block:
    deltas: list[Json] = [{"type": "text_delta", "text": piece} for piece in pieces]
    deltas += [{"type": "citations_delta", "citation": source}] if source else []
    return {"type": "text", "text": "", **({"citations": []} if source else {})}, deltas


def thinking_block(*pieces: str, signature: str = "EqQBCgIYAhIM1gbcDa9GJwZA2b3h==") -> Block:
    deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
    signed = {"type": "signature_delta", "signature": signature}
    return {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]


def use_block(call_id: str, *fragments: str) -> Block:
    """A use of `get_weather`."""
    deltas: list[Json] = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *fragments)]
    block = {"type": "tool_use", "id": call_id, "name": "get_weather", "input": {}, "caller": {"type": "direct"}}
    return block, deltas


def messages_stream(
    *blocks: Block, stop_reason: str = "end_turn", thinking_tokens: int | None = None, **end: Any
) -> bytes:
    """A message of these blocks; `end` is more of what its end says."""
    usage: Json = {"input_tokens": 93, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 1004}
    usage |= {"output_tokens": 46}
    if thinking_tokens is not None:
        usage["output_tokens_details"] = {"thinking_tokens": thinking_tokens}
    frames = [anthropic_event("message_start", message=MESSAGE)]
    for index, (block, deltas) in enumerate(blocks):
        frames.append(anthropic_block(index, block, *deltas))
        if index == 0:
            frames.append(anthropic_event("ping"))
    delta = {"stop_reason": stop_reason, "stop_sequence": None} | end
    return b"".join(
        [*frames, anthropic_event("message_delta", delta=delta, usage=usage), anthropic_event("message_stop")]
    )


def messages_example(stream: bytes, kinds: str, messages: list[Json], **options: Any) -> Example:
    """`options` besides `system`, `tools` and `stop_sequences` are what Legato has no field for."""
    fields: Json = {"messages": messages, "max_output_tokens": 16_000}
    own = {name: item for name, item in options.items() if name not in {"system", "tools", "stop_sequences"}}
    if "system" in options:
        fields["messages"] = [{"role": "system", "content": options["system"]}, *messages]
    if "tools" in options:
        fields["tools"] = [
            {"type": "function", "function": {"name": "get_weather", "description": ABOUT_WEATHER, "parameters": PLACE}}
        ]
    if "stop_sequences" in options:
        fields["stop"] = options["stop_sequences"]
    return Example(
        provider="anthropic",
        arguments={"model": "claude-sonnet-4-6", "max_tokens": 16_000, "messages": messages} | options,
        fields=fields | ({"provider_options": own} if own else {}),
        stream=stream,
        kinds=kinds,
    )


MESSAGES_TOOLS: Final = [{"name": "get_weather", "description": ABOUT_WEATHER, "input_schema": PLACE}]
THINK: Final[Json] = {"thinking": {"type": "enabled", "budget_tokens": 10_000}}
DOCUMENT: Final = {
    "type": "document",
    "source": {"type": "text", "media_type": "text/plain", "data": "The grass is green. The sky is blue."},
    "title": "My Document",
    "context": "This is a trustworthy document.",
    "citations": {"enabled": True},
}


def cited(text: str, start: int) -> Json:
    where = {"document_index": 0, "document_title": "My Document", "file_id": None}
    place = {"start_char_index": start, "end_char_index": start + len(text)}
    return {"type": "char_location", "cited_text": text, **where, **place}


EXAMPLES: Final[dict[str, Example]] = {
    "chat: text": chat_example(
        chat_stream(*contents("Waves fold", " into", " f", "oam – 🌊\n")), "text", HAIKU, temperature=0.7, seed=7
    ),
    "chat: tool": chat_example(
        chat_stream(
            *chat_call(0, "call_12345xyz", "get_weather", '{"', "location", '":"', "Paris", ', France"}'),
            finish_reason="tool_calls",
        ),
        "call",
        WEATHER,
        tools=CHAT_TOOLS,
    ),
    "chat: parallel tools": chat_example(
        chat_stream(
            *contents("I will look."),
            *chat_call(0, "call_DdmO9pD3xa9XTPNJ32zg2hcA", "get_weather", '{"location": "', 'Paris"}'),
            *chat_call(1, "call_ABCfjqzvVzFqU3gRzWVqXk2F", "get_weather", '{"location": "', 'Bogotá"}'),
            finish_reason="tool_calls",
        ),
        "text call call",
        WEATHER,
        tools=CHAT_TOOLS,
        parallel_tool_calls=True,
    ),
    "chat: structured": chat_example(chat_stream(*contents(*SOLVED)), "text", SOLVE, response_format=MathAnswer),
    "chat: refusal": chat_example(
        chat_stream(*contents("I'm", " sorry, I", " cannot.", kind="refusal")),
        "refusal",
        SOLVE,
        response_format=MathAnswer,
    ),
    "chat: length": chat_example(
        chat_stream(*contents("Waves"), finish_reason="length"), "text", HAIKU, max_completion_tokens=1
    ),
    "chat: reasoning of a compatible server": chat_example(
        chat_stream(*contents("The user", " wants", kind="reasoning_content"), *contents("Sea.")),
        "reasoning text",
        HAIKU,
    ),
    "chat: sources": chat_example(
        chat_stream(*contents("The sea [1]."), {"annotations": [{"type": "url_citation", "url_citation": SEA}]}),
        "text",
        HAIKU,
        web_search_options={},
    ),
    "chat: log probabilities": chat_example(
        chat_stream(*contents("Sea", "."), logprobs=True), "text", HAIKU, logprobs=True
    ),
    "responses: text": responses_example(
        responses_stream(message_item("output_text", "Waves fold", " into", " foam – 🌊\n")), "text", HAIKU
    ),
    "responses: function call": responses_example(
        responses_stream(call_item(0, "call_12345xyz", '{"', "location", '":"Paris, France"}')),
        "call",
        WEATHER,
        tools=RESPONSES_TOOLS,
    ),
    "responses: parallel function calls": responses_example(
        responses_stream(
            message_item("output_text", "I will look."),
            call_item(0, "call_DdmO9pD3xa9XTPNJ32zg2hcA", '{"location":"', 'Paris"}'),
            call_item(1, "call_ABCfjqzvVzFqU3gRzWVqXk2F", '{"location":"', 'Bogotá"}'),
        ),
        "text call call",
        WEATHER,
        tools=RESPONSES_TOOLS,
        parallel_tool_calls=True,
    ),
    "responses: reasoning": responses_example(
        responses_stream(
            reasoning_item(["**Counting", " syllables**\n\nFive,"], ["**Choosing words**"]),
            message_item("output_text", "Waves", " fold."),
        ),
        "reasoning block text",
        HAIKU,
        **REASONING,
    ),
    "responses: reasoning and a function call": responses_example(
        responses_stream(reasoning_item(["Look it up."]), call_item(0, "call_12345xyz", '{"location":"Paris"}')),
        "reasoning block call",
        WEATHER,
        tools=RESPONSES_TOOLS,
        **REASONING,
    ),
    "responses: structured": responses_example(
        responses_stream(message_item("output_text", *SOLVED)), "text", SOLVE, text_format=MathAnswer
    ),
    "responses: refusal": responses_example(
        responses_stream(message_item("refusal", "I'm", " sorry,", " I cannot.")),
        "refusal",
        SOLVE,
        text_format=MathAnswer,
    ),
    "responses: sources": responses_example(
        responses_stream(message_item("output_text", "The sea [1].", source={"type": "url_citation"} | SEA)),
        "text",
        HAIKU,
    ),
    "messages: text": messages_example(
        messages_stream(text_block("Waves fold", " into", " f", "oam – 🌊\n")), "text", HAIKU, system="You are a poet."
    ),
    "messages: tool use": messages_example(
        messages_stream(
            text_block("Okay", ", let's check."),
            use_block("toolu_01T1x1fJ34qAmk2tNTrN7Up6", '{"location":', ' "Par', 'is, France"}'),
            stop_reason="tool_use",
        ),
        "text call",
        WEATHER,
        tools=MESSAGES_TOOLS,
    ),
    "messages: parallel tool use": messages_example(
        messages_stream(
            use_block("toolu_01A", '{"location": "Paris"}'),
            use_block("toolu_01B", '{"location"', ': "Bogotá"}'),
            stop_reason="tool_use",
        ),
        "call call",
        WEATHER,
        tools=MESSAGES_TOOLS,
    ),
    "messages: extended thinking": messages_example(
        messages_stream(thinking_block("Five, seven,", " five."), text_block("Waves", " fold."), thinking_tokens=12),
        "reasoning block text",
        HAIKU,
        **THINK,
    ),
    "messages: thinking that is not shown": messages_example(
        messages_stream(
            ({"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4a=="}, []), text_block("Waves.")
        ),
        "block text",
        HAIKU,
        **THINK,
    ),
    "messages: thinking and tool use": messages_example(
        messages_stream(
            thinking_block("I should look", " it up."),
            text_block("Let me check."),
            use_block("toolu_01C", '{"location": "Paris"}'),
            stop_reason="tool_use",
            thinking_tokens=12,
        ),
        "reasoning block text call",
        WEATHER,
        tools=MESSAGES_TOOLS,
        **THINK,
    ),
    "messages: citations": messages_example(
        messages_stream(
            text_block("Per the document, "),
            text_block("the grass", " is green", source=cited("The grass is green.", 0)),
            text_block(" and "),
            text_block("the sky is blue", source=cited("The sky is blue.", 20)),
            text_block("."),
        ),
        "text",
        [{"role": "user", "content": [DOCUMENT, {"type": "text", "text": "What color is the grass and sky?"}]}],
    ),
    "messages: stop sequence": messages_example(
        messages_stream(text_block("1, 2,"), stop_reason="stop_sequence", stop_sequence="3"),
        "text",
        HAIKU,
        stop_sequences=["3"],
    ),
    "messages: length": messages_example(messages_stream(text_block("Waves"), stop_reason="max_tokens"), "text", HAIKU),
    "messages: refusal": messages_example(
        messages_stream(
            text_block("I"),
            stop_reason="refusal",
            stop_details={"type": "refusal", "category": "cyber", "explanation": None},
        ),
        "text",
        HAIKU,
    ),
}


# --- the tests ---


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire() -> AsyncIterator[WireProvider]:
    async with WireProvider() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(wire: WireProvider) -> AsyncIterator[Clients]:
    async with (
        openai.AsyncOpenAI(api_key="sk-test", base_url=wire.openai_url, max_retries=0) as first,
        anthropic.AsyncAnthropic(api_key="sk-ant-test", base_url=wire.url, max_retries=0) as second,
    ):
        yield Clients(openai=first, anthropic=second)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory, wire: WireProvider) -> AsyncIterator[Stack]:
    environment = {
        "LEGATO_PROVIDERS": "openai,openai_responses,anthropic",
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": wire.openai_url,
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "ANTHROPIC_BASE_URL": wire.url,
    }
    stack = await asyncio.to_thread(Stack.start, redis_url, tmp_path_factory.mktemp("sdk"), environment=environment)
    yield stack
    await asyncio.to_thread(stack.close)


async def through_legato(stack: Stack, wire: WireProvider, body: Json, stream: bytes) -> Said:
    """Submit, read to the end, fold."""

    def work() -> list[Frame]:
        answer = stack.post("/v1/generations", body)
        assert answer.status == 202, answer.body
        reader, frames = Reader(), []
        with open_stream(stack.urls[0], answer.json()["id"]) as opened:
            for frame in opened.frames():
                reader.take(frame)
                frames.append(frame)
        assert reader.ended is not None
        assert reader.ended.event == "completed", reader.ended
        return frames

    wire.script(Reply.events(stream, piece_bytes=PIECE_BYTES))
    return said_by(await asyncio.to_thread(work), placed=body["provider"] == "anthropic")


async def directly(clients: Clients, wire: WireProvider, example: Example) -> BaseModel:
    wire.script(Reply.events(example.stream, piece_bytes=PIECE_BYTES))
    return await clients.ask(example.provider, example.arguments)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_the_message_at_the_end_is_the_same(
    stack: Stack, wire: WireProvider, clients: Clients, name: str
) -> None:
    example = EXAMPLES[name]
    direct, unsaid = said_in(example.provider, await directly(clients, wire, example))
    ours = await through_legato(stack, wire, example.given(), example.stream)
    assert ours == direct
    assert " ".join(kind for kind, *_ in ours.parts) == example.kinds
    assert unsaid <= UNSAID[example.provider]
    first, second = wire.requests[-2:]
    assert asked(second) == asked(first)


@pytest.mark.parametrize("provider", UNSAID)
async def test_what_no_event_tells_is_known_and_no_more_than_that(
    wire: WireProvider, clients: Clients, provider: str
) -> None:
    """A field that an SDK's message gets must be told or listed, and one that is told is listed no longer."""
    found: set[str] = set()
    for example in EXAMPLES.values():
        if example.provider == provider:
            found |= said_in(provider, await directly(clients, wire, example))[1]
    assert found == UNSAID[provider]


#: Examples whose answer calls one tool, and what that tool gives back.
CALLS: Final = ["chat: tool", "responses: reasoning and a function call", "messages: thinking and tool use"]
DEGREES: Final = "14 °C"


def next_directly(provider: str, example: Example, message: Any) -> Json:
    """The arguments of the next turn, as the SDKs document it: the message goes back as it is."""
    match provider:
        case "openai":
            said = message.choices[0].message
            result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": DEGREES}
            return example.arguments | {"messages": [*WEATHER, said, result]}
        case "openai_responses":
            result = {"type": "function_call_output", "call_id": message.output[-1].call_id, "output": DEGREES}
            return example.arguments | {"input": [*WEATHER, *message.output, result]}
        case _:
            result = {"type": "tool_result", "tool_use_id": message.content[-1].id, "content": DEGREES}
            said = {"role": "assistant", "content": message.content}
            return example.arguments | {"messages": [*WEATHER, said, {"role": "user", "content": [result]}]}


def next_through_legato(example: Example, said: Said) -> Json:
    """The same from what the events told."""
    content: list[Json] = []
    calls: list[Json] = []
    for kind, *rest in said.parts:
        match kind:
            case "block":
                content.append(rest[0])
            case "text":
                content.append({"type": "text", "text": rest[0]})
            case "call":
                function = {"name": rest[1], "arguments": json.dumps(rest[2])}
                calls.append({"id": rest[0], "type": "function", "function": function})
    answer = {"role": "assistant", "content": content or None, "tool_calls": calls}
    result = {"role": "tool", "tool_call_id": calls[0]["id"], "content": DEGREES}
    return example.given() | {"messages": [*WEATHER, answer, result]}


def essential(value: Any) -> Any:
    """A body without what says nothing to the server, and arguments as what they are."""
    match value:
        case {"type": "function_call", "id": _, **rest}:
            return essential({"type": "function_call", **rest})
        case dict():
            kept = {name: essential(item) for name, item in value.items() if name not in UNSENT and item is not None}
            if isinstance(kept.get("arguments"), str):
                kept["arguments"] = json.loads(kept["arguments"])
            return kept
        case list():
            return [essential(item) for item in value]
        case _:
            return value


#: Fields that the SDKs send back because the message had them.
UNSENT: Final = frozenset({"status", "caller", "index", "parsed_arguments"})


@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_goes_back_with_the_results_of_its_tools_the_same(
    stack: Stack, wire: WireProvider, clients: Clients, name: str
) -> None:
    """With the blocks that hold what the model thought, and their signatures."""
    example = EXAMPLES[name]
    message = await directly(clients, wire, example)
    ours = await through_legato(stack, wire, example.given(), example.stream)
    wire.script(Reply.events(example.stream))
    await clients.ask(example.provider, next_directly(example.provider, example, message))
    await through_legato(stack, wire, next_through_legato(example, ours), example.stream)
    first, second = wire.requests[-2:]
    assert essential(asked(second)[2]) == essential(asked(first)[2])

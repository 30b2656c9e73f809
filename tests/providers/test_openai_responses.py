"""Responses: what is asked, what the events mean, and how a stream of them may end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.errors import ProviderError
from broker.events import Delta, DeltaKind, FailureCode, FinishReason, Part, ToolCall, ToolCallDone, Usage, UsageReport
from tests.providers.test_identity import DOCUMENT, pieces
from tests.providers.wires import API_KEY, RESPONSES, collect, request, text_of
from tests.support.wire_provider import (
    Cut,
    End,
    Pause,
    Reply,
    Rst,
    Send,
    WireProvider,
    responses_event,
    responses_item,
    responses_stream,
    sse,
)
from worker.providers.base import Call, Finish, ProviderEvent
from worker.providers.openai_responses import OpenAIResponsesProvider

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 30,
}
COUNTED = Usage(input_tokens=10, output_tokens=20, cached_tokens=3, reasoning_tokens=4)


async def ended(server: WireProvider, reply: Reply) -> tuple[list[ProviderEvent], ProviderError | None]:
    server.script(reply)
    async with RESPONSES.connect(server) as provider:
        return await collect(provider.stream(Call(request())))


async def play(server: WireProvider, stream: bytes) -> list[ProviderEvent]:
    events, error = await ended(server, Reply.events(stream))
    assert error is None
    return events


async def failed(server: WireProvider, stream: bytes) -> ProviderError:
    events, error = await ended(server, Reply.events(stream))
    assert error is not None
    assert not any(isinstance(event, Finish) for event in events)
    return error


async def sent(server: WireProvider, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the request that the provider makes of `fields`."""
    server.script(Reply.events(responses_stream("ok")))
    async with RESPONSES.connect(server) as provider:
        _, error = await collect(provider.stream(Call(request(**fields))))
    assert error is None
    return server.requests[-1].body, server.requests[-1].headers


# --- request ---


async def test_the_least_request(server: WireProvider) -> None:
    """Nothing that was not asked for is sent, but the wish to stream, and that the answer is not kept there."""
    body, headers = await sent(server)
    assert body == {
        "model": "m",
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "stream": True,
        "store": False,
    }
    assert server.requests[0].path == "/v1/responses"
    assert headers["authorization"] == f"Bearer {API_KEY}"


async def test_everything_a_request_can_say(server: WireProvider) -> None:
    """Messages become items, calls and results items of their own; tools lose their inner object."""
    body, _ = await sent(
        server,
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": [{"type": "text", "text": "and kind"}]},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "what is this? 🚀\u2028"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                    {"type": "file", "file": {"file_id": "file_1"}},
                    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "I look"}, {"type": "refusal", "refusal": "no"}],
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
                    {"id": "c2", "type": "function", "function": {"name": "wait", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "a rocket"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "waited"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c3", "function": {"name": "look"}}]},
            {"role": "tool", "tool_call_id": "c3", "content": ""},
            {"role": "assistant", "content": "done"},
        ],
        max_output_tokens=5,
        temperature=0.0,
        top_p=0.5,
        stop=[],
        tools=[
            {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}},
            {"type": "function", "function": {"name": "wait", "strict": True}},
            {"type": "web_search"},
        ],
        tool_choice={"type": "function", "function": {"name": "look"}},
    )
    assert body == {
        "model": "m",
        "input": [
            {"type": "message", "role": "system", "content": "be brief"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "and kind"}]},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "what is this? 🚀\u2028"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                    {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
                    {"type": "input_file", "file_id": "file_1"},
                    {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                ],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "I look"}, {"type": "refusal", "refusal": "no"}],
            },
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}'},
            {"type": "function_call", "call_id": "c2", "name": "wait", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "a rocket"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "waited"}]},
            {"type": "function_call", "call_id": "c3", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c3", "output": ""},
            {"type": "message", "role": "assistant", "content": "done"},
        ],
        "max_output_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "tools": [
            {
                "type": "function",
                "name": "look",
                "description": "d",
                "parameters": {"type": "object"},
                "strict": False,
            },
            {
                "type": "function",
                "name": "wait",
                "parameters": {"type": "object", "properties": {}},
                "strict": True,
            },
            {"type": "web_search"},
        ],
        "tool_choice": {"type": "function", "name": "look"},
        "stream": True,
        "store": False,
    }


@pytest.mark.parametrize("choice", ["auto", "required", "none", {"type": "web_search"}])
async def test_other_tool_choices_go_as_they_are(server: WireProvider, choice: Any) -> None:
    body, _ = await sent(server, tool_choice=choice)
    assert body["tool_choice"] == choice


async def test_provider_options_reach_the_sdk(server: WireProvider) -> None:
    """Those it knows as they are, the others in the body; they win over the request's own fields."""
    body, headers = await sent(
        server,
        temperature=0.1,
        provider_options={
            "temperature": 0.9,
            "store": True,
            "reasoning": {"effort": "low", "summary": "auto"},
            "brand_new": 7,
            "extra_body": {"top_k": 3},
            "extra_headers": {"x-trace": "t1"},
        },
    )
    assert (body["temperature"], body["store"], body["brand_new"], body["top_k"]) == (0.9, True, 7, 3)
    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert headers["x-trace"] == "t1"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stop": ["END"]}, "stop: the Responses API has no stop sequences"),
        ({"provider_options": {"input": []}}, "provider_options.input"),
        ({"provider_options": {"extra_body": {"input": []}}}, "provider_options.input"),
        ({"provider_options": {"stream": False}}, "provider_options.stream"),
        ({"provider_options": {"extra_body": {"model": "other"}}}, "provider_options.model"),
        ({"provider_options": {"timeout": "soon"}}, "SDK"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_sent(
    server: WireProvider, fields: dict[str, Any], named: str
) -> None:
    async with RESPONSES.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request(**fields))))
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.INVALID_REQUEST, False)
    assert named in error.message
    assert server.requests == []


async def test_without_a_key_it_is_upstream_auth() -> None:
    """Building it is no error: a worker may serve other providers."""
    provider = OpenAIResponsesProvider()
    events, error = await collect(provider.stream(Call(request())))
    await provider.aclose()
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_AUTH, False)


async def test_key_and_base_url_come_from_the_environment(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
    provider = OpenAIResponsesProvider()
    server.script(Reply.events(responses_stream("ok")))
    events, _ = await collect(provider.stream(Call(request())))
    await provider.aclose()
    assert text_of(events) == "ok"
    assert server.requests[0].headers["authorization"] == "Bearer from-env"
    assert not provider.can_continue(request())


# --- stream ---


@pytest.mark.parametrize("named", [True, False], ids=["event lines", "no event lines"])
async def test_text_reasoning_refusal_and_usage(server: WireProvider, named: bool) -> None:
    """Each delta once, in order, though the last events repeat everything."""
    stream = responses_stream(
        "Hel",
        "lo",
        reasoning=["h", "m"],
        summary=["in short"],
        refusal=["I can", "not"],
        usage=USAGE,
        named=named,
    )
    events = await play(server, stream)
    reasoning, refusal = DeltaKind.REASONING, DeltaKind.REFUSAL
    assert events == [
        Delta(text="h", kind=reasoning),
        Delta(text="m", kind=reasoning),
        Delta(text="in short", kind=reasoning),
        Part(type="reasoning", data={"type": "reasoning", "id": "rs_1", "summary": []}),
        Delta(text="Hel"),
        Delta(text="lo"),
        Delta(text="I can", kind=refusal),
        Delta(text="not", kind=refusal),
        UsageReport(usage=COUNTED),
        Finish(finish_reason=FinishReason.STOP, usage=COUNTED),
    ]


async def test_usage_without_details(server: WireProvider) -> None:
    events = await play(server, responses_stream("a", usage={"input_tokens": 1, "output_tokens": 2}))
    assert events[-1] == Finish(finish_reason=FinishReason.STOP, usage=Usage(input_tokens=1, output_tokens=2))


async def test_tool_calls(server: WireProvider) -> None:
    """They count from 0, whatever items stand before them; each is done once, with what its fragments join to."""
    tools = [("c1", "f", ('{"a":', "1}")), ("c2", "g", ()), ("c3", "h", ("[]",))]
    events = await play(server, responses_stream("I call", reasoning=["hm"], tools=tools))
    assert events[3:] == [
        ToolCall(index=0, id="c1", name="f", arguments=""),
        ToolCall(index=0, arguments='{"a":'),
        ToolCall(index=0, arguments="1}"),
        ToolCallDone(index=0, id="c1", name="f", arguments='{"a":1}'),
        ToolCall(index=1, id="c2", name="g", arguments=""),
        ToolCall(index=1, arguments="{}"),
        ToolCallDone(index=1, id="c2", name="g", arguments="{}"),
        ToolCall(index=2, id="c3", name="h", arguments=""),
        ToolCall(index=2, arguments="[]"),
        ToolCallDone(index=2, id="c3", name="h", arguments="[]"),
        Finish(finish_reason=FinishReason.TOOL_CALLS, usage=None),
    ]


def call(**fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "", **fields}


ADDED = responses_event("response.output_item.added", output_index=4, item=call())
ARGUMENTS = responses_event("response.function_call_arguments.delta", output_index=4, delta="[1]")
ARGUMENTS_DONE = responses_event("response.function_call_arguments.done", output_index=4, arguments="[1]")
ITEM_DONE = responses_event("response.output_item.done", output_index=4, item=call(arguments="[1]"))
ADDED_WHOLE = responses_event("response.output_item.added", output_index=4, item=call(arguments="[1]"))


@pytest.mark.parametrize(
    "frames",
    [
        [ADDED, ARGUMENTS, ARGUMENTS_DONE, ITEM_DONE],
        [ADDED, ARGUMENTS_DONE, ITEM_DONE],
        [ADDED, ITEM_DONE],
        [ADDED, ARGUMENTS],
        [ITEM_DONE],
        [ADDED_WHOLE],
        [ADDED_WHOLE, ARGUMENTS, ITEM_DONE],
        [ADDED, ARGUMENTS, ITEM_DONE, ITEM_DONE],
    ],
    ids=["all", "no delta", "item only", "never done", "done only", "whole at once", "said twice", "done twice"],
)
async def test_servers_may_leave_out_events_of_a_tool_call(server: WireProvider, frames: list[bytes]) -> None:
    events = await play(server, b"".join([*frames, responses_stream()]))
    fragments = [event for event in events if isinstance(event, ToolCall)]
    assert "".join(event.arguments for event in fragments) == "[1]"
    assert (fragments[0].id, fragments[0].name) == ("c1", "f")
    done = [event for event in events if isinstance(event, ToolCallDone)]
    assert done == [ToolCallDone(index=0, id="c1", name="f", arguments="[1]")]
    assert events[-1] == Finish(finish_reason=FinishReason.TOOL_CALLS, usage=None)


async def test_tools_of_the_provider_are_not_shown(server: WireProvider) -> None:
    """And what a later version may say is passed over."""
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    noise = responses_item(0, search, ("web_search_call.searching", {})) + responses_event("keepalive")
    mcp = responses_event("response.mcp_call_arguments.delta", output_index=0, delta="{}")
    events = await play(server, noise + mcp + responses_stream("ok"))
    assert events == [Delta(text="ok"), Finish(finish_reason=FinishReason.STOP, usage=None)]


@pytest.mark.parametrize(
    ("escapes", "text"),
    [([r"a\ud83d", r"\ude00b"], "a😀b"), ([r"a\ud83d"], "a\ufffd"), ([r"\ud83d", "b"], "\ufffdb")],
)
async def test_halves_of_a_character_find_one_another(server: WireProvider, escapes: list[str], text: str) -> None:
    frames = [
        responses_event("response.output_text.delta", output_index=0, delta="@").replace(b'"@"', f'"{piece}"'.encode())
        for piece in escapes
    ]
    assert text_of(await play(server, b"".join([*frames, responses_stream()]))) == text


@pytest.mark.parametrize("piece_bytes", [1, 0], ids=["single bytes", "as it comes"])
async def test_a_document_comes_through_identical(server: WireProvider, piece_bytes: int) -> None:
    """Also where the last events repeat it whole."""
    events, error = await ended(server, Reply.events(responses_stream(*pieces(DOCUMENT)), piece_bytes=piece_bytes))
    assert error is None
    assert [event.text for event in events if isinstance(event, Delta)] == pieces(DOCUMENT)
    assert text_of(events) == DOCUMENT


@pytest.mark.parametrize(
    "frame",
    [
        responses_event("response.output_text.delta", delta=7),
        responses_event("response.output_text.delta"),
        responses_event("response.function_call_arguments.delta", output_index=0, delta="{}"),
        ADDED + responses_event("response.function_call_arguments.delta", output_index=4, delta={}),
        responses_event("response.output_item.added", output_index=0, item={"type": "function_call"}),
        responses_event("response.completed"),
        responses_event("response.completed", response={"usage": {"input_tokens": "many"}}),
        responses_event("response.failed", response=None),
        sse([1]),
    ],
)
async def test_what_is_not_the_protocol_is_an_error(server: WireProvider, frame: bytes) -> None:
    error = await failed(server, frame + responses_stream("late"))
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)


# --- end ---


@pytest.mark.parametrize(
    ("details", "finish"),
    [
        ({"reason": "max_output_tokens"}, FinishReason.LENGTH),
        ({"reason": "content_filter"}, FinishReason.CONTENT_FILTER),
        ({"reason": "something_new"}, FinishReason.LENGTH),
        (None, FinishReason.LENGTH),
    ],
)
async def test_an_incomplete_answer_says_why(
    server: WireProvider, details: dict[str, str] | None, finish: FinishReason
) -> None:
    events = await play(server, responses_stream("Hel", status="incomplete", details=details, usage=USAGE))
    assert events == [Delta(text="Hel"), UsageReport(usage=COUNTED), Finish(finish_reason=finish, usage=COUNTED)]


@pytest.mark.parametrize("event", ["response.failed", "error", "error object", "bare error"])
@pytest.mark.parametrize(
    ("code", "failure", "retry"),
    [
        ("server_error", FailureCode.UPSTREAM_ERROR, True),
        ("rate_limit_exceeded", FailureCode.RATE_LIMITED, True),
        ("insufficient_quota", FailureCode.RATE_LIMITED, False),
        ("context_length_exceeded", FailureCode.CONTEXT_LENGTH, False),
        ("invalid_prompt", FailureCode.CONTENT_FILTER, False),
        ("image_content_policy_violation", FailureCode.CONTENT_FILTER, False),
        ("invalid_image_url", FailureCode.INVALID_REQUEST, False),
        ("something_new", FailureCode.UPSTREAM_ERROR, True),
        (None, FailureCode.UPSTREAM_ERROR, True),
    ],
)
async def test_an_error_is_told_by_its_code(
    server: WireProvider, event: str, code: str | None, failure: FailureCode, retry: bool
) -> None:
    said = {"code": code, "message": "it broke"}
    frame = {
        "response.failed": responses_stream(status="failed", error=said),
        "error": responses_event("error", **said),
        "error object": responses_event("error", error=said),
        "bare error": sse({"error": said}),
    }[event]
    error = await failed(server, responses_stream("Hel", status=None) + frame)
    assert (error.failure, error.retryable) == (failure, retry)
    assert "it broke" in error.message


async def test_failed_without_an_error_is_an_upstream_error(server: WireProvider) -> None:
    error = await failed(server, responses_stream("Hel", status="failed"))
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)


CANCELLED = responses_event("response.incomplete", response={"status": "cancelled"})


@pytest.mark.parametrize(
    ("tail", "end"),
    [
        (b"", End()),
        (b"", Cut()),
        (b"", Rst()),
        (sse("[DONE]"), End()),
        (CANCELLED, End()),
        (responses_event("response.cancelled", response={"status": "cancelled"}), End()),
        (responses_stream("", status="completed")[:-1], End()),
        (responses_event("response.output_text.done", output_index=0, text="Hello"), Cut()),
    ],
    ids=["clean end", "cut", "reset", "[DONE]", "cancelled", "unknown end", "half a marker", "cut behind the text"],
)
async def test_whatever_ends_without_its_marker_is_incomplete(
    server: WireProvider, tail: bytes, end: End | Cut | Rst
) -> None:
    stream = responses_stream("Hel", "lo", tools=[("c1", "f", ("{}",))], status=None) + tail
    events, error = await ended(server, Reply.events(stream, end=end))
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_INCOMPLETE, True)
    assert not any(isinstance(event, Finish) for event in events)
    if not isinstance(end, Rst):  # a reset may overtake what was sent before it
        assert text_of(events) == "Hello"


@pytest.mark.parametrize("end", [Cut(), Rst()], ids=["cut", "reset"])
async def test_a_break_behind_the_marker_does_no_harm(server: WireProvider, end: Cut | Rst) -> None:
    """The answer is whole; the connection is only not used again."""
    sent_all = asyncio.Event()
    server.script(Reply(actions=(Send(responses_stream("Hello", usage=USAGE)), Pause(sent_all), end)))
    async with RESPONSES.connect(server) as provider:
        stream = provider.stream(Call(request()))
        events = [await anext(stream) for _ in range(3)]
        sent_all.set()
        rest, error = await collect(stream)
    assert error is None
    assert rest == []
    assert events[-1] == Finish(finish_reason=FinishReason.STOP, usage=COUNTED)


async def test_closing_closes_the_socket(server: WireProvider) -> None:
    """In the middle of a body that would never end: with `store: false` that is what stops the provider."""
    server.script(Reply(actions=(Send(responses_stream("Hel", status=None)), Pause(asyncio.Event()))))
    async with RESPONSES.connect(server) as provider:
        stream = provider.stream(Call(request()))
        assert await anext(stream) == Delta(text="Hel")
        assert not server.requests[0].gone.is_set()
        await stream.aclose()
        await asyncio.wait_for(server.requests[0].gone.wait(), 10)


async def test_an_answer_of_more_than_a_mebibyte_is_whole(server: WireProvider) -> None:
    """The wire's last events say all of it again, each in one line."""
    piece = "0123456789abcdef" * 1024
    assert text_of(await play(server, responses_stream(*[piece] * 80))) == piece * 80

"""Chat completions: what is asked, and what the chunks mean."""

from __future__ import annotations

from typing import Any

import pytest

from broker.events import Delta, DeltaKind, FailureCode, FinishReason, ToolCall, ToolCallDone, Usage, UsageReport
from tests.providers.wires import API_KEY, OPENAI, collect, request, text_of
from tests.support.wire_provider import Reply, WireProvider, openai_chunk, openai_stream, sse
from worker.providers.base import Call, Finish, ProviderEvent
from worker.providers.openai import OpenAIProvider, create_arguments


async def play(server: WireProvider, stream: bytes) -> list[ProviderEvent]:
    server.script(Reply.events(stream))
    async with OPENAI.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    return events


async def sent(server: WireProvider, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the request that a provider makes of `fields`."""
    server.script(Reply.events(openai_stream("ok")))
    async with OPENAI.connect(server) as provider:
        _, error = await collect(provider.stream(Call(request(**fields))))
    assert error is None
    return server.requests[-1].body, server.requests[-1].headers


async def test_the_least_request(server: WireProvider) -> None:
    """Nothing that was not asked for is sent, but the wish to stream and to count."""
    body, headers = await sent(server)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert server.requests[0].path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {API_KEY}"


async def test_everything_a_request_can_say(server: WireProvider) -> None:
    """Messages, parts and tools go as they came."""
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this? 🚀\u2028"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a rocket"},
    ]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    choice = {"type": "function", "function": {"name": "look"}}
    body, _ = await sent(
        server,
        messages=messages,
        max_output_tokens=5,
        temperature=0.0,
        top_p=0.5,
        stop=["\n", "END"],
        tools=tools,
        tool_choice=choice,
    )
    assert body == {
        "model": "m",
        "messages": messages,
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop": ["\n", "END"],
        "tools": tools,
        "tool_choice": choice,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_provider_options_reach_the_sdk(server: WireProvider) -> None:
    """Those it knows as they are, the others in the body; they win over the request's own fields."""
    body, headers = await sent(
        server,
        temperature=0.1,
        provider_options={
            "temperature": 0.9,
            "seed": 7,
            "repetition_penalty": 1.1,
            "extra_body": {"top_k": 3},
            "extra_headers": {"x-trace": "t1"},
            "extra_query": {"v": "2"},
            "stream_options": {"include_usage": True, "include_obfuscation": False},
        },
    )
    assert body["temperature"] == 0.9
    assert (body["seed"], body["repetition_penalty"], body["top_k"]) == (7, 1.1, 3)
    assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert "extra_body" not in body
    assert headers["x-trace"] == "t1"
    assert server.requests[0].path == "/v1/chat/completions?v=2"


@pytest.mark.parametrize(
    ("host", "options", "limits"),
    [
        ("api.openai.com", {}, {"max_completion_tokens": 5}),
        ("eu.api.openai.com", {}, {"max_completion_tokens": 5}),
        ("api.openai.com.evil.example", {}, {"max_tokens": 5}),
        ("127.0.0.1", {}, {"max_tokens": 5}),
        ("127.0.0.1", {"max_completion_tokens": 9}, {"max_completion_tokens": 9}),
        ("api.openai.com", {"max_tokens": 9}, {"max_tokens": 9}),
    ],
)
def test_the_limit_has_the_name_that_the_server_knows(
    host: str, options: dict[str, int], limits: dict[str, int]
) -> None:
    arguments = create_arguments(Call(request(max_output_tokens=5, provider_options=options)), host=host)
    assert {name: value for name, value in arguments.items() if name.startswith("max")} == limits


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n": 2}, "provider_options.n"),
        ({"extra_body": {"n": 2}}, "provider_options.n"),
        ({"stream": False}, "provider_options.stream"),
        ({"extra_body": {"model": "other"}}, "provider_options.model"),
        ({"messages": []}, "provider_options.messages"),
        ({"extra_body": 7}, "provider_options.extra_body"),
        ({"extra_headers": {"x": 7}}, "Header value"),
        ({"extra_headers": 7}, "SDK"),
        ({"timeout": "soon"}, "SDK"),
    ],
)
async def test_options_that_cannot_be_are_refused_before_anything_is_sent(
    server: WireProvider, options: dict[str, Any], field: str
) -> None:
    async with OPENAI.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request(provider_options=options))))
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.INVALID_REQUEST, False)
    assert field in error.message
    assert server.requests == []


async def test_n_of_one_is_no_harm(server: WireProvider) -> None:
    body, _ = await sent(server, provider_options={"n": 1})
    assert body["n"] == 1


async def test_a_second_choice_is_refused(server: WireProvider) -> None:
    choices = [{"index": 1, "delta": {"content": "b"}, "finish_reason": None}]
    server.script(Reply.events(openai_chunk({"content": "a"}) + openai_chunk(choices=choices)))
    async with OPENAI.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert text_of(events) == "a"
    assert error is not None
    assert error.failure is FailureCode.INVALID_REQUEST


async def test_without_a_key_it_is_upstream_auth() -> None:
    """Building it is no error: a worker may serve other providers."""
    provider = OpenAIProvider()
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
    provider = OpenAIProvider(name="local")
    server.script(Reply.events(openai_stream("ok")))
    events, _ = await collect(provider.stream(Call(request())))
    await provider.aclose()
    assert text_of(events) == "ok"
    assert server.requests[0].headers["authorization"] == "Bearer from-env"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("SAFETY", FinishReason.CONTENT_FILTER),
        ("eos", FinishReason.STOP),
    ],
)
async def test_finish_reasons(server: WireProvider, reason: str, finish: FinishReason) -> None:
    events = await play(server, openai_stream("a", finish_reason=reason))
    assert events[-1] == Finish(finish_reason=finish, usage=None)


async def test_usage_comes_behind_the_finish_reason(server: WireProvider) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 4}}
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    events = await play(server, openai_stream("a", usage=usage | details))
    counted = Usage(input_tokens=10, output_tokens=20, cached_tokens=3, reasoning_tokens=4)
    assert events[1:] == [UsageReport(usage=counted), Finish(finish_reason=FinishReason.STOP, usage=counted)]


async def test_usage_in_every_chunk_is_reported_once(server: WireProvider) -> None:
    """As some compatible servers send it: the last one counts."""
    frames = [
        openai_chunk({"content": "ab"[at]}, usage={"prompt_tokens": 1, "completion_tokens": at + 1}) for at in range(2)
    ]
    stream = b"".join([*frames, openai_chunk(finish_reason="stop"), sse("[DONE]")])
    events = await play(server, stream)
    reports = [event for event in events if isinstance(event, UsageReport)]
    assert reports == [UsageReport(usage=Usage(input_tokens=1, output_tokens=2))]


async def test_parallel_tool_calls(server: WireProvider) -> None:
    """Fragments pass as they come; each call is done once, in order, with what its fragments join to."""
    events = await play(
        server,
        openai_stream(
            tool_calls=[
                [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
                [{"index": 0, "function": {"arguments": '{"a":'}}],
                [{"index": 1, "id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}],
                [{"index": 0, "function": {"arguments": "1}"}}],
            ],
            finish_reason="tool_calls",
        ),
    )
    assert events == [
        ToolCall(index=0, id="c1", name="f", arguments=""),
        ToolCall(index=0, arguments='{"a":'),
        ToolCall(index=1, id="c2", name="g", arguments="{}"),
        ToolCall(index=0, arguments="1}"),
        ToolCallDone(index=0, id="c1", name="f", arguments='{"a":1}'),
        ToolCallDone(index=1, id="c2", name="g", arguments="{}"),
        Finish(finish_reason=FinishReason.TOOL_CALLS, usage=None),
    ]


@pytest.mark.parametrize(
    "fragments",
    [
        [
            {"id": "c1", "function": {"name": "f", "arguments": "[1"}},
            {"function": {"arguments": "]"}},
            {"id": "c2", "function": {"name": "g", "arguments": {"a": 2}}},
        ],
        [
            {"index": 0, "id": "c1", "function": {"name": "f", "arguments": "[1]"}},
            {"index": 0, "id": "c2", "function": {"name": "g", "arguments": '{"a":2}'}},
        ],
        [
            {"index": 5, "id": "c1", "function": {"name": "f", "arguments": "[1"}},
            {"index": 5, "id": "c1", "function": {"name": "f", "arguments": "]"}},
            {"index": 9, "id": "c2", "function": {"name": "g", "arguments": '{"a":2}'}},
        ],
    ],
    ids=["no index, arguments as an object", "always index 0", "any index, repeated ids"],
)
async def test_tool_calls_of_servers_that_count_their_own_way(
    server: WireProvider, fragments: list[dict[str, Any]]
) -> None:
    events = await play(server, openai_stream(tool_calls=[[fragment] for fragment in fragments]))
    assert [event for event in events if isinstance(event, ToolCallDone)] == [
        ToolCallDone(index=0, id="c1", name="f", arguments="[1]"),
        ToolCallDone(index=1, id="c2", name="g", arguments='{"a":2}'),
    ]
    assert isinstance(events[-1], Finish)
    assert events[-1].finish_reason is FinishReason.TOOL_CALLS, "a forced call says stop"


async def test_a_tool_call_without_arguments_or_id_is_still_whole(server: WireProvider) -> None:
    events = await play(server, openai_stream(tool_calls=[[{"index": 0, "function": {"name": "f"}}]]))
    assert events[:-1] == [
        ToolCall(index=0, name="f", arguments=""),
        ToolCall(index=0, arguments="{}"),
        ToolCallDone(index=0, id="call_0", name="f", arguments="{}"),
    ]


async def test_the_deprecated_function_call_is_a_tool_call(server: WireProvider) -> None:
    frames = [openai_chunk({"function_call": part}) for part in ({"name": "f", "arguments": "["}, {"arguments": "]"})]
    events = await play(server, b"".join([*frames, openai_chunk(finish_reason="function_call"), sse("[DONE]")]))
    assert ToolCallDone(index=0, id="call_0", name="f", arguments="[]") in events


async def test_a_refusal_is_told_apart(server: WireProvider) -> None:
    stream = openai_chunk({"refusal": "I can"}) + openai_chunk({"refusal": "not"}) + openai_stream()
    events = await play(server, stream)
    assert text_of(events, DeltaKind.REFUSAL) == "I cannot"
    assert text_of(events) == ""


async def test_content_as_typed_parts(server: WireProvider) -> None:
    """As reasoning models of some servers send it."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [thinking, {"type": "text", "text": "ok"}, {"type": "reference", "reference_ids": [1]}]
    events = await play(server, openai_chunk({"content": parts}) + openai_stream())
    assert events[:2] == [Delta(text="hm", kind=DeltaKind.REASONING), Delta(text="ok")]


async def test_an_error_event_without_an_error_object_is_an_error(server: WireProvider) -> None:
    server.script(Reply.events(sse({"message": "too many", "code": 429}, event="error")))
    async with OPENAI.connect(server) as provider:
        _, error = await collect(provider.stream(Call(request())))
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.RATE_LIMITED, True)


@pytest.mark.parametrize(
    "chunk",
    [
        openai_chunk({"content": 7}),
        openai_chunk({"content": {"text": "a"}}),
        openai_chunk({"content": ["a"]}),
        openai_chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": 7}}]}),
        openai_chunk(usage={"prompt_tokens": "many"}),
        openai_chunk(finish_reason=7),  # type: ignore[arg-type]
    ],
)
async def test_fields_of_the_wrong_type_are_an_error(server: WireProvider, chunk: bytes) -> None:
    """Not a defect of ours, and never an event that cannot be stored."""
    server.script(Reply.events(chunk))
    async with OPENAI.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert events == []
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_ERROR

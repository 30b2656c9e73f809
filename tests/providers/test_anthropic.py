"""Messages: what is asked, and what the events mean."""

from __future__ import annotations

from typing import Any

import pytest

from broker.events import Delta, FailureCode, FinishReason, Part, ToolCall, ToolCallDone, Usage, UsageReport
from tests.providers.wires import ANTHROPIC, API_KEY, collect, request, text_of
from tests.support.wire_provider import Reply, WireProvider, anthropic_block, anthropic_event, anthropic_stream
from worker.providers.anthropic import DEFAULT_MAX_TOKENS, AnthropicProvider, create_arguments
from worker.providers.base import Call, Finish, ProviderEvent


async def play(server: WireProvider, stream: bytes) -> list[ProviderEvent]:
    server.script(Reply.events(stream))
    async with ANTHROPIC.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    return events


async def sent(server: WireProvider, **fields: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the request that a provider makes of `fields`."""
    server.script(Reply.events(anthropic_stream("ok")))
    async with ANTHROPIC.connect(server) as provider:
        _, error = await collect(provider.stream(Call(request(**fields))))
    assert error is None
    return server.requests[-1].body, server.requests[-1].headers


async def test_the_least_request(server: WireProvider) -> None:
    """`max_tokens` is mandatory on this wire."""
    body, headers = await sent(server)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": DEFAULT_MAX_TOKENS,
        "stream": True,
    }
    assert server.requests[0].path == "/v1/messages"
    assert API_KEY in {headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer ")}


async def test_everything_a_request_can_say(server: WireProvider) -> None:
    """The chat completions shape, translated."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": [1, "é"]}'}}
    bare = {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parameters = {"type": "object", "properties": {"a": {"type": "array"}}}
    body, _ = await sent(
        server,
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "see 🚀"}, image]},
            {"role": "assistant", "content": "", "tool_calls": [call, bare]},
            {"role": "tool", "tool_call_id": "c1", "content": "a rocket"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}, image]},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "Well", "tool_calls": [bare]},
            {"role": "tool", "tool_call_id": "c2", "content": "one"},
            {"role": "assistant", "content": "So"},
        ],
        max_output_tokens=5,
        temperature=0.0,
        top_p=0.5,
        stop=["END"],
        tools=[
            {"type": "function", "function": {"name": "look", "description": "d", "parameters": parameters}},
            {"type": "function", "function": {"name": "now"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        tool_choice={"type": "function", "function": {"name": "look"}},
    )
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    translated = {"type": "image", "source": source}
    assert body == {
        "model": "m",
        "system": "be brief\n\nbe kind",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "see 🚀"}, translated]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {"a": [1, "é"]}},
                    {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "a rocket"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "c2",
                        "content": [{"type": "text", "text": "noon"}, translated],
                    },
                    {"type": "text", "text": "and?"},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Well"},
                    {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c2", "content": "one"}]},
            {"role": "assistant", "content": "So"},
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "stop_sequences": ["END"],
        "tools": [
            {"name": "look", "description": "d", "input_schema": parameters},
            {"name": "now", "input_schema": {"type": "object", "properties": {}}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "tool", "name": "look"},
        "stream": True,
    }


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "tool", "name": "x"}, {"type": "tool", "name": "x"}),
    ],
)
def test_tool_choice(choice: Any, wanted: dict[str, str]) -> None:
    assert create_arguments(Call(request(tool_choice=choice)))["tool_choice"] == wanted


def test_system_messages_with_typed_parts_stay_blocks() -> None:
    """So that marks on them (for caching) are kept."""
    marked = {"type": "text", "text": "long", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "system", "content": [marked]}, {"role": "system", "content": "short"}]
    arguments = create_arguments(Call(request(messages=messages)))
    assert arguments["system"] == [marked, {"type": "text", "text": "short"}]
    assert arguments["messages"] == []


def test_images_by_url() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    arguments = create_arguments(Call(request(messages=[{"role": "user", "content": [part]}])))
    source = {"type": "url", "url": "https://example.org/a.png"}
    assert arguments["messages"][0]["content"] == [{"type": "image", "source": source}]


async def test_provider_options_reach_the_sdk(server: WireProvider) -> None:
    """Those it knows as they are, the others in the body; they win over the request's own fields."""
    thinking = {"type": "enabled", "budget_tokens": 1024}
    body, headers = await sent(
        server,
        temperature=0.1,
        max_output_tokens=5,
        provider_options={
            "thinking": thinking,
            "max_tokens": 9000,
            "temperature": 1.0,
            "top_k": 3,
            "extra_body": {"new_field": True},
            "extra_headers": {"anthropic-beta": "b1"},
        },
    )
    assert body["thinking"] == thinking
    assert (body["max_tokens"], body["temperature"], body["top_k"], body["new_field"]) == (9000, 1.0, 3, True)
    assert headers["anthropic-beta"] == "b1"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"provider_options": {"stream": False}}, "provider_options.stream"),
        ({"provider_options": {"extra_body": {"model": "x"}}}, "provider_options.model"),
        ({"provider_options": {"extra_headers": {"x": 7}}}, "SDK"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"arguments": "{"}}]}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
            "base64",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    ],
)
async def test_requests_that_cannot_be_are_refused_before_anything_is_sent(
    server: WireProvider, fields: dict[str, Any], field: str
) -> None:
    async with ANTHROPIC.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request(**fields))))
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.INVALID_REQUEST, False)
    assert field in error.message
    assert server.requests == []


async def test_without_a_key_it_is_upstream_auth(server: WireProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building it is no error, and nothing is sent."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    provider = AnthropicProvider()
    events, error = await collect(provider.stream(Call(request())))
    await provider.aclose()
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_AUTH, False)
    assert server.requests == []


async def test_key_and_base_url_come_from_the_environment(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-env")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    provider = AnthropicProvider()
    server.script(Reply.events(anthropic_stream("ok")))
    events, _ = await collect(provider.stream(Call(request())))
    await provider.aclose()
    assert text_of(events) == "ok"
    assert "from-env" in str(server.requests[0].headers)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("pause_turn", FinishReason.LENGTH),
        ("tool_use", FinishReason.TOOL_CALLS),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("something_new", FinishReason.STOP),
    ],
)
async def test_stop_reasons(server: WireProvider, reason: str, finish: FinishReason) -> None:
    events = await play(server, anthropic_stream("a", stop_reason=reason))
    assert isinstance(events[-1], Finish)
    assert events[-1].finish_reason is finish


async def test_events_need_no_names(server: WireProvider) -> None:
    """A gateway may drop the `event:` lines; the data says it all."""
    assert await play(server, anthropic_stream("Hello", named=False)) == await play(server, anthropic_stream("Hello"))


async def test_usage_is_cumulative_and_includes_the_cache(server: WireProvider) -> None:
    """Input is counted as the other providers count it: with what was cached."""
    start = {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    events = await play(server, anthropic_stream("a", input_usage=start, output_tokens=9))
    reports = [event.usage for event in events if isinstance(event, UsageReport)]
    assert reports == [
        Usage(input_tokens=125, output_tokens=1, cached_tokens=100),
        Usage(input_tokens=125, output_tokens=9, cached_tokens=100),
    ]
    assert events[-1] == Finish(finish_reason=FinishReason.STOP, usage=reports[-1])


async def test_tool_calls_between_texts(server: WireProvider) -> None:
    """Calls are counted among themselves, whatever blocks stand before them."""
    tools = [("t1", "f", ["", '{"a":', "1}"]), ("t2", "g", [])]
    stream = anthropic_stream("Let me see", thinking=["hm"], tools=tools, stop_reason="tool_use")
    events = await play(server, stream)
    calls = [event for event in events if isinstance(event, ToolCall | ToolCallDone)]
    assert calls == [
        ToolCall(index=0, id="t1", name="f", arguments=""),
        ToolCall(index=0, arguments='{"a":'),
        ToolCall(index=0, arguments="1}"),
        ToolCallDone(index=0, id="t1", name="f", arguments='{"a":1}'),
        ToolCall(index=1, id="t2", name="g", arguments=""),
        ToolCall(index=1, arguments="{}"),
        ToolCallDone(index=1, id="t2", name="g", arguments="{}"),
    ]
    assert text_of(events) == "Let me see"


async def test_tool_input_given_at_once_is_not_lost(server: WireProvider) -> None:
    block = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    events = await play(server, anthropic_block(0, block) + anthropic_event("message_stop"))
    assert ToolCallDone(index=0, id="t1", name="f", arguments='{"a":1}') in events


async def test_tools_that_run_at_the_provider_are_nobodys_call(server: WireProvider) -> None:
    fragment = {"type": "input_json_delta", "partial_json": '{"query": "x"}'}
    search = anthropic_block(0, {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}, fragment)
    found = anthropic_block(1, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []})
    citation = {"type": "citations_delta", "citation": {"type": "char_location"}}
    text = anthropic_block(2, {"type": "text", "text": ""}, {"type": "text_delta", "text": "found"}, citation)
    events = await play(server, search + found + text + anthropic_event("message_stop"))
    assert events == [
        Delta(text="found"),
        Part(type="citation", data={"type": "char_location"}),
        Finish(finish_reason=FinishReason.STOP, usage=None),
    ]


async def test_unknown_events_and_blocks_are_passed_over(server: WireProvider) -> None:
    unknown = anthropic_event("something_new", a=1) + anthropic_block(0, {"type": "new_block"}, {"type": "new_delta"})
    events = await play(server, unknown + anthropic_stream("ok"))
    assert text_of(events) == "ok"

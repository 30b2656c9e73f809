"""What bodies of the OpenAI dialects become, and what is refused: every field is taken, or named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import chat_request, responses_request
from api.dialects.openai_errors import shape
from api.dialects.openai_request import EXTRAS, resolve
from api.dialects.responses_events import ResponseStream
from api.dialects.responses_input import Before
from api.dialects.responses_items import input_items
from api.dialects.responses_object import subject_of
from api.problem import Problem
from api.request_model import Submit
from broker.generation import Request
from broker.settings import Settings
from tests.dialects.logs import CREATED_MS, GENERATION, NAMED, blocks

SETTINGS = Settings(
    providers=("sim", "openai", "openai_responses", "anthropic", "local"),
    openai_compatible={"local": {"base_url": "http://127.0.0.1:1/v1", "api_key_env": None}},
    openai_dialect_models={"gpt-*": "openai_responses", "fast": "anthropic/claude-x"},
)
USER = [{"role": "user", "content": "Hello?"}]
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def responses(**fields: Any) -> Request:
    """The job of a response."""
    return responses_request.job_of({"model": "sim-1", "input": "Hello?", **fields}, SETTINGS)


def chat(**fields: Any) -> Request:
    """The job of a completion."""
    return chat_request.job_of({"model": "sim-1", "messages": USER, **fields}, SETTINGS)


def refusals(make: Any, **fields: Any) -> dict[str, str]:
    """What is wrong with a body: by the names of the client's fields."""
    with pytest.raises(Problem) as refused:
        make(**fields)
    assert shape(refused.value).status == 400
    return {item.field: item.message for item in refused.value.fields}


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("gpt-9", ("openai_responses", "gpt-9")),
        ("fast", ("anthropic", "claude-x")),
        ("anthropic/claude-y", ("anthropic", "claude-y")),
        ("local/meta/llama", ("local", "meta/llama")),
        ("meta/llama", ("sim", "meta/llama")),
        ("sim-1", ("sim", "sim-1")),
    ],
)
def test_a_model_names_its_provider(model: str, target: tuple[str, str]) -> None:
    """By the deployment's own names first, then by its provider, else it is the default's."""
    assert resolve(model, SETTINGS) == target
    job = responses(model=model)
    assert (job.provider, job.model) == target
    assert subject_of(GENERATION, CREATED_MS, job).shown["model"] == model


def test_items_become_the_conversation_that_they_tell() -> None:
    """What the assistant thought, said and called in a row is one message, and its thoughts come first."""
    stream = ResponseStream(subject_of(GENERATION, CREATED_MS, responses()))
    stream.begin()
    (thought,) = [
        event.data["item"]
        for event in blocks(stream.encode(NAMED["reasoning"]))
        if event.kind == "response.output_item.done" and event.data["item"]["type"] == "reasoning"
    ]
    job = responses(
        model="anthropic/claude-y",
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            thought,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "assistant", "content": "Rain and sun."},
            {"role": "user", "content": "Thanks."},
        ],
        tools=[TOOL],
    )
    block = {"type": "thinking", "thinking": "Rain, I guess.", "signature": "c2ln"}
    calls = [
        {"id": call, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for call in ("c1", "c2")
    ]
    said = [block, {"type": "text", "text": "I look."}]
    assert job.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": said, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "sun"}]},
        {"role": "assistant", "content": "Rain and sun."},
        {"role": "user", "content": "Thanks."},
    ]
    subject = subject_of(GENERATION, CREATED_MS, Request.decode(job.encode()))
    assert subject.shown["instructions"] == "Be brief."
    items = input_items(subject, job)
    assert [item["type"] for item in items] == [
        *("message", "message", "function_call", "function_call"),
        *("function_call_output", "function_call_output", "message", "message"),
    ]
    assert len({item["id"] for item in items}) == len(items)


def test_a_response_goes_on_from_the_one_before() -> None:
    """Its conversation, its output, then the new input; its instructions are not kept. Reasoning goes back, a call that
    never became whole does not."""
    first = responses(model="anthropic/claude-y", instructions="Be brief.", input="Weather?", tools=[TOOL])
    subject = subject_of(GENERATION, CREATED_MS, first)
    stream = ResponseStream(subject, mute=True)
    stream.encode([*NAMED["reasoning"][:-2], *NAMED["calls"][2:]])
    output = stream.response()["output"]
    half = {"type": "function_call", "call_id": "x", "name": "f", "arguments": "{", "status": "incomplete"}
    before = Before(messages=first.messages[1:], output=[*output, half])
    given = [{"type": "function_call_output", "call_id": f"call_{number}", "output": "rain"} for number in (0, 1)]
    body = {"model": "anthropic/claude-y", "instructions": "Be kind.", "input": given, "previous_response_id": "resp_1"}
    job = responses_request.job_of(body, SETTINGS, before)
    calls = [
        {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
        {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    block = {"type": "thinking", "thinking": "Rain, I guess.", "signature": "c2ln"}
    assert job.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [block, {"type": "text", "text": "Rain."}], "tool_calls": calls},
        *({"role": "tool", "tool_call_id": f"call_{number}", "content": "rain"} for number in (0, 1)),
    ]
    subject = subject_of(GENERATION, CREATED_MS, job)
    assert subject.shown["previous_response_id"] == "resp_1"
    assert [item["type"] for item in input_items(subject, job)] == ["function_call_output"] * 2


def test_options_reach_the_provider_in_its_own_words() -> None:
    """The same wish to each wire of OpenAI's, from each of its dialects."""
    schema = {"name": "s", "schema": {"type": "object"}, "strict": True}
    form = {"type": "json_schema", **schema}
    asked: dict[str, Any] = {"reasoning": {"effort": "low"}, "text": {"format": form}, "user": "u"}
    assert responses(model="gpt-9", **asked).provider_options == asked
    in_chat = {
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": schema},
        "user": "u",
    }
    assert responses(model="openai/x", **asked).provider_options == in_chat
    assert chat(model="openai/x", **in_chat).provider_options == in_chat
    assert chat(model="gpt-9", **in_chat).provider_options == asked
    extra = {"seed": 3}
    assert chat(model="local/x", legato={"provider_options": extra}, user="u").provider_options == extra | {"user": "u"}


def test_what_needs_nothing_done_is_taken_everywhere() -> None:
    """SDKs and frameworks send many fields that say what holds anyway."""
    neutral: dict[str, Any] = {
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "store": True,
        "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "text"}},
        "service_tier": "auto",
        "reasoning": None,
        "previous_response_id": None,
        "top_logprobs": 0,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    assert responses(**neutral).provider_options == {}
    neutral = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "store": False}
    neutral |= {"response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": True, "user": None}
    assert chat(**neutral).provider_options == {}


def test_what_only_legato_knows_stands_in_an_object_of_its_own() -> None:
    """Every field of a native submit that the dialect does not say itself."""
    job = responses(legato={"recovery": "fail", "max_attempts": 5, "ttl_seconds": 7, "thread": "t"}, store=False)
    assert (job.recovery.value, job.max_attempts, job.ttl_seconds, job.thread) == ("fail", 5, 7, "t")
    assert responses(store=False).ttl_seconds == responses_request.UNSTORED_SECONDS
    assert set(Submit.model_fields) >= EXTRAS >= {"recovery", "on_disconnect", "provider_options", "fallbacks"}


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (responses, {"model": None}, "model"),
    (responses, {"model": 3}, "model"),
    (responses, {"input": None}, "input"),
    (responses, {"input": []}, "input"),
    (responses, {"input": [3]}, "input[0]"),
    (responses, {"input": [{"role": "usr", "content": "x"}]}, "input[0].role"),
    (responses, {"input": [{"role": "user", "content": "x", "shoe": 1}]}, "input[0].shoe"),
    (responses, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    (responses, {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
    (
        responses,
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0]",
    ),
    (
        responses,
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]},
        "input[0].content[0].image_url.url",
    ),
    (responses, {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0].tool_call_id"),
    (
        responses,
        {"input": [{"type": "reasoning", "encrypted_content": "gAAA", "summary": []}]},
        "input[0].encrypted_content",
    ),
    (responses, {"instructions": [1]}, "instructions"),
    (responses, {"temperature": 3}, "temperature"),
    (responses, {"max_output_tokens": "x"}, "max_output_tokens"),
    (responses, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (responses, {"tools": [{"type": "function"}]}, "tools[0].name"),
    (responses, {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
    (responses, {"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    (responses, {"metadata": {"a": 1}}, "metadata.a"),
    (responses, {"background": "yes"}, "background"),
    (responses, {"conversation": "c"}, "conversation"),
    (responses, {"prompt": {"id": "p"}}, "prompt"),
    (responses, {"include": ["message.output_text.logprobs"]}, "include[0]"),
    (
        responses,
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    (responses, {"reasoning": {"effort": "low"}}, "reasoning.effort"),
    (responses, {"model": "openai/x", "reasoning": {"summary": "auto"}}, "reasoning.summary"),
    (responses, {"text": {"format": {"type": "json_object"}}}, "text.format"),
    (responses, {"parallel_tool_calls": False}, "parallel_tool_calls"),
    (responses, {"truncation": "auto"}, "truncation"),
    (responses, {"user": "u"}, "user"),
    (responses, {"max_tool_calls": 3}, "max_tool_calls"),
    (responses, {"temprature": 1}, "temprature"),
    (responses, {"legato": {"tool_mode": "server"}}, "legato.tool_mode"),
    (responses, {"legato": {"recovery": "maybe"}}, "legato.recovery"),
    (responses, {"legato": {"provider_options": {"tokns": 3}}}, "legato.provider_options.tokns"),
    (responses, {"legato": 3}, "legato"),
    (
        responses,
        {"model": "gpt-9", "user": "u", "legato": {"provider_options": {"user": "v"}}},
        "legato.provider_options.user",
    ),
    (chat, {"messages": None}, "messages"),
    (chat, {"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
    (chat, {"messages": "x"}, "messages"),
    (chat, {"n": 2}, "n"),
    (chat, {"logprobs": True}, "logprobs"),
    (chat, {"store": True}, "store"),
    (chat, {"modalities": ["audio"]}, "modalities"),
    (chat, {"functions": []}, "functions"),
    (chat, {"seed": 1}, "seed"),
    (chat, {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    (chat, {"max_tokens": 0}, "max_tokens"),
    (chat, {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    (
        chat,
        {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "o"}}},
        "tool_choice.function.name",
    ),
    (chat, {"response_format": {"type": "json_object"}}, "response_format"),
    (chat, {"stream_options": {"include_usage": True}}, "stream_options"),
    (chat, {"model": "gpt-9", "seed": 1}, "seed"),
    (chat, {"shoe": 1}, "shoe"),
]


@pytest.mark.parametrize(("make", "fields", "param"), REFUSED, ids=[f"{m.__name__}-{p}" for m, _, p in REFUSED])
def test_what_is_not_supported_is_refused_by_name(make: Any, fields: dict[str, Any], param: str) -> None:
    """Never ignored."""
    assert param in refusals(make, **fields)


def test_one_answer_names_everything_that_is_wrong() -> None:
    """Each field once."""
    wrong = refusals(responses, shoe=1, temperature=9, input=[{"role": "usr", "content": "x"}], legato={"a": 1})
    assert list(wrong) == ["shoe", "legato.a", "temperature", "input[0].role"]


def test_an_answer_that_is_given_back_is_understood() -> None:
    """As SDKs write it: nulls, and what only answers hold, mean nothing; reasoning goes back."""
    details = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]
    message = {
        **{"role": "assistant", "content": "Hi.", "refusal": None, "annotations": [], "audio": None},
        **{"function_call": None, "tool_calls": None, "reasoning_content": "Hm."},
        "reasoning_details": [detail | {"index": 3} for detail in details],  # as they came with a stream
    }
    job = chat(messages=[*USER, message, *USER])
    assert job.messages[1] == {"role": "assistant", "content": [*details, {"type": "text", "text": "Hi."}]}


def test_a_request_of_an_older_version_has_no_dialect() -> None:
    """What is stored already is read: as a job of the native dialect, which can be looked at as a response too."""
    old = Request.decode(b'{"provider":"sim","model":"m","messages":[],"recovery":"restart","priority":"batch"}')
    assert old.dialect == {}
    subject = subject_of(GENERATION, CREATED_MS, old)
    assert (subject.shown["model"], subject.background) == ("sim/m", True)


_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(
        [
            "",
            "auto",
            "function",
            "message",
            "user",
            "assistant",
            "json_schema",
            "input_text",
            "reasoning",
            "legato:e30=",
            "x",
        ]
    )
)
_names = st.sampled_from(
    ["type", "role", "content", "text", "name", "function", "id", "call_id", "output", "format", "summary", "effort"]
) | st.sampled_from(["encrypted_content", "arguments", "image_url", "include_usage", "provider_options", "json_schema"])
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("module", [responses_request, chat_request], ids=["responses", "chat"])
@given(st.data())
def test_no_body_is_more_than_refused(module: Any, data: st.DataObject) -> None:
    """Whatever stands in whatever field: a job, or a problem that names fields."""
    fields = data.draw(st.lists(st.sampled_from(sorted(module._KNOWN)), max_size=5, unique=True))
    body = {"model": data.draw(st.sampled_from(["sim-1", "gpt-9", "openai/x"])), "input": "x", "messages": USER}
    body = {name: body[name] for name in ("model", "input" if module is responses_request else "messages")}
    body |= {name: data.draw(_values) for name in fields}
    try:
        job = module.job_of(body, SETTINGS)
    except Problem as problem:
        named = [bool(item.field and item.message) for item in problem.fields]
    else:
        subject = subject_of(GENERATION, CREATED_MS, Request.decode(job.encode()))
        assert ResponseStream(subject).begin()
        named = [bool(item["id"]) for item in input_items(subject, job)]
    assert named
    assert all(named)

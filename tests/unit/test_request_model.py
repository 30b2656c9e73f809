"""What a submit may say: everything that is wrong is named at once, in plain words, and what is right is kept whole."""

from __future__ import annotations

import base64
import re
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from api.json_schema import wrong_schema
from api.problem import Problem
from api.request_model import Submit
from api.submit import schema, validate
from broker.generation import Delivery, Filter, Request, Target, ToolMode
from broker.settings import Settings

SETTINGS = Settings(
    providers="sim,openai,openai_responses,anthropic,local",  # type: ignore[arg-type]
    max_image_bytes=4096,
    webhooks={"mine": {"url": "https://example.org/hooks", "secret_env": "SECRET", "asked": True}},  # type: ignore[dict-item]
)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 40
IMAGES = {"png": PNG, "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a..", "webp": b"RIFF\1\2\3\4WEBPVP8 "}

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"word": "a"}'}}

PLAIN: dict[str, Any] = {"provider": "local", "model": "m", "messages": [{"role": "user", "content": "hi"}]}

#: Every field, none at its default.
FULL: dict[str, Any] = {
    "provider": "anthropic",
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi", "cache_control": None},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
                {"type": "video", "odd": {"a": None}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL, {"id": "call_2", "type": "custom", "custom": {}}]},
        {"role": "tool", "content": "a letter", "tool_call_id": "call_1", "is_error": False},
        {"role": "assistant", "content": "", "name": "me"},
    ],
    "max_output_tokens": 9000,
    "max_output_characters": 400,
    "temperature": 1,
    "top_p": 0.5,
    "stop": "END",
    "tools": [TOOL, {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "tool_mode": "interactive",
    "max_tool_rounds": 64,
    "tool_timeout_seconds": 0.5,
    "provider_options": {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "fallbacks": [
        {"provider": "anthropic", "model": "n", "provider_options": {"thinking": {"type": "disabled"}}},
        {"provider": "local", "model": "m"},
        {"provider": "anthropic", "model": "o"},
    ],
    "transforms": ["redact.mail", {"name": "upper", "options": {"a": 1}}],
    "validators": ["json"],
    "delivery": {"unit": "word", "max_chars": 100, "flush_ms": 50},
    "thread": "t",
    "thread_policy": "interrupt",
    "recovery": "fail",
    "max_attempts": 2,
    "on_disconnect": {"policy": "cancel", "grace_seconds": 5},
    "timeout_seconds": 60,
    "stall_seconds": 60,
    "priority": "batch",
    "ttl_seconds": 60,
    "webhook": {"url": "https://example.org/hooks/7"},
    "metadata": {"a": 1},
}


def wrong(body: Any) -> dict[str, str]:
    """Field to message of the 422, in its order; empty where there is none."""
    try:
        validate(body, SETTINGS)
    except Problem as problem:
        return {item.field: item.message for item in problem.fields}
    return {}


def shown(value: Any) -> str:
    return ascii(str(sorted(value) if isinstance(value, set) else value))[:60]


def names(text: str) -> list[str]:
    return text.split()


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: object) -> dict[str, Any]:
    return user({"type": "image_url", "image_url": {"url": url}})


def data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}]}


def called(**call: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL | call]}]}


# --- what is right ---


def test_every_field_reaches_the_job() -> None:
    job = validate(deepcopy(FULL), SETTINGS).job()
    assert job.tool_mode is ToolMode.INTERACTIVE
    assert (job.max_tool_rounds, job.tool_timeout_seconds, job.max_output_characters) == (64, 0.5, 400)
    assert job.fallbacks == [
        Target(provider="anthropic", model="n", provider_options={"thinking": {"type": "disabled"}}),
        Target(provider="local", model="m"),
        Target(provider="anthropic", model="o", provider_options=FULL["provider_options"]),
    ]
    assert job.transforms == [Filter(name="redact.mail"), Filter(name="upper", options={"a": 1})]
    assert job.validators == [Filter(name="json")]
    assert job.delivery == Delivery(unit="word", max_chars=100, flush_ms=50)
    assert job.stop == ["END"]
    assert job.tools == FULL["tools"]
    assert job.tool_choice == FULL["tool_choice"]
    assert job.grace_seconds == 5
    default = Request(provider="x", model="x", messages=[])
    same = [name for name in Request.__slots__ if getattr(job, name) == getattr(default, name)]
    assert same == ["webhooks", "dialect"], "a field of the job that no field of the submit sets"
    assert Request.decode(job.encode()) == job


def test_what_is_left_out_is_the_default_of_the_job() -> None:
    expected = Request(provider="local", model="m", messages=PLAIN["messages"])
    assert validate(PLAIN, SETTINGS).job() == expected


def test_messages_are_kept_as_they_came() -> None:
    """Nulls that stand for nothing fall away; what a part holds is the provider's."""
    job = validate(deepcopy(FULL), SETTINGS).job()
    expected = deepcopy(FULL["messages"])
    del expected[2]["content"]
    assert job.messages == expected


def test_no_tools_are_no_tools() -> None:
    assert validate(PLAIN | {"tools": []}, SETTINGS).job().tools is None


# --- what is wrong ---

WRONG: list[tuple[dict[str, Any], set[str]]] = [
    # new fields
    ({"fallbacks": [{"provider": "local", "model": f"m{n}"} for n in range(9)]}, {"fallbacks"}),
    ({"fallbacks": [{"provider": "nobody", "model": "a"}]}, {"fallbacks.0.provider"}),
    ({"fallbacks": [{"provider": "local"}]}, {"fallbacks.0.model"}),
    ({"fallbacks": [{"provider": "local", "model": ""}]}, {"fallbacks.0.model"}),
    ({"fallbacks": ["local"]}, {"fallbacks.0"}),
    ({"fallbacks": None}, {"fallbacks"}),
    ({"fallbacks": [{"provider": "local", "model": "m"}]}, {"fallbacks.0", "model"}),
    ({"fallbacks": [{"provider": "local", "model": "b"}] * 2}, {"fallbacks.0", "fallbacks.1"}),
    ({"tool_mode": "magic"}, {"tool_mode"}),
    (tool() | {"tool_mode": "server", "max_tool_rounds": 0}, {"max_tool_rounds"}),
    (tool() | {"tool_mode": "server", "max_tool_rounds": 65}, {"max_tool_rounds"}),
    (tool() | {"tool_mode": "interactive", "tool_timeout_seconds": 0}, {"tool_timeout_seconds"}),
    (tool() | {"tool_mode": "interactive", "tool_timeout_seconds": 86_401}, {"tool_timeout_seconds"}),
    ({"delivery": {"unit": "novel"}}, {"delivery.unit"}),
    ({"delivery": {"max_chars": 10_001}}, {"delivery.max_chars"}),
    ({"delivery": {"unit": "word", "flush_ms": 0}}, {"delivery.flush_ms"}),
    ({"transforms": ["A b"]}, {"transforms.0.name"}),
    ({"transforms": [5]}, {"transforms.0"}),
    ({"validators": [{"options": {}}]}, {"validators.0.name"}),
    ({"validators": [{"name": "a", "options": 5}]}, {"validators.0.options"}),
    ({"validators": ["a"] * 17}, {"validators"}),
    ({"max_output_characters": 0}, {"max_output_characters"}),
    ({"stop": [5]}, {"stop.0"}),
    ({"stop": 5}, {"stop"}),
    # tools
    ({"tools": [5]}, {"tools.0"}),
    ({"tools": [{}]}, {"tools.0.type"}),
    ({"tools": [{"type": "function"}]}, {"tools.0.function"}),
    ({"tools": [{"type": "function", "function": {}}]}, {"tools.0.function.name"}),
    ({"tools": [{"type": "function", "function": {"name": "f"}, "x": 1}]}, {"tools.0.x"}),
    (tool(name="a b"), {"tools.0.function.name"}),
    (tool(name="f\n"), {"tools.0.function.name"}),
    (tool(name="f" * 65), {"tools.0.function.name"}),
    (tool(colour=1), {"tools.0.function.colour"}),
    (tool(description=5), {"tools.0.function.description"}),
    (tool(strict="yes"), {"tools.0.function.strict"}),
    (tool(parameters=[]), {"tools.0.function.parameters"}),
    (tool(parameters={"type": "string"}), {"tools.0.function.parameters.type"}),
    (tool(parameters={"properties": {}}), {"tools.0.function.parameters.type"}),
    (
        tool(parameters={"type": "object", "properties": {"x": {"type": "text"}}}),
        {"tools.0.function.parameters.properties.x.type"},
    ),
    (
        tool(parameters={"type": "object", "properties": {"x": {"anyOf": [{"items": 5}]}}, "required": "x"}),
        {"tools.0.function.parameters.properties.x.anyOf.0.items", "tools.0.function.parameters.required"},
    ),
    ({"tools": [TOOL, {"type": "other"}, TOOL]}, {"tools.2.function.name"}),
    ({"tools": [TOOL], "tool_choice": "any"}, {"tool_choice"}),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
        {
            "tool_choice.type",
            "tool_choice.function",
            "tool_choice.name",
        },
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice.function.name"},
    ),
    # messages
    (user(5), {"messages.0.content.0"}),
    (user({"text": "a"}), {"messages.0.content.0.type"}),
    (user({"type": 5}), {"messages.0.content.0.type"}),
    (user({"type": "text"}), {"messages.0.content.0.text"}),
    (user({"type": "text", "text": None}), {"messages.0.content.0.text"}),
    (user({"type": "image_url"}), {"messages.0.content.0.image_url"}),
    (user({"type": "image_url", "image_url": "https://a/b"}), {"messages.0.content.0.image_url"}),
    (
        user({"type": "image_url", "image_url": {"url": "https://a/b", "detail": 5}}),
        {
            "messages.0.content.0.image_url.detail",
        },
    ),
    *(
        (image(url), {"messages.0.content.0.image_url.url"})
        for url in (
            *(
                "",
                5,
                "a.png",
                "ftp://a/b",
                "file:///etc/passwd",
                "javascript:1",
                "http://",
                "http://[",
                "https://a b/c",
            ),
            *("data:", "data:,x", "data:image/png,x", "data:image/svg+xml;base64,AAAA", "data:image/PNG;base64,AAAA"),
            *("data:image/png;base64,", "data:image/png;base64,!!!", "data:image/png;base64,iVBO\nRw0KGgo="),
            *("data:image/png;base64,iVBORw0KGgo", "data:image/png;base64,é", data_url("png", b"GIF89a")),
            *(data_url("jpeg", PNG), data_url("webp", b"RIFFabcdWAVE"), data_url("png", PNG + b"\0" * 4096)),
        )
    ),
    ({"messages": [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]}, {"messages"}),
    ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "call_1"}]}, {"messages.0.tool_call_id"}),
    (
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "call_1"}, *called()["messages"]]},
        {"messages.0.tool_call_id"},
    ),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}, {"messages.0"}),
    ({"messages": [{"role": "user", "content": "a", "is_error": True}]}, {"messages.0"}),
    (called(id=5), {"messages.1.tool_calls.0.id"}),
    (called(id=""), {"messages.1.tool_calls.0.id"}),
    (called(function={}), {"messages.1.tool_calls.0.function.name", "messages.1.tool_calls.0.function.arguments"}),
    *(
        (called(function={"name": "f", "arguments": arguments}), {"messages.1.tool_calls.0.function.arguments"})
        for arguments in ("", "{", "5", "[]", "null", {"a": 1}, '{"a": NaN}', "[" * 2_000)
    ),
    # contradictions
    ({"tool_choice": "auto"}, {"tool_choice", "tools"}),
    ({"tool_choice": "auto", "tools": []}, {"tool_choice", "tools"}),
    ({"tool_mode": "server"}, {"tool_mode", "tools"}),
    ({"tool_mode": "interactive"}, {"tool_mode", "tools"}),
    ({"max_tool_rounds": 8}, {"max_tool_rounds", "tool_mode"}),
    ({"tool_timeout_seconds": 5}, {"tool_timeout_seconds", "tool_mode"}),
    (tool() | {"tool_mode": "server", "tool_timeout_seconds": 5}, {"tool_timeout_seconds", "tool_mode"}),
    ({"stall_seconds": 61, "timeout_seconds": 60}, {"stall_seconds", "timeout_seconds"}),
    ({"on_disconnect": {"grace_seconds": 5}}, {"on_disconnect.grace_seconds", "on_disconnect.policy"}),
    (
        {"on_disconnect": {"policy": "continue", "grace_seconds": 5}},
        {"on_disconnect.grace_seconds", "on_disconnect.policy"},
    ),
    ({"delivery": {"flush_ms": 5}}, {"delivery.flush_ms", "delivery.unit"}),
    ({"recovery": "continue", "transforms": ["a"]}, {"recovery", "transforms"}),
    ({"recovery": "continue", "validators": ["a"]}, {"recovery", "validators"}),
    ({"provider": "openai_responses", "stop": "x"}, {"stop", "provider"}),
    ({"fallbacks": [{"provider": "openai_responses", "model": "a"}], "stop": ["x"]}, {"stop", "fallbacks.0.provider"}),
    ({"provider": "anthropic", "temperature": 1.1}, {"temperature", "provider"}),
    ({"provider": "openai", "provider_options": {"seeed": 1}}, {"provider_options.seeed"}),
    (
        {"fallbacks": [{"provider": "anthropic", "model": "a", "provider_options": {"seed": 1}}]},
        {"fallbacks.0.provider_options.seed"},
    ),
    ({"provider_options": {"model": "x"}}, {"provider_options.model"}),
]


@pytest.mark.parametrize(("change", "fields"), WRONG, ids=shown)
def test_what_is_wrong_is_named_and_nothing_else(change: dict[str, Any], fields: set[str]) -> None:
    assert set(wrong(PLAIN | change)) == fields


@pytest.mark.parametrize(("change", "fields"), WRONG, ids=shown)
def test_messages_speak_of_the_request(change: dict[str, Any], fields: set[str]) -> None:
    for message in wrong(PLAIN | change).values():
        assert not re.search(
            r"[Ii]nput should|[Vv]alue error|pydantic|\bdict|None|True|\bstr\b|\{|not right", message
        ) or ("must match" in message), message
        assert len(message) < 200


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "assistant", "content": "a"}]},
        image("HTTP://Example.org/a?b=c#d"),
        *(image(data_url(kind, data)) for kind, data in IMAGES.items()),
        image(data_url("png", PNG.ljust(4096, b"\0"))),
        tool(parameters={}),
        tool(parameters=None, description=None, strict=None),
        tool(parameters={"type": "object", "properties": {"a": True}, "x-own": 5}),
        tool() | {"tool_choice": "required", "tool_mode": "server", "max_tool_rounds": 1},
        {"delivery": {"max_chars": 10, "flush_ms": 5}},
        {"recovery": "continue", "transforms": [], "validators": []},
        {"stall_seconds": 60, "timeout_seconds": 60},
        {"provider": "openai", "temperature": 2},
        {"provider": "openai_responses", "stop": []},
        {"fallbacks": [{"provider": "local", "model": "other"}, {"provider": "openai", "model": "m"}]},
        called(type="custom"),
    ],
    ids=shown,
)
def test_what_is_right_is_taken(change: dict[str, Any]) -> None:
    assert wrong(PLAIN | change) == {}


def test_everything_is_said_at_once_in_the_order_of_the_body() -> None:
    """Wrong types, unknown fields and contradictions alike; what is missing comes last."""
    body = {
        "zebra": 1,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": 5}}}],
        "top_p": 7,
        "tool_timeout_seconds": 5,
        "messages": [
            {"role": "tool", "content": "a", "tool_call_id": "x"},
            {"role": "user", "content": [{"type": "text"}]},
            {"role": "emperor", "content": "a"},
        ],
        "provider_options": {"colour": 1},
        "provider": "openai",
    }
    assert list(wrong(body)) == [
        "zebra",
        "tools.0.function.parameters.required",
        "top_p",
        "tool_timeout_seconds",
        "messages.0.tool_call_id",
        "messages.1.content.0.text",
        "messages.2.role",
        "provider_options.colour",
        "model",
        "tool_mode",
    ]


def test_an_unknown_field_is_told_the_right_one() -> None:
    assert "did you mean max_output_tokens?" in wrong(PLAIN | {"max_tokens": 5})["max_tokens"]


def test_a_flood_of_problems_is_cut() -> None:
    with pytest.raises(Problem) as caught:
        validate(PLAIN | {f"field_{n}" + "x" * 1_000: n for n in range(5_000)}, SETTINGS)
    assert len(caught.value.fields) == 100
    assert len(caught.value.body()) < 60_000
    assert caught.value.detail.endswith("and more")


NAMES = names(
    "role content type text tool_calls tool_call_id id function name arguments image_url url unit flush_ms max_chars "
    "policy grace_seconds provider model parameters options thinking extra_body extra_headers"
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | st.sampled_from(["local", "tool"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(FULL)), json_values, max_size=6), st.sampled_from([PLAIN, FULL]))
def test_whatever_stands_in_a_field_is_right_or_named(change: dict[str, Any], base: dict[str, Any]) -> None:
    found = wrong(base | change)
    assert all(name and message for name, message in found.items())


# --- schemas ---


def test_the_published_schema_stands_alone_and_takes_what_the_edge_takes() -> None:
    published = schema(Submit)
    Draft202012Validator.check_schema(published)
    assert "$ref" not in str(published)
    validator = Draft202012Validator(published)
    for body in (PLAIN, FULL):
        assert list(validator.iter_errors(body)) == []
    assert list(validator.iter_errors(PLAIN | {"delivery": {"unit": "novel"}}))
    assert list(validator.iter_errors(PLAIN | {"transforms": [5]}))


KEYWORDS = names(
    "$anchor $comment $defs $id $ref $schema additionalProperties allOf anyOf const contains default dependentRequired "
    "dependentSchemas deprecated description else enum examples exclusiveMinimum format if items maxItems maximum "
    "minLength minimum multipleOf not oneOf pattern patternProperties prefixItems properties propertyNames required "
    "then title type unevaluatedItems uniqueItems x-own"
)

schema_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from(
        [0.5, 2.0, -1.0, "object", "string", "a", "b", [], {}, ["a", "b"], ["a", "a"], ["null", "string"]]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS), schema_values, max_size=5))
def test_a_schema_is_one_if_the_metaschema_says_so(value: dict[str, Any]) -> None:
    """With the places of what is wrong. A list as `items` is draft 7's, which is taken, too."""
    found = {item.path for item in wrong_schema((), value)}
    errors = Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(value)
    expected = {tuple(error.absolute_path) for error in errors}
    lists = {path for path in expected if path[-1] == "items" and isinstance(_at(value, path), list)}
    found = {path for path in found if not any(path[: len(top)] == top for top in lists)}
    # Lists of names are said to be wrong as a whole, where the metaschema names each name.
    assert all(any(path[: len(place)] == place for place in found) for path in expected - lists)
    assert all(any(path[: len(place)] == place for path in expected) for place in found)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value

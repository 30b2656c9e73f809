"""The options that the edge lets through are those that the SDKs and `sim` take, and no others."""

from __future__ import annotations

import inspect
from typing import Any

import anthropic
import openai
import pytest
from openai.resources.responses import AsyncResponses

from broker.options import (
    ANTHROPIC_MAX_TOKENS,
    MOST_PROBLEMS,
    RESERVED,
    RESERVED_HEADERS,
    SDK_OPTIONS,
    SIM_OPTIONS,
    Option,
    wrong_options,
)
from worker.providers.anthropic import DEFAULT_MAX_TOKENS
from worker.providers.sim import SimOptions
from worker.providers.wire import RESERVED_OPTIONS

CREATE = {
    "openai": openai.resources.chat.AsyncCompletions.create,
    "openai_responses": AsyncResponses.create,
    "anthropic": anthropic.resources.AsyncMessages.create,
}


def wrong(provider: str, options: dict[str, Any], **request: Any) -> dict[str, str]:
    """Path to message of everything that is wrong."""
    found = wrong_options(provider, request | {"provider_options": options})
    return {".".join(map(str, item.path)): item.message for item in found}


# --- the tables are what the code behind them takes ---


@pytest.mark.parametrize("provider", CREATE)
def test_the_names_are_those_of_the_sdk_that_is_installed(provider: str) -> None:
    assert SDK_OPTIONS[provider] == set(inspect.signature(CREATE[provider]).parameters) - {"self"}


def test_what_the_worker_refuses_is_what_the_edge_refuses() -> None:
    assert RESERVED == RESERVED_OPTIONS


def test_the_default_limit_of_anthropic_is_the_one_that_the_worker_sends() -> None:
    assert ANTHROPIC_MAX_TOKENS == DEFAULT_MAX_TOKENS


def test_the_options_of_sim_are_those_that_it_reads() -> None:
    """Names, types, bounds, and which are required."""
    whole = SimOptions.model_json_schema()

    def described(schema: dict[str, Any], known: Option, *, required: bool) -> Option:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        either = schema.get("anyOf", [schema])
        said = next(item for item in either if item.get("type") != "null")
        return Option(
            kind={"array": "list"}.get(said["type"], said["type"]),
            minimum=said.get("minimum"),
            maximum=said.get("maximum"),
            one_of=tuple(said["enum"]) if "enum" in said else None,
            or_null=len(either) > 1,
            required=required,
            item=described(said["items"], known.item, required=False) if known.item else None,
            fields={
                name: described(item, known.fields[name], required=name in said.get("required", ()))
                for name, item in said["properties"].items()
            }
            if known.fields
            else None,
        )

    top = {name: described(item, SIM_OPTIONS[name], required=False) for name, item in whole["properties"].items()}
    assert top == SIM_OPTIONS


# --- names ---


@pytest.mark.parametrize("provider", CREATE)
def test_an_option_that_the_sdk_takes_is_right(provider: str) -> None:
    options = {name: {} for name in SDK_OPTIONS[provider] - {*RESERVED, "input", "n", "timeout"}}
    assert wrong(provider, options) == {}


def test_a_misspelt_option_is_told_the_right_one() -> None:
    assert (
        "did you mean reasoning_effort?"
        in wrong("openai", {"reasoning_efort": "low"})["provider_options.reasoning_efort"]
    )
    assert "did you mean thinking?" in wrong("anthropic", {"thinkin": {}})["provider_options.thinkin"]
    assert (
        "did you mean tokens_per_second?" in wrong("sim", {"token_per_second": 1})["provider_options.token_per_second"]
    )


def test_what_the_sdk_does_not_know_may_be_sent_by_extra_body() -> None:
    assert "extra_body" in wrong("anthropic", {"zzz": 40})["provider_options.zzz"]
    assert wrong("anthropic", {"extra_body": {"zzz": 40}}) == {}


def test_an_option_that_is_a_field_of_the_request_is_told_so() -> None:
    assert "field of the request" in wrong("anthropic", {"temperature": 1})["provider_options.temperature"]


@pytest.mark.parametrize("provider", ["local", "somebodys_plugin"])
def test_other_providers_take_what_they_like_but_nothing_reserved(provider: str) -> None:
    assert wrong(provider, {"top_k": 5, "colour": {"a": [1]}, "input": 1, "extra_body": {"min_p": 0.1}}) == {}
    assert set(wrong(provider, {"stream": False, "extra_body": {"model": "x"}, "n": 2})) == {
        "provider_options.stream",
        "provider_options.extra_body.model",
        "provider_options.n",
    }
    assert set(wrong(provider, {"extra_headers": {"Authorization": "x"}})) == {
        "provider_options.extra_headers.Authorization"
    }


@pytest.mark.parametrize("provider", [*CREATE, "local"])
@pytest.mark.parametrize("name", RESERVED)
def test_what_the_request_says_cannot_be_said_by_an_option(provider: str, name: str) -> None:
    assert set(wrong(provider, {name: "x"})) == {f"provider_options.{name}"}
    assert set(wrong(provider, {"extra_body": {name: "x"}})) == {f"provider_options.extra_body.{name}"}


def test_a_generation_is_one_answer() -> None:
    assert wrong("openai", {"n": 1}) == {}
    for n in (2, 0, "1", [1], {}):
        assert set(wrong("openai", {"n": n})) == {"provider_options.n"}


# --- headers and the rest of what the SDKs send ---


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key", "HOST", "Content-Length", "OpenAI-Organization"])
def test_a_header_that_says_who_asks_cannot_be_set(name: str) -> None:
    assert name.lower() in RESERVED_HEADERS
    assert set(wrong("openai", {"extra_headers": {name: "x"}})) == {f"provider_options.extra_headers.{name}"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-A", "a\r\nAuthorization: b"), ("X-A", 5), ("X-A", "é"), ("X A", "a"), ("", "a"), ("X\r\n", "")],
)
def test_a_header_that_is_none_is_refused(name: str, value: object) -> None:
    assert set(wrong("anthropic", {"extra_headers": {name: value}})) == {f"provider_options.extra_headers.{name}"}


def test_other_headers_go_through() -> None:
    assert wrong("anthropic", {"extra_headers": {"anthropic-beta": "files-2025", "X-Trace": "a b"}}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("extra_body", 5), ("extra_body", []), ("extra_headers", "x"), ("extra_query", ["a"])),
        *(("timeout", value) for value in ("soon", 0, -1, True, None, 1e9)),
    ],
)
def test_what_every_sdk_takes_has_its_type(name: str, value: object) -> None:
    assert set(wrong("openai", {name: value})) == {f"provider_options.{name}"}


# --- what contradicts ---


@pytest.mark.parametrize(
    ("provider", "options", "request_fields", "named"),
    [
        (
            "openai",
            {"max_tokens": 5},
            {"max_output_tokens": 5},
            {"provider_options.max_tokens", "max_output_tokens"},
        ),
        (
            "anthropic",
            {"extra_body": {"temperature": 1}},
            {"temperature": 0.5},
            {"provider_options.extra_body.temperature", "temperature"},
        ),
        (
            "anthropic",
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"max_output_tokens": 2000},
            {"provider_options.thinking.budget_tokens", "max_output_tokens"},
        ),
        (
            "anthropic",
            {"thinking": {"type": "enabled", "budget_tokens": 4096}},
            {},
            {"provider_options.thinking.budget_tokens", "max_output_tokens"},
        ),
        (
            "anthropic",
            {"thinking": {"type": "enabled", "budget_tokens": 9000}, "max_tokens": 8000},
            {},
            {"provider_options.thinking.budget_tokens", "provider_options.max_tokens"},
        ),
        (
            "openai_responses",
            {"background": True, "store": False},
            {},
            {"provider_options.background", "provider_options.store"},
        ),
        ("sim", {"text": "a", "tokens": 5}, {}, {"provider_options.text", "provider_options.tokens"}),
    ],
)
def test_options_that_contradict_are_both_named(
    provider: str, options: dict[str, Any], request_fields: dict[str, Any], named: set[str]
) -> None:
    assert set(wrong(provider, options, **request_fields)) == named


@pytest.mark.parametrize(
    ("provider", "options", "request_fields"),
    [
        ("openai", {"max_tokens": 5}, {"max_output_tokens": None}),
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"max_output_tokens": 2001}),
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 4095}}, {}),
        ("anthropic", {"thinking": {"type": "adaptive"}}, {"max_output_tokens": 5}),
        ("openai_responses", {"background": True}, {}),
        ("openai_responses", {"background": False, "store": False}, {}),
        ("sim", {"text": None, "tokens": 5, "seed": -3, "first_token_ms": 0.5, "resumable": True}, {}),
        ("sim", {"turns": [{"text": "a"}], "faults": [{"at_token": 0, "kind": "stall", "attempt": None}]}, {}),
    ],
)
def test_what_does_not_contradict_is_right(
    provider: str, options: dict[str, Any], request_fields: dict[str, Any]
) -> None:
    assert wrong(provider, options, **request_fields) == {}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tokens": -1}, "tokens"),
        ({"tokens": 10**9}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"tokens": 1.0}, "tokens"),
        ({"text": 5}, "text"),
        ({"seed": None}, "seed"),
        ({"tokens_per_second": "fast"}, "tokens_per_second"),
        ({"faults": {}}, "faults"),
        ({"faults": [5]}, "faults.0"),
        ({"faults": [{"kind": "error"}]}, "faults.0.at_token"),
        ({"faults": [{"at_token": 0, "kind": "boom"}]}, "faults.0.kind"),
        ({"faults": [{"at_token": 0, "kind": "error", "x": 1}]}, "faults.0.x"),
        ({"turns": [5]}, "turns.0"),
        ({"resumable": 1}, "resumable"),
        ({"messages": []}, "messages"),
    ],
)
def test_an_option_of_sim_has_its_type_and_bounds(options: dict[str, Any], field: str) -> None:
    assert set(wrong("sim", options)) == {f"provider_options.{field}"}


def test_a_flood_of_wrong_options_is_cut() -> None:
    assert len(wrong_options("openai", {"provider_options": {f"x{n}": 1 for n in range(5_000)}})) == MOST_PROBLEMS

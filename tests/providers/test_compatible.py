"""OpenAI-compatible servers by configuration."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from broker.declared import BUILT_IN_PROVIDERS, CompatibleServer
from broker.events import FailureCode
from broker.settings import Settings
from tests.providers.wires import collect, request, text_of
from tests.support.wire_provider import Received, Reply, WireProvider, openai_stream
from worker.providers.base import Call
from worker.providers.registry import KNOWN, build_providers

URL = "http://127.0.0.1:1/v1"

GUIDE: Final = Path(__file__).parents[2] / "docs/how-to/write-a-provider.md"


def configured(monkeypatch: pytest.MonkeyPatch, value: object) -> dict[str, CompatibleServer]:
    """What the settings make of the variable."""
    monkeypatch.setenv("LEGATO_OPENAI_COMPATIBLE", value if isinstance(value, str) else json.dumps(value))
    return Settings().openai_compatible


def test_there_are_none_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEGATO_OPENAI_COMPATIBLE", raising=False)
    assert Settings().openai_compatible == {}


def test_each_server_has_an_address_and_perhaps_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {
        "groq": {"base_url": "https://api.example.com/openai/v1", "api_key_env": "GROQ_API_KEY"},
        "v_llm-2": {"base_url": "http://[::1]:8000/v1", "api_key_env": None},
        "bare": {"base_url": URL},
    }
    assert configured(monkeypatch, servers) == {
        "groq": CompatibleServer(base_url="https://api.example.com/openai/v1", api_key_env="GROQ_API_KEY"),
        "v_llm-2": CompatibleServer(base_url="http://[::1]:8000/v1", api_key_env=None),
        "bare": CompatibleServer(base_url=URL),
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("groq=http://x", "not JSON"),
        ("[]", "not an object"),
        ("null", "not an object"),
        ({"Groq": {"base_url": URL}}, "'Groq' is no name"),
        ({"": {"base_url": URL}}, "'' is no name"),
        ({"a" * 33: {"base_url": URL}}, "is no name"),
        ({"a\n": {"base_url": URL}}, "is no name"),
        ({"openai": {"base_url": URL}}, "'openai' is the name of a provider that is built in"),
        ({"sim": {"base_url": URL}}, "built in"),
        ({"a": URL}, "a: Input should be"),
        ({"a": {}}, "a.base_url: Field required"),
        ({"a": {"base_url": URL, "api_key": "sk-secret"}}, "a.api_key: Extra inputs are not permitted"),
        ({"a": {"base_url": 7}}, "a.base_url: Input should be a valid string"),
        ({"a": {"base_url": "api.example.com/v1"}}, "a.base_url: Value error, not an http:// or https:// URL"),
        ({"a": {"base_url": "ftp://api.example.com"}}, "a.base_url: Value error, not an http"),
        ({"a": {"base_url": "http:///v1"}}, "a.base_url: Value error, not an http"),
        ({"a": {"base_url": "http://x:99999/v1"}}, "a.base_url: Value error, not an http"),
        ({"a": {"base_url": "http://x y/v1"}}, "a.base_url: Value error, not an http"),
        ({"a": {"base_url": "http://[::/v1"}}, "a.base_url: Value error, not an http"),
        ({"a": {"base_url": "https://me:sk-secret@x/v1"}}, "a.base_url: Value error, must not hold credentials"),
        ({"a": {"base_url": URL, "api_key_env": ""}}, "a.api_key_env: String should match"),
        ({"a": {"base_url": URL, "api_key_env": "sk-secret"}}, "a.api_key_env: String should match"),
        ({"a": {"base_url": URL, "api_key_env": 7}}, "a.api_key_env: Input should be a valid string"),
        ({"a": {"base_url": URL, "auth": "basic"}}, "a.auth: Input should be 'bearer', 'api-key' or 'none'"),
        ({"a": {"base_url": URL, "auth": "none", "api_key_env": "K"}}, "a: Value error, auth is none"),
        ({"a": {"base_url": URL, "auth": "api-key"}}, "a: Value error, auth is api-key, so api_key_env must"),
        ({"a": {"base_url": URL, "headers": {"X Y": "z"}}}, "a.headers.X Y.[key]: String should match"),
        ({"a": {"base_url": URL, "headers": {"X": "sk-secret\n"}}}, "a.headers.X: String should match"),
        ({"a": {"base_url": URL, "headers": {"X": 7}}}, "a.headers.X: Input should be a valid string"),
        ({"a": {"base_url": URL, "headers": {"api-key": "sk-secret"}}}, "headers: api-key is a secret; name its"),
        ({"a": {"base_url": URL, "headers": {"AUTHORIZATION": "sk-secret"}}}, "headers: authorization is a secret"),
        ({"a": {"base_url": URL, "header_env": {"X": "sk-secret"}}}, "a.header_env.X: String should match"),
        ({"a": {"base_url": URL, "header_env": {"Authorization": "K"}}}, "header_env: auth is bearer, which sends"),
        ({"a": {"base_url": URL, "headers": {"X": "1"}, "header_env": {"x": "K"}}}, "a header is there twice"),
        ({"a": {"base_url": URL, "query": {"v": 7}}}, "a.query.v: Input should be a valid string"),
        ({"a": {"base_url": URL, "max_tokens_field": "limit"}}, "a.max_tokens_field: Input should be 'max_tokens'"),
        ({"a": {"base_url": URL, "stream_usage": "no"}}, "a.stream_usage: Input should be a valid boolean"),
        ({"a": {"base_url": URL, "continue_style": "x"}}, "a.continue_style: Input should be 'vllm', 'prefill' or"),
    ],
)
def test_what_is_wrong_is_named_and_no_value_repeated(
    monkeypatch: pytest.MonkeyPatch, value: object, said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(monkeypatch, value)
    (error,) = caught.value.errors(include_url=False, include_input=False)
    assert error["loc"] == ("openai_compatible",), "so that the command names the variable"
    assert said in error["msg"]
    assert "sk-secret" not in error["msg"]


def test_the_settings_know_the_names_that_are_taken() -> None:
    assert set(KNOWN) == BUILT_IN_PROVIDERS


async def test_a_server_is_a_provider_among_the_others() -> None:
    """In the order asked; only those asked for, and none where none is configured."""
    servers = {
        "groq": CompatibleServer(base_url=URL, api_key_env="GROQ_API_KEY"),
        "idle": CompatibleServer(base_url=URL),
    }
    built = build_providers(["sim", "groq", "openai"], compatible=servers)
    assert [(name, provider.name) for name, provider in built.items()] == [(name, name) for name in built]
    assert list(built) == ["sim", "groq", "openai"]
    for provider in built.values():
        await provider.aclose()
    with pytest.raises(ValueError, match=r"unknown provider 'x'; there are .*groq, idle"):
        build_providers(["x"], compatible=servers)
    with pytest.raises(ValueError, match="unknown provider 'groq'"):
        build_providers(["groq"])


async def ask(server: CompatibleServer) -> tuple[str, Any]:
    provider = build_providers(["local"], compatible={"local": server})["local"]
    try:
        events, error = await collect(provider.stream(Call(request(max_output_tokens=5))))
    finally:
        await provider.aclose()
    return text_of(events), error


async def test_its_key_comes_from_its_variable(server: WireProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KEY", "from-env")
    server.script(Reply.events(openai_stream("Hel", "lo")))
    assert await ask(CompatibleServer(base_url=server.openai_url, api_key_env="LOCAL_KEY")) == ("Hello", None)
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].headers["authorization"] == "Bearer from-env"
    assert server.requests[0].body["max_tokens"] == 5


async def test_nothing_that_is_meant_for_openai_is_sent_to_it(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key, no organization, no header: whoever runs the other server would read them."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-secret\nX-Gate: gate-secret")
    monkeypatch.setenv("LOCAL_KEY", "its-own")
    server.script(*[Reply.events(openai_stream("ok"))] * 2)
    assert await ask(CompatibleServer(base_url=server.openai_url)) == ("ok", None)
    assert await ask(CompatibleServer(base_url=server.openai_url, api_key_env="LOCAL_KEY")) == ("ok", None)
    assert "secret" not in str([received.headers for received in server.requests])
    assert server.requests[0].headers["authorization"] == "Bearer none"
    assert server.requests[1].headers["authorization"] == "Bearer its-own"


@pytest.mark.parametrize("value", [None, "", " \n"])
async def test_without_its_key_it_is_upstream_auth(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """When it is asked, not before; and OpenAI's key is no substitute."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    if value is not None:
        monkeypatch.setenv("LOCAL_KEY", value)
    text, error = await ask(CompatibleServer(base_url=server.openai_url, api_key_env="LOCAL_KEY"))
    assert text == ""
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_AUTH, False)
    assert "'local'" in error.message
    assert server.requests == []


@pytest.mark.parametrize("value", ["kéy-of-somebody", "key\x00of-somebody", "key\nof-somebody"])
async def test_a_key_that_no_header_can_hold_is_the_operators_fault_and_is_not_told(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"LOCAL_KEY": value})  # no process could have all of these
    text, error = await ask(CompatibleServer(base_url=server.openai_url, api_key_env="LOCAL_KEY"))
    assert text == ""
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, False)
    assert error.message == "local got a request that is not valid HTTP; look at its credentials (LocalProtocolError)"
    assert server.requests == []


async def received(
    server: WireProvider, entry: CompatibleServer, *, partial: str = "", **fields: Any
) -> tuple[Received, str]:
    """What a server of this configuration is sent, and the text that comes of its answer."""
    server.script(Reply.events(openai_stream("ok")))
    models = {"local": ["m"]} if entry.continue_style else None
    provider = build_providers(["local"], compatible={"local": entry}, continue_models=models)["local"]
    assert provider.can_continue(request()) is (models is not None)
    try:
        events, error = await collect(provider.stream(Call(request(**fields), partial=partial)))
    finally:
        await provider.aclose()
    assert error is None
    return server.requests[-1], text_of(events)


async def test_headers_and_query_are_sent(server: WireProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with secrets from their variables; a header that the SDK would leave out, too."""
    monkeypatch.setenv("GATE", " g4te\n")
    sent, _ = await received(
        server,
        CompatibleServer(
            base_url=server.openai_url,
            headers={"X-Title": "mine", "openai-project": "p1"},
            header_env={"X-Gate": "GATE"},
            query={"api-version": "2024-10-21"},
        ),
    )
    assert (sent.headers["x-title"], sent.headers["x-gate"]) == ("mine", "g4te")
    assert sent.headers["openai-project"] == "p1"
    assert sent.path == "/v1/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    ("auth", "headers"),
    [("bearer", {"authorization": "Bearer k3y"}), ("api-key", {"api-key": "k3y"}), ("none", {})],
)
async def test_the_key_is_sent_in_the_servers_way(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch, auth: Any, headers: dict[str, str]
) -> None:
    """And in no other."""
    monkeypatch.setenv("LOCAL_KEY", "k3y")
    variable = None if auth == "none" else "LOCAL_KEY"
    entry = CompatibleServer(base_url=server.openai_url, api_key_env=variable, auth=auth)
    sent, _ = await received(server, entry)
    assert {name: sent.headers[name] for name in ("authorization", "api-key") if name in sent.headers} == headers


async def test_a_secret_authorization_replaces_the_servers(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASIC", "Basic eHg6eXk=")
    entry = CompatibleServer(base_url=server.openai_url, auth="none", header_env={"Authorization": "BASIC"})
    sent, _ = await received(server, entry)
    assert sent.headers["authorization"] == "Basic eHg6eXk="


async def test_a_header_without_its_secret_is_upstream_auth(server: WireProvider) -> None:
    text, error = await ask(CompatibleServer(base_url=server.openai_url, header_env={"X-Gate": "NOT_SET_ANYWHERE"}))
    assert text == ""
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_AUTH, False)
    assert server.requests == []


@pytest.mark.parametrize(
    ("field", "options", "limits"),
    [
        (None, {}, {"max_tokens": 5}),
        ("max_completion_tokens", {}, {"max_completion_tokens": 5}),
        ("max_completion_tokens", {"max_tokens": 9}, {"max_tokens": 9}),
    ],
)
async def test_the_limit_has_the_configured_name(
    server: WireProvider, field: Any, options: dict[str, int], limits: dict[str, int]
) -> None:
    entry = CompatibleServer(base_url=server.openai_url, max_tokens_field=field)
    sent, _ = await received(server, entry, max_output_tokens=5, provider_options=options)
    assert {name: value for name, value in sent.body.items() if name.startswith("max")} == limits


async def test_a_server_may_not_know_stream_options(server: WireProvider) -> None:
    entry = CompatibleServer(base_url=server.openai_url, stream_usage=False)
    sent, _ = await received(server, entry)
    assert "stream_options" not in sent.body


async def test_reasoning_goes_back_to_the_server_it_came_from_alone(server: WireProvider) -> None:
    """Under the name that the configuration gives it."""
    details = [{"type": "reasoning.text", "text": "hm", "index": 0}]
    part = {"type": "reasoning_details", "reasoning_details": details}
    content = [part | {"provider": "local"}, part | {"provider": "openai"}, {"type": "text", "text": "ok"}]
    messages = [{"role": "assistant", "content": content}, {"role": "user", "content": "and?"}]
    sent, _ = await received(server, CompatibleServer(base_url=server.openai_url), messages=messages)
    assert sent.body["messages"][0] == {"role": "assistant", "content": "ok", "reasoning_details": details}


def guided() -> dict[str, Any]:
    """The entries that the guide shows."""
    (text,) = re.findall(r"## Compatible servers.*?```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    entries: dict[str, Any] = json.loads(text)
    return entries


@pytest.mark.parametrize(
    ("name", "path", "headers", "body"),
    [
        (
            "vllm",
            "/v1/chat/completions",
            {"authorization": "Bearer none"},
            {"max_tokens": 5, "continue_final_message": True, "add_generation_prompt": False},
        ),
        ("ollama", "/v1/chat/completions", {"authorization": "Bearer none"}, {"max_tokens": 5}),
        (
            "openrouter",
            "/api/v1/chat/completions",
            {"authorization": "Bearer k3y", "x-title": "My application"},
            {"max_tokens": 5},
        ),
        (
            "azure",
            "/openai/deployments/DEPLOYMENT/chat/completions?api-version=2024-10-21",
            {"api-key": "k3y"},
            {"max_completion_tokens": 5},
        ),
        ("mistral", "/v1/chat/completions", {"authorization": "Bearer k3y"}, {"max_tokens": 5}),
    ],
)
async def test_the_guides_servers_are_asked_in_their_way(
    server: WireProvider,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    path: str,
    headers: dict[str, str],
    body: dict[str, Any],
) -> None:
    """Each entry of the guide, with its address on the test's server: the whole request."""
    entries = guided()
    assert set(entries) == {"vllm", "ollama", "openrouter", "azure", "mistral"}
    entry = configured(monkeypatch, entries)[name]
    monkeypatch.setenv(entry.api_key_env or "UNUSED", "k3y")
    here = server.url + urlsplit(entry.base_url).path
    partial = "Once " if entry.continue_style else ""
    sent, _ = await received(server, entry.model_copy(update={"base_url": here}), max_output_tokens=5, partial=partial)
    assert sent.path == path
    told = ("authorization", "api-key", "x-title")
    assert {header: sent.headers[header] for header in told if header in sent.headers} == headers
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    if partial:
        messages.append({"role": "assistant", "content": "Once"} | ({"prefix": True} if name == "mistral" else {}))
    usage = {"stream_options": {"include_usage": True}} if entry.stream_usage else {}
    assert sent.body == {"model": "m", "messages": messages, "stream": True} | usage | body


def test_the_guide_says_every_field() -> None:
    text = GUIDE.read_text()
    for field in CompatibleServer.model_fields:
        assert f"| `{field}` |" in text, field


def continuing(monkeypatch: pytest.MonkeyPatch, value: object) -> dict[str, tuple[str, ...]]:
    monkeypatch.setenv("LEGATO_CONTINUE_MODELS", value if isinstance(value, str) else json.dumps(value))
    return Settings().continue_models


def test_models_that_go_on_are_patterns_by_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEGATO_CONTINUE_MODELS", raising=False)
    assert Settings().continue_models == {}
    assert continuing(monkeypatch, {"anthropic": ["claude-3-*", "x"], "vllm": []}) == {
        "anthropic": ("claude-3-*", "x"),
        "vllm": (),
    }
    (shown,) = re.findall(r"## Models that go on.*?```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert list(continuing(monkeypatch, shown)) == ["anthropic", "vllm", "mistral"]


@pytest.mark.parametrize("value", ["anthropic", "[]", {"a": "claude-*"}, {"a": [7]}, {"a": [""]}, {"a": None}])
def test_what_is_no_table_of_models_is_refused(monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    with pytest.raises(ValidationError, match=r"not JSON|not an object"):
        continuing(monkeypatch, value)


async def test_only_who_can_be_told_to_go_on_is_told() -> None:
    servers = {"style": CompatibleServer(base_url=URL, continue_style="vllm"), "none": CompatibleServer(base_url=URL)}
    for name, said in (
        ("openai", "provider 'openai' cannot be told to go on from a text"),
        ("openai_responses", "provider 'openai_responses' cannot be told"),
        ("nobody", "provider 'nobody' cannot be told"),
        ("none", "'none' has no continue_style in LEGATO_OPENAI_COMPATIBLE"),
    ):
        with pytest.raises(ValueError, match=said):
            build_providers(["sim"], compatible=servers, continue_models={name: ["*"]})
    models = {"style": ["m*"], "anthropic": ["claude-3-*"]}
    built = build_providers(["style", "none", "anthropic"], compatible=servers, continue_models=models)
    assert [provider.can_continue(request(model="m1")) for provider in built.values()] == [True, False, False]
    assert built["anthropic"].can_continue(request(model="claude-3-opus"))
    for provider in built.values():
        await provider.aclose()

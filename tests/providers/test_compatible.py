"""OpenAI-compatible servers by configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from broker.events import FailureCode
from broker.settings import BUILT_IN_PROVIDERS, CompatibleServer, Settings
from tests.providers.wires import collect, request, text_of
from tests.support.wire_provider import Reply, WireProvider, openai_stream
from worker.providers.base import Call
from worker.providers.registry import KNOWN, build_providers

URL = "http://127.0.0.1:1/v1"


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

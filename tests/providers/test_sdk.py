"""Whose a client is: one that was given stays open, one that was built is closed."""

from __future__ import annotations

import asyncio

import anthropic
import openai
import pytest

from tests.providers.wires import API_KEY, Wire, collect, request, text_of
from tests.support.wire_provider import Reply, WireProvider
from worker.providers.anthropic import AnthropicProvider
from worker.providers.base import Call, Provider
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_responses import OpenAIResponsesProvider


def built(wire: Wire) -> Provider:
    """From the environment alone, as a worker builds it."""
    return {"openai": OpenAIProvider, "anthropic": AnthropicProvider, "responses": OpenAIResponsesProvider}[wire.name]()


async def test_a_client_that_was_built_is_closed(
    server: WireProvider, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built once, and its connection goes with the provider."""
    for name, url in (("OPENAI", server.openai_url), ("ANTHROPIC", server.url)):
        monkeypatch.setenv(f"{name}_API_KEY", API_KEY)
        monkeypatch.setenv(f"{name}_BASE_URL", url)
    provider = built(wire)
    server.script(*[Reply.events(wire.whole("Hello"))] * 2)
    for _ in range(2):
        events, _ = await collect(provider.stream(Call(request())))
        assert text_of(events) == "Hello"
    assert [received.connection for received in server.requests] == [1, 1]
    assert not server.requests[1].gone.is_set()
    await provider.aclose()
    await asyncio.wait_for(server.requests[1].gone.wait(), 10)


async def test_a_provider_that_was_never_asked_closes_nothing(wire: Wire) -> None:
    await built(wire).aclose()


async def test_a_client_that_was_given_stays_its_givers() -> None:
    async with (
        openai.AsyncOpenAI(api_key=API_KEY, base_url="http://127.0.0.1:1") as first,
        anthropic.AsyncAnthropic(api_key=API_KEY, base_url="http://127.0.0.1:1") as second,
    ):
        for provider in (
            OpenAIProvider(client=first),
            OpenAIResponsesProvider(client=first),
            AnthropicProvider(client=second),
        ):
            await provider.aclose()
        assert not first.is_closed()
        assert not second.is_closed()

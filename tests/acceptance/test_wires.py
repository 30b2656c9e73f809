"""The whole path: a server that speaks a provider's wire, the real SDK in a worker, the store, an API, a reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.providers.test_identity import DOCUMENT
from tests.support.sse_client import Reader, follow
from tests.support.stack import Stack
from tests.support.wire_provider import (
    Cut,
    Pause,
    Reply,
    Send,
    WireProvider,
    anthropic_stream,
    openai_stream,
)

BODY = {"model": "m", "messages": [{"role": "user", "content": "Go on."}]}
STREAMS = {"openai": openai_stream, "anthropic": anthropic_stream}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire() -> AsyncIterator[WireProvider]:
    async with WireProvider() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory, wire: WireProvider) -> AsyncIterator[Stack]:
    environment = {
        "LEGATO_PROVIDERS": "openai,anthropic",
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": wire.openai_url,
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "ANTHROPIC_BASE_URL": wire.url,
    }
    stack = await asyncio.to_thread(Stack.start, redis_url, tmp_path_factory.mktemp("wires"), environment=environment)
    yield stack
    await asyncio.to_thread(stack.close)


async def submit(stack: Stack, provider: str, **fields: object) -> str:
    answer = await asyncio.to_thread(stack.post, "/v1/generations", {"provider": provider, **BODY, **fields})
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


async def read(stack: Stack, generation: str) -> Reader:
    reader, _ = await asyncio.to_thread(follow, stack.urls, generation)
    return reader


@pytest.mark.parametrize("provider", STREAMS)
async def test_any_text_in_pieces_of_one_byte_arrives_identical(
    stack: Stack, wire: WireProvider, provider: str
) -> None:
    """200 KB of emoji, combining marks, right-to-left, CJK, CR LF, lines that look like SSE, NUL."""
    pieces = [DOCUMENT[start : start + 1500] for start in range(0, len(DOCUMENT), 1500)]
    wire.script(Reply.events(STREAMS[provider](*pieces), piece_bytes=1))
    reader = await read(stack, await submit(stack, provider))
    assert reader.text == DOCUMENT
    assert reader.ended is not None
    assert reader.ended.data["characters"] == len(DOCUMENT)


@pytest.mark.parametrize("provider", STREAMS)
async def test_a_cancel_closes_the_providers_socket(stack: Stack, wire: WireProvider, provider: str) -> None:
    """The provider says some text and then nothing: only a poll can tell the worker."""
    frames = STREAMS[provider]("Some text.").partition(b"Some text.")
    shown = b"".join((frames[0], frames[1], frames[2].partition(b"\n\n")[0], b"\n\n"))
    wire.script(Reply(actions=(Send(shown), Pause(asyncio.Event()))))
    generation = await submit(stack, provider)
    await asyncio.to_thread(stack.wait_entries, generation, 2)
    answer = await asyncio.to_thread(stack.post, f"/v1/generations/{generation}/cancel")
    assert answer.status == 202
    await asyncio.wait_for(wire.requests[-1].gone.wait(), 60)
    assert await asyncio.to_thread(stack.wait_status, generation, "cancelled") == "cancelled"


@pytest.mark.parametrize("provider", STREAMS)
async def test_a_stream_without_its_marker_is_never_completed(stack: Stack, wire: WireProvider, provider: str) -> None:
    frames = STREAMS[provider]("Half an ans").partition(b"Half an ans")
    part = b"".join((frames[0], frames[1], frames[2].partition(b"\n\n")[0], b"\n\n"))
    wire.script(Reply.events(part), Reply.events(part, end=Cut()))
    generation = await submit(stack, provider, max_attempts=2)
    reader = await read(stack, generation)
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "upstream_incomplete")


@pytest.mark.parametrize("provider", STREAMS)
async def test_a_refused_key_fails_and_is_not_shown(stack: Stack, wire: WireProvider, provider: str) -> None:
    error = {"message": "Incorrect API key provided: sk-test-0123456789abcdef", "type": "authentication_error"}
    wire.script(Reply.error(401, {"type": "error", "error": error}))
    before = len(wire.requests)
    reader = await read(stack, await submit(stack, provider))
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "upstream_auth")
    assert reader.ended.data["retryable"] is False
    assert "sk-test-0123456789abcdef" not in str(reader.ended.data)
    assert len(wire.requests) == before + 1

"""All HTTP wires behind one face, so that what must hold for each is written once."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import openai

from broker.errors import ProviderError
from broker.events import Delta, DeltaKind
from broker.generation import Request
from tests.support.wire_provider import (
    WireProvider,
    anthropic_event,
    anthropic_stream,
    openai_stream,
    responses_event,
    responses_stream,
    sse,
)
from worker.providers.anthropic import AnthropicProvider
from worker.providers.base import Provider, ProviderEvent
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_responses import OpenAIResponsesProvider

#: What every test client authenticates with. Must never come out again.
API_KEY = "sk-test-0123456789abcdefghijklmnopqrstuvwxyz"

#: Test servers speak no TLS; a client's own context would load the machine's certificates, which takes 20 ms.
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def request(**fields: Any) -> Request:
    """A request with the least a provider needs."""
    return Request(**{"provider": "p", "model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One wire. `whole` renders an answer, `unfinished` the same without its terminal marker."""

    name: str
    connect: Callable[..., contextlib.AbstractAsyncContextManager[Provider]]
    whole: Callable[..., bytes]
    unfinished: Callable[..., bytes]
    error: Callable[[str], bytes]  # an error of that type inside the stream
    error_body: Callable[[str, str], Any]  # type and message, as an HTTP error's JSON


@contextlib.asynccontextmanager
async def _openai(server: WireProvider, **settings: Any) -> AsyncIterator[Provider]:
    http = openai.DefaultAsyncHttpxClient(verify=_PLAIN)
    async with openai.AsyncOpenAI(api_key=API_KEY, base_url=server.openai_url, http_client=http, **settings) as client:
        yield OpenAIProvider(client=client)


@contextlib.asynccontextmanager
async def _responses(server: WireProvider, **settings: Any) -> AsyncIterator[Provider]:
    http = openai.DefaultAsyncHttpxClient(verify=_PLAIN)
    async with openai.AsyncOpenAI(api_key=API_KEY, base_url=server.openai_url, http_client=http, **settings) as client:
        yield OpenAIResponsesProvider(client=client)


@contextlib.asynccontextmanager
async def _anthropic(server: WireProvider, **settings: Any) -> AsyncIterator[Provider]:
    http = anthropic.DefaultAsyncHttpxClient(verify=_PLAIN)
    async with anthropic.AsyncAnthropic(api_key=API_KEY, base_url=server.url, http_client=http, **settings) as client:
        yield AnthropicProvider(client=client)


def _error(kind: str, message: str = "it broke") -> dict[str, Any]:
    return {"type": kind, "message": message}


OPENAI = Wire(
    name="openai",
    connect=_openai,
    whole=openai_stream,
    unfinished=lambda *texts: openai_stream(*texts, finish_reason=None, done=False),
    error=lambda kind: sse({"error": _error(kind)}),
    error_body=lambda kind, message: {"error": _error(kind, message)},
)

ANTHROPIC = Wire(
    name="anthropic",
    connect=_anthropic,
    whole=anthropic_stream,
    unfinished=lambda *texts: anthropic_stream(*texts, stop=False),
    error=lambda kind: anthropic_event("error", error=_error(kind)),
    error_body=lambda kind, message: {"type": "error", "error": _error(kind, message)},
)

RESPONSES = Wire(
    name="responses",
    connect=_responses,
    whole=lambda *texts: responses_stream(*texts, echo=False),  # 20 MB of text are no single event
    unfinished=lambda *texts: responses_stream(*texts, status=None),
    error=lambda kind: responses_event("error", code=kind, message="it broke", param=None),
    error_body=lambda kind, message: {"error": _error(kind, message)},
)

WIRES = [OPENAI, ANTHROPIC, RESPONSES]


async def collect(stream: AsyncGenerator[ProviderEvent, None]) -> tuple[list[ProviderEvent], ProviderError | None]:
    """Everything a stream says, and the error it ended with, if it did. Any other error passes."""
    events: list[ProviderEvent] = []
    try:
        async for event in stream:
            events.append(event)
    except ProviderError as exc:
        return events, exc
    return events, None


def text_of(events: list[ProviderEvent], kind: DeltaKind = DeltaKind.TEXT) -> str:
    """The joined deltas of one kind."""
    return "".join(event.text for event in events if isinstance(event, Delta) and event.kind is kind)

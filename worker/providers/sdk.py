"""What the adapters with an SDK share: a client that is given or built at its first use, and which models can go on.

An adapter inherits from `SdkProvider` and adds what its wire says: the request, and a mapper of the stream. OpenAI's
`create` walks through every message and its types before it sends them as they were, which costs a long conversation
several ms of the whole worker; `posted` asks by the door that the SDK has for any path, and is still all of it that is
wanted: keys, base URL, headers, time-outs, errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import httpx2

from broker.events import Json
from broker.generation import Request
from worker.providers.base import Call, ProviderEvent

#: What of `create`'s arguments is no part of the body, and what the SDK calls it where a path is asked.
_NO_BODY: Final = {
    "extra_headers": "headers",
    "extra_query": "params",
    "extra_body": "extra_json",
    "timeout": "timeout",
}


class Client(Protocol):
    """As the SDKs' clients are."""

    def with_options(self, *, max_retries: int) -> Self: ...

    async def close(self) -> None: ...


ClientT = TypeVar("ClientT", bound=Client)


class SdkProvider(ABC, Generic[ClientT]):
    """`name` is as requests say it. A client given by the caller stays the caller's to close.

    `continue_models` are patterns (as of `fnmatch`) of the models that go on from a text given to them as their own;
    whoever configures the provider says so, and nothing is known of the others.
    """

    def __init__(self, *, name: str, client: ClientT | None = None, continue_models: Sequence[str] = ()) -> None:
        self.name = name
        self._client = None if client is None else client.with_options(max_retries=0)
        self._owned: ClientT | None = None
        self._continue_models = tuple(continue_models)

    @abstractmethod
    def stream(self, call: Call) -> AsyncGenerator[ProviderEvent, None]:
        """See `Provider.stream`. The worker owns retries; the SDK makes none."""

    @abstractmethod
    def _build(self) -> ClientT:
        """A client with `max_retries=0`. Raises `ProviderError` where there are no credentials."""

    def can_continue(self, request: Request) -> bool:
        """Where the model is declared. Never where the request itself ends in words of the assistant: whether an
        answer repeats those is not known."""
        if request.messages and request.messages[-1].get("role") == "assistant":
            return False
        return any(fnmatchcase(request.model, pattern) for pattern in self._continue_models)

    async def abandon(self, token: Json) -> None:
        """Nothing, for a provider that yields no marks."""

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        if self._owned is not None:
            await self._owned.close()

    def _connected(self) -> ClientT:
        """Built at the first use: a worker that never asks this provider needs no key."""
        if self._client is None:
            self._client = self._owned = self._build()
        return self._client


class Poster(Protocol):
    """As OpenAI's client is."""

    async def post(
        self, path: str, *, cast_to: type[httpx2.Response], body: Json, options: Any, stream: bool
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Posted:
    """See `wire.Response`."""

    http_response: httpx2.Response


@asynccontextmanager
async def posted(client: Poster, path: str, arguments: Json) -> AsyncIterator[Posted]:
    """The streamed answer to what `create(**arguments)` of the path's resource would ask for."""
    options: Json = {"security": {"bearer_auth": True}}
    body: Json = {}
    for name, value in arguments.items():
        if name not in _NO_BODY:
            body[name] = value
        elif value is not None or name == "timeout":  # None is no limit there, and nothing elsewhere
            options[_NO_BODY[name]] = value
    response = await client.post(path, cast_to=httpx2.Response, body=body, options=options, stream=True)
    try:
        yield Posted(response)
    finally:
        await response.aclose()

"""What the adapters with an SDK share: a client that is given or built at its first use, and which models can go on.

An adapter inherits from `SdkProvider` and adds what its wire says: the request, and a mapper of the stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from fnmatch import fnmatchcase
from typing import Generic, Protocol, Self, TypeVar

from broker.events import Json
from broker.generation import Request
from worker.providers.base import Call, ProviderEvent


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

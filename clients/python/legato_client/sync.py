"""A thin door for code that is not async: each call runs the async one to its end, in this thread.

There is no second implementation and no thread. A stream reads only while it is asked for the next event. Inside a
running event loop (an async web server, a notebook) it refuses: `AsyncClient` is what is wanted there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from legato_client.answer import Answer
from legato_client.client import SILENCE_SECONDS, AsyncClient
from legato_client.events import Event
from legato_client.patience import Patience
from legato_client.records import Generation, Options, Page, Submitted, Thread, ToolOutput
from legato_client.stream import Reconnect, Stream

_T = TypeVar("_T")


class Client:
    """`AsyncClient`, waited for. Of one thread. Use it in `with`, or call `close()`."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._client = AsyncClient(
            base_url, api_key=api_key, headers=headers, patience=patience, silence_seconds=silence_seconds
        )
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._run(self._client.aclose())
        self._runner.close()

    def submit(
        self,
        *,
        provider: str,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Submitted:
        """See `AsyncClient.submit`."""
        return self._run(
            self._client.submit(
                provider=provider, model=model, messages=messages, idempotency_key=idempotency_key, **options
            )
        )

    def stream(
        self,
        generation: str,
        *,
        after: str | None = None,
        snapshot: bool = False,
        on_reconnect: Callable[[Reconnect], None] | None = None,
    ) -> SyncStream:
        """See `AsyncClient.stream`."""
        stream = self._client.stream(generation, after=after, snapshot=snapshot, on_reconnect=on_reconnect)
        return SyncStream(stream, self._run)

    def stream_thread(
        self,
        thread: str,
        *,
        after: str | None = None,
        snapshot: bool = False,
        on_reconnect: Callable[[Reconnect], None] | None = None,
    ) -> SyncStream:
        """See `AsyncClient.stream_thread`."""
        stream = self._client.stream_thread(thread, after=after, snapshot=snapshot, on_reconnect=on_reconnect)
        return SyncStream(stream, self._run)

    def get_thread(self, thread: str) -> Thread:
        """See `AsyncClient.get_thread`."""
        return self._run(self._client.get_thread(thread))

    def collect(self, generation: str) -> Answer:
        """See `AsyncClient.collect`."""
        return self._run(self._client.collect(generation))

    def get(self, generation: str) -> Generation:
        """See `AsyncClient.get`."""
        return self._run(self._client.get(generation))

    def list(
        self,
        *,
        status: str | None = None,
        thread: str | None = None,
        code: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """See `AsyncClient.list`."""
        return self._run(self._client.list(status=status, thread=thread, code=code, limit=limit, cursor=cursor))

    def cancel(self, generation: str) -> str:
        """See `AsyncClient.cancel`."""
        return self._run(self._client.cancel(generation))

    def delete(self, generation: str) -> None:
        """See `AsyncClient.delete`."""
        self._run(self._client.delete(generation))

    def send_tool_results(self, generation: str, results: Iterable[ToolOutput]) -> int:
        """See `AsyncClient.send_tool_results`."""
        return self._run(self._client.send_tool_results(generation, results))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._runner.run(work)
        except RuntimeError:
            work.close()  # it never began: the runner refuses within another loop, and after `close`
            raise


class SyncStream:
    """`Stream`, waited for. Use it in `with`, or call `close()`."""

    def __init__(self, stream: Stream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    @property
    def position(self) -> str | None:
        """See `Stream.position`."""
        return self._stream.position

    @property
    def answer(self) -> Answer:
        """See `Stream.answer`."""
        return self._stream.answer

    @property
    def generation(self) -> str | None:
        """See `Stream.generation`."""
        return self._stream.generation

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event: Event | None = self._stream.ready()
        if event is None:
            event = self._run(self._next())
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The generation goes on."""
        self._run(self._stream.aclose())

    async def _next(self) -> Event | None:
        return await anext(self._stream, None)

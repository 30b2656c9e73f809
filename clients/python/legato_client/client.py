"""The client: submit, stream, collect, look up, list, cancel, delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack
from urllib.parse import quote
from uuid import uuid4

import httpx

from legato_client.answer import Answer
from legato_client.errors import Garbled, UnexpectedAnswer
from legato_client.http import Http
from legato_client.patience import Patience
from legato_client.records import (
    Generation,
    Options,
    Page,
    Submitted,
    Thread,
    ToolOutput,
    generation_of,
    submitted_of,
    thread_of,
)
from legato_client.stream import Reconnect, Stream

_T = TypeVar("_T")

#: Longest silence of a stream: three of the server's default keepalives.
SILENCE_SECONDS: Final = 45.0


class AsyncClient:
    """One server. Use it in `async with`, or call `aclose()`. Safe to share between tasks of one event loop.

    `base_url` is that of the API, as in http://127.0.0.1:8700. `api_key` goes out as a bearer token, `headers` with
    every request. `patience` says how long to try and how to wait, for calls and for streams alike. `silence_seconds`
    is how long a stream may be silent before its connection is taken for dead; the server pings every 15 s unless told
    otherwise. `http_client` brings proxies, certificates, HTTP/2 of your own; it is not closed here.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        if not silence_seconds > 0:
            raise ValueError(f"silence_seconds is {silence_seconds!r}, and must be above 0")
        self._silence_seconds = silence_seconds
        self._http = Http(
            base_url, patience=patience or Patience(), api_key=api_key, headers=headers, http_client=http_client
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def submit(
        self,
        *,
        provider: str,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Submitted:
        """Start a generation. Tried again like everything else: all tries share an Idempotency-Key, made here unless it
        is given, so that there is one generation. Give one, and keep it, to submit safely over a crash of your own."""
        key = idempotency_key or f"legato-client-{uuid4()}"
        answer = await self._http.call(
            "POST",
            "/v1/generations",
            json={"provider": provider, "model": model, "messages": list(messages), **options},
            headers={"Idempotency-Key": key},
        )
        replayed = answer.headers.get("idempotent-replayed") == "true"
        return self._read(answer, lambda raw: submitted_of(raw, key=key, replayed=replayed))

    def stream(
        self,
        generation: str,
        *,
        after: str | None = None,
        snapshot: bool = False,
        on_reconnect: Callable[[Reconnect], None] | None = None,
    ) -> Stream:
        """The generation's events, to its end. `after` is the position to go on from, stored by any process; without
        one it begins at the first event, or with `snapshot` at the folded state. `on_reconnect` is told of every cut
        that is about to be healed."""
        if snapshot and after is not None:
            raise ValueError("after and snapshot exclude one another")
        return Stream(
            self._http,
            _path(generation, "/events"),
            after=after,
            snapshot=snapshot,
            silence_seconds=self._silence_seconds,
            on_reconnect=on_reconnect,
        )

    def stream_thread(
        self,
        thread: str,
        *,
        after: str | None = None,
        snapshot: bool = False,
        on_reconnect: Callable[[Reconnect], None] | None = None,
    ) -> Stream:
        """The events of a thread's generations, one after the other: the one that runs, or the last, from its start; or
        from where `after` says, a position of such a stream. Ends when there is no more for now; open it again with its
        `position` when there is. `stream.generation` says whose an event was."""
        if snapshot and after is not None:
            raise ValueError("after and snapshot exclude one another")
        return Stream(
            self._http,
            _thread_path(thread) + "/events",
            after=after,
            snapshot=snapshot,
            thread=True,
            silence_seconds=self._silence_seconds,
            on_reconnect=on_reconnect,
        )

    async def get_thread(self, thread: str) -> Thread:
        """What a thread is at. A name that nothing was submitted under has nothing in it."""
        return self._read(await self._http.call("GET", _thread_path(thread)), thread_of)

    async def collect(self, generation: str) -> Answer:
        """Wait for the end, and return everything. Raises `GenerationFailed`, `GenerationCancelled`; their `answer` is
        what there was."""
        async with self.stream(generation, snapshot=True) as stream:
            async for _ in stream:
                pass
        answer = stream.answer
        if answer.end is None:
            answer = (await self.get(generation)).answer or answer
        answer.raise_for_end()
        return answer

    async def get(self, generation: str) -> Generation:
        """Status and text so far."""
        answer = await self._http.call("GET", _path(generation))
        return self._read(answer, lambda raw: generation_of(raw, folded=True))

    async def list(
        self,
        *,
        status: str | None = None,
        thread: str | None = None,
        code: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """A page of generations, newest first. `code` finds failed ones by their failure."""
        asked = {"status": status, "thread": thread, "code": code, "limit": limit, "cursor": cursor}
        query = {name: str(value) for name, value in asked.items() if value is not None}
        return self._read(await self._http.call("GET", "/v1/generations", query=query), _page_of)

    async def cancel(self, generation: str) -> str:
        """Cancel it; its status, `cancelling` or one that is final. Once this returns no other end than `cancelled` is
        possible, unless it had ended before."""
        answer = await self._http.call("POST", _path(generation, "/cancel"))
        return self._read(answer, lambda raw: str(raw.get("status")))

    async def delete(self, generation: str) -> None:
        """Erase prompt and log. Deleted already: nothing happens."""
        await self._http.call("DELETE", _path(generation), accepted=lambda status: 200 <= status < 300 or status == 410)

    async def send_tool_results(self, generation: str, results: Iterable[ToolOutput]) -> int:
        """Answer calls of a generation with `tool_mode: "interactive"`; how many it still waits for."""
        answer = await self._http.call(
            "POST", _path(generation, "/tool_results"), json={"tool_results": [dict(result) for result in results]}
        )
        return self._read(answer, lambda raw: int(raw.get("owed") or 0))

    def _read(self, answer: httpx.Response, read: Callable[[dict[str, Any]], _T]) -> _T:
        try:
            return read(self._http.object_of(answer))
        except Garbled as exc:
            raise UnexpectedAnswer(f"{self._http.address} answers with {exc}") from exc


def _page_of(raw: dict[str, Any]) -> Page:
    data = raw.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise Garbled("a list without data")
    more = raw.get("next_cursor")
    return Page(
        data=tuple(generation_of(item, folded=False) for item in data),
        next_cursor=more if isinstance(more, str) else None,
    )


def _thread_path(thread: str) -> str:
    if not thread:
        raise ValueError("the name of a thread is not empty")
    return f"/v1/threads/{quote(thread, safe='')}"


def _path(generation: str, rest: str = "") -> str:
    if not generation:
        raise ValueError("the id of a generation is not empty")
    return f"/v1/generations/{quote(generation, safe='')}{rest}"

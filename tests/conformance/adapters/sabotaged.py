"""The Python client with one rule taken out, for the suite to notice: `sabotaged.py RULE`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import httpx
from legato_client import client, events, frames, http, patience, state, stream

from tests.conformance.adapters import python_client


def a_clean_end_is_the_end() -> None:
    real = stream.Stream._read

    async def read(self: Any, chunks: Any) -> None:
        chunk = await anext(chunks, None)
        if chunk is None:
            self._state = state.nothing_more(self._state)
            return

        async def again() -> Any:
            yield chunk

        await real(self, again())

    stream.Stream._read = read  # type: ignore[method-assign]


def events_come_twice() -> None:
    state.REMEMBERED = 1  # type: ignore[misc]
    real = state._moved
    state._moved = lambda *arguments: replace(real(*arguments), recent=())


def the_cursor_moves_with_half_a_block() -> None:
    real = frames.FrameParser.feed

    def feed(self: Any, chunk: bytes) -> Any:
        return [*real(self, chunk), *([self._dispatch()] if self._data else [])]

    frames.FrameParser.feed = feed  # type: ignore[method-assign]


def ids_outlive_their_blocks() -> None:
    real = frames.FrameParser._dispatch

    def dispatch(self: Any) -> Any:
        kept = self._id
        frame = real(self)
        self._id = kept
        return frame

    frames.FrameParser._dispatch = dispatch  # type: ignore[method-assign]


def no_cursor_is_sent() -> None:
    state.Reading.headers = lambda _: {"Accept": state.SSE}  # type: ignore[method-assign]


def retry_is_not_heard() -> None:
    real = patience.next_try
    state.next_try = lambda *arguments, **named: real(*arguments, **{**named, "retry_seconds": None})  # type: ignore[attr-defined]


def retry_after_is_not_heard() -> None:
    stream.retry_after_seconds = http.retry_after_seconds = lambda _: None  # type: ignore[assignment]


def it_comes_back_at_once() -> None:
    state.next_try = lambda *_, **__: patience.Wait(0.0)  # type: ignore[assignment]


def it_never_gives_up() -> None:
    state.next_try = lambda *_, **__: patience.Wait(0.02)  # type: ignore[assignment]


def a_reset_clears_nothing() -> None:
    python_client.legato.answer.Fold._clear = lambda _: None  # type: ignore[attr-defined]


def a_snapshot_is_appended() -> None:
    def replace_nothing(self: Any, event: Any) -> None:
        self._texts.setdefault("text", []).append(event.text)

    python_client.legato.answer.Fold._replace = replace_nothing  # type: ignore[attr-defined]


def a_lost_cursor_is_not_noticed() -> None:
    state._opened = lambda known, _, now: state.Taken(replace(known, lost_at=None, opened_at=now))


def every_connection_may_be_silent() -> None:
    real = stream.Stream.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **{**named, "silence_seconds": 60.0})

    stream.Stream.__init__ = init  # type: ignore[method-assign]


def unknown_events_are_errors() -> None:
    events._READERS["novelty"] = events._delta  # type: ignore[index]


def every_try_has_a_key_of_its_own() -> None:
    real = http.Http._request

    def request(self: Any, *arguments: Any, **named: Any) -> Any:
        made = real(self, *arguments, **named)
        made.headers["Idempotency-Key"] = str(uuid4())
        return made

    http.Http._request = request  # type: ignore[method-assign]


def redirects_of_a_submit_are_followed() -> None:
    real = httpx.AsyncClient.send

    async def send(self: Any, request: Any, **named: Any) -> Any:
        return await real(self, request, **{**named, "follow_redirects": True})

    httpx.AsyncClient.send = send  # type: ignore[method-assign]


def refusals_are_tried_again() -> None:
    state.may_pass = lambda status: status >= 400


def an_error_event_is_passed_over() -> None:
    del events._READERS["error"]  # type: ignore[attr-defined]


def all_text_is_the_text() -> None:
    real = events._delta
    events._READERS["delta"] = lambda at, data: real(at, {**data, "kind": "text"})  # type: ignore[index]


def a_byte_order_mark_is_text() -> None:
    frames._BOM = b"\xff"  # type: ignore[misc]


def the_path_of_a_cancel_is_another() -> None:
    real = client._path
    client._path = lambda generation, rest="": real(generation, rest.replace("cancel", "stop"))


RULES: dict[str, Callable[[], None]] = {
    name: rule for name, rule in list(globals().items()) if getattr(rule, "__module__", "") == __name__
}


if __name__ == "__main__":
    RULES[sys.argv[1]]()
    asyncio.run(python_client.main())

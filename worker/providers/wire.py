"""What the providers with an HTTP wire share: reading a stream, JSON frames, tool calls, options.

Each provider gives a `Mapper` (one wire's frames to events, pure) and an open call; `relay` does the rest, so that the
rules of how a stream may end are written once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx2
import orjson

from broker.errors import ProviderError
from broker.events import Delta, DeltaKind, Json, Part, ToolCall, ToolCallDone
from worker.providers import classify
from worker.providers.base import Mark, Meter, ProviderEvent
from worker.sse import MAX_BYTES, SseReader

#: After the terminal marker the body's own end usually follows in the same packet. Waiting this long for it keeps
#: the connection for the next call, which so needs no handshake of its own.
DRAIN_SECONDS: Final = 0.1

#: More than any answer takes.
MOST_TOKENS: Final = 10**9

#: Not to be overridden by `provider_options`: the request itself says them, or the worker depends on them.
RESERVED_OPTIONS: Final = ("messages", "model", "stream")

#: Content parts that give a model its reasoning back: two of Anthropic's, one of Responses, one of chat completions.
#: Each wire knows its own; the others are left out, so that another provider can take the conversation over.
_REASONING: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_details"})

#: What a mapper runs into when a frame is not what its protocol says.
_MALFORMED: Final = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


class Response(Protocol):
    """As the SDKs' raw streaming responses are."""

    @property
    def http_response(self) -> httpx2.Response: ...


class Mapper(Protocol):
    """One wire's frames to events. Pure, and one for each response.

    A `KeyError`, `TypeError`, `AttributeError` or `ValueError` out of it means that a frame is not the provider's
    protocol; so it may take JSON apart without asking first.
    """

    @property
    def finished(self) -> bool:
        """The terminal marker was seen; nothing follows."""
        ...

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        """The events of one frame. Raises `ProviderError` for an error the provider reports inside the stream."""
        ...

    def end(self) -> Sequence[ProviderEvent]:
        """The body ended cleanly: `Finish`, if it may be taken as whole, else raises `upstream_incomplete`."""
        ...


async def relay(
    connect: Callable[[], AbstractAsyncContextManager[Response]],
    mapper: Mapper,
    *,
    provider: str,
    meter: Meter,
    auth_errors: tuple[type[Exception], ...] = (),
    mark: Callable[[], Json | None] | None = None,
    most_bytes: int = MAX_BYTES,
) -> AsyncGenerator[ProviderEvent, None]:
    """Everything a response says, as events; ends after `Finish`, or raises `ProviderError` and nothing else.

    `auth_errors` are what the SDK raises when it cannot find or fetch credentials. `mark` is asked behind all that one
    piece of body said: the token of a `Mark`, where one can be set there. Nothing is read ahead. Closing the
    generator closes the connection. Errors are raised `from None`: their causes hold requests and headers, and must
    not reach a traceback in a log.
    """
    reader = SseReader(most_bytes=most_bytes)
    opened = False
    since = time.monotonic()
    try:
        async with connect() as response:
            opened = True
            meter.connect_seconds = time.monotonic() - since
            async with aclosing(response.http_response.aiter_bytes()) as chunks:
                async for chunk in chunks:
                    meter.chunks += 1
                    meter.bytes += len(chunk)
                    for name, data in reader.feed(chunk):
                        try:
                            events = mapper.feed(name, data)
                        except _MALFORMED:
                            raise classify.malformed(provider) from None
                        if finished := mapper.finished:
                            await _drain(chunks)  # before `Finish`, behind which nobody asks for more
                        for event in events:
                            yield event
                        if finished:
                            return
                    if mark is not None and (token := mark()) is not None:
                        yield Mark(token=token)
                try:
                    events = mapper.end()
                except _MALFORMED:
                    raise classify.malformed(provider) from None
                for event in events:
                    yield event
    except ProviderError:
        raise
    except auth_errors:
        raise classify.no_credentials(provider) from None
    except Exception as exc:  # noqa: BLE001 -- the interface promises that nothing else gets out
        raise _classified(exc, provider=provider, opened=opened) from None


def _classified(exc: Exception, *, provider: str, opened: bool) -> ProviderError:
    odd = isinstance(exc, TypeError | ValueError | AttributeError | LookupError)
    if isinstance(exc, UnicodeEncodeError) and exc.encoding == "ascii":  # a header; its words would show some of it
        exc, odd = httpx2.LocalProtocolError("a header"), False
    if odd and not opened:  # whatever the SDK, or we, could not make of the request
        if "authentication method" in str(exc):  # one SDK finds out that it has no key when it builds the request
            return classify.no_credentials(provider)
        return classify.invalid_request(f"the {provider} SDK does not take this request: {exc}")
    if odd:
        return classify.defect(provider, exc)
    return classify.exception(exc, provider=provider, opened=opened)


async def _drain(chunks: AsyncGenerator[bytes, None]) -> None:
    with suppress(TimeoutError, httpx2.HTTPError, httpx2.StreamError, OSError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in chunks:
                pass


class Frames:
    """Parses JSON frames, and mends characters that a provider cut in two.

    A server that cuts text by UTF-16 units sends `"\\ud83d"` in one frame and `"\\ude00"` in the next. The first half
    is held back until its other half comes; what stays alone becomes U+FFFD. `key` says which text a piece is of.
    """

    __slots__ = ("_halves", "mends")

    def __init__(self) -> None:
        self.mends = False  # no frame so far held a half: texts need no look
        self._halves: dict[DeltaKind | int, str] = {}

    @property
    def whole(self) -> bool:
        """No text waits for the other half of a character."""
        return not self._halves

    def loads(self, data: bytes) -> Any:
        """The frame's JSON. Raises `ValueError` (or `RecursionError`) where it is none."""
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:  # it refuses halves of characters, and bytes that are not UTF-8
            self.mends = True
            return json.loads(data.decode("utf-8", "replace"))

    def text(self, key: DeltaKind | int, piece: str) -> str:
        """`piece` with whole characters only; may be empty, as long as a half waits for its other one."""
        if not self.mends:
            return piece
        piece = self._halves.pop(key, "") + piece
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            self._halves[key] = piece[-1]
            piece = piece[:-1]
        return piece.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def rest(self, key: DeltaKind | int) -> str:
        """What is left of a text that has ended: U+FFFD, or nothing."""
        return "\ufffd" if self._halves.pop(key, "") else ""

    def deltas(self) -> list[ProviderEvent]:
        """`rest` of every kind of delta."""
        return [Delta(text=rest, kind=kind) for kind in DeltaKind if (rest := self.rest(kind))]


@dataclass(slots=True, kw_only=True)
class _Call:
    index: int
    id: str | None = None
    name: str | None = None
    whole: str = ""  # arguments given in one piece, used where no fragment follows
    arguments: list[str] = field(default_factory=list)


class ToolCalls:
    """Tool calls under way. Their `index` counts the calls of the answer: 0, 1, 2 …, whatever the wire counts.

    `count` calls came before, where the stream goes on from a mark.
    """

    def __init__(self, frames: Frames, *, count: int = 0) -> None:
        self._frames = frames
        self._open: dict[object, _Call] = {}
        self.count = count

    @property
    def all_done(self) -> bool:
        """No call is under way."""
        return not self._open

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def id_of(self, key: object) -> str | None:
        """The id of the open call `key`; `None` where there is none, or it has none yet."""
        call = self._open.get(key)
        return call.id if call else None

    def add(
        self, key: object, *, id: str | None = None, name: str | None = None, arguments: str = "", whole: str = ""
    ) -> list[ProviderEvent]:
        """A fragment of the call that the wire knows as `key`, unless it says nothing; opens the call if it is new."""
        if not isinstance(arguments, str):
            raise TypeError(arguments)
        call = self._open.get(key)
        if call is None:
            call = self._open[key] = _Call(index=self.count, whole=whole)
            self.count += 1
        fresh_id = id if id and call.id is None else None
        fresh_name = name if name and call.name is None else None
        call.id, call.name = call.id or fresh_id, call.name or fresh_name
        text = self._frames.text(call.index, arguments)
        call.arguments.append(text)
        if not (text or fresh_id or fresh_name):
            return []
        return [ToolCall(index=call.index, arguments=text, id=fresh_id, name=fresh_name)]

    def done(self, key: object) -> list[ProviderEvent]:
        """The call is whole. Its fragments join to exactly what `ToolCallDone` says, `{}` where none came."""
        call = self._open.pop(key)
        events: list[ProviderEvent] = []
        rest = self._frames.rest(call.index) or ("" if "".join(call.arguments) else call.whole or "{}")
        if rest:
            call.arguments.append(rest)
            events.append(ToolCall(index=call.index, arguments=rest))
        events.append(
            ToolCallDone(
                index=call.index,
                id=call.id or f"call_{call.index}",
                name=call.name or "",
                arguments="".join(call.arguments),
            )
        )
        return events

    def done_all(self) -> list[ProviderEvent]:
        """`done` for every open call, in order."""
        return [event for key in list(self._open) for event in self.done(key)]


def count(value: object) -> int:
    """Tokens, as a provider counts them; 0 for a number that cannot be right: it is no reason to lose an answer. Raises
    `TypeError` for what is no number."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return int(value) if 0 <= value <= MOST_TOKENS else 0


def known_count(value: object) -> int | None:
    """The same, where it may be left out."""
    return None if value is None else count(value)


def part(type: str, data: object) -> Part:
    """A part of the answer; `data` is the provider's own object."""
    if not isinstance(data, dict):
        raise TypeError(data)
    return Part(type=type, data=data)


def split_reasoning(content: Any) -> tuple[list[Json], Any]:
    """The parts of an assistant's content that are reasoning, of whatever wire, and the content without them."""
    if not isinstance(content, list):
        return [], content
    reasoning = [part for part in content if _is_reasoning(part)]
    return reasoning, [part for part in content if not _is_reasoning(part)] if reasoning else content


def _is_reasoning(part: Any) -> bool:
    if not isinstance(part, dict) or part.get("type") not in _REASONING:
        return False
    return not isinstance(part.get("thinking"), list)  # those are parts of some servers of chat completions


def with_options(arguments: Json, options: Json, *, takes: Collection[str]) -> Json:
    """`arguments` for the SDK's `create`, with `provider_options` laid over them.

    Options that `create` takes by name (`takes`, so `extra_headers`, `extra_query`, `extra_body` and `timeout` too)
    are handed to it untouched and win over what the request said; every other one goes into `extra_body`, which is
    how the SDKs send what they do not know. `RESERVED_OPTIONS` are refused in both places.
    """
    extra = options.get("extra_body") or {}
    if not isinstance(extra, dict):
        raise classify.invalid_request("provider_options.extra_body: not an object")
    for name in RESERVED_OPTIONS:
        if name in options or name in extra:
            raise classify.invalid_request(f"provider_options.{name}: cannot be set here")
    for place in (options, extra):
        if place.get("n") not in {None, 1}:
            raise classify.invalid_request("provider_options.n: a generation is one answer, so it can only be 1")
    named = {name: value for name, value in options.items() if name in takes}
    other = {name: value for name, value in options.items() if name not in takes}
    body = arguments.get("extra_body", {}) | other | extra
    return arguments | named | ({"extra_body": body} if body else {})

"""The same events as WebSocket messages, with credit: `GET /v1/generations/{generation}/ws`.

A browser takes WebSocket messages off the network whether the page can keep up or not, so TCP holds nobody back. Here
the reader says how far it is: each event with an `id` is acknowledged by its position, and no more than a window of
them is ever on the way. While it is full nothing is read from the log either, and what has piled up goes out merged.

Refusals come before the upgrade, as ordinary HTTP. Behind it an `error` event says what is wrong, and the close code
whether to come back: 1000 the end, 1012 and 1013 come again, 1007 and 1008 the reader's mistake, 4000 + an HTTP status.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from api.auth import authenticate
from api.frames import NDJSON
from api.problem import FieldError, Problem, problem_of
from api.services import PASSING, Services
from api.stream import cursor_of, query_of, snapshot_asked
from api.viewer import Start, Viewer, start
from broker.errors import GenerationExpired, GenerationUnknown, InvalidPosition, LegatoError, StoreError
from broker.events import CancelReason
from broker.generation import is_id
from broker.position import Position

_log = structlog.get_logger("legato.api")

#: Where the server puts the call that drops a connection at once. Under another server there is none.
ABORT: Final = "legato.abort"

#: Events that may be unacknowledged, at most.
MOST_WINDOW: Final = 1024

#: How often one that waits for acknowledgements looks whether the server is stopping.
_LOOK_SECONDS: Final = 0.5

#: What a position stands behind, in a message of ours.
_ID: Final = b'{"id":"'


@dataclass(frozen=True, slots=True)
class Close:
    """Why a connection ends: the code, a short reason, and the `error` event before it."""

    code: int
    reason: str
    error: bytes = b""


ENDED: Final = Close(1000, "the generation has ended")
RESTART: Final = Close(1012, "come back with your cursor")


class WebSocketRoute:
    """The route, as an ASGI application for the scopes `websocket` and `http`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
            await Problem(426, "upgrade_required", "this is a WebSocket", headers=headers)(scope, receive, send)
            return
        await receive()  # websocket.connect
        try:
            tenant, begin, window = await self._begin(scope)
        except Problem as problem:
            await refuse(problem, scope, receive, send)
        except LegatoError as error:
            await refuse(problem_of(error), scope, receive, send)
        else:
            await send({"type": "websocket.accept"})
            await Session(self._services, tenant, begin, window, scope, receive, send).run()

    async def _begin(self, scope: Scope) -> tuple[str, Start, int]:
        services, headers, query = self._services, Headers(scope=scope), query_of(scope)
        origin, origins = headers.get("origin"), services.settings.cors_origins
        if origin is not None and "*" not in origins and origin not in origins:
            raise Problem(403, "origin_not_allowed", "pages of this origin may not connect")
        tenant = authenticate(scope)
        cursor = cursor_of(headers, query)
        snapshot = snapshot_asked(query)
        window = window_of(query, services.settings.websocket_window)
        generation = scope["path_params"]["generation"]
        if not is_id(generation):
            raise GenerationUnknown("there is no generation of that id")
        services.check_open()
        return tenant, await start(services, tenant, generation, cursor, snapshot=snapshot), window


class Nowhere:
    """The answer for a WebSocket at any other path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        problem = Problem(404, "not_found", "there is no WebSocket at this path; /v1/generations/{id}/ws is one")
        await refuse(problem, scope, receive, send)


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a handshake with a problem."""

    async def send_instead(message: MutableMapping[str, Any]) -> None:
        await send({**message, "type": "websocket." + message["type"]})

    await problem(scope, receive, send_instead)


def window_of(query: dict[str, str], default: int) -> int:
    """How many events may be unacknowledged; 400 for what is no such number."""
    text = query.get("window", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MOST_WINDOW):
        wrong = FieldError("window", f"it must be 1 to {MOST_WINDOW} events")
        raise Problem(400, "invalid_query", "not right in the query: window", fields=(wrong,))
    return int(text)


class Session:
    """One connection whose upgrade was accepted. `run()` once."""

    def __init__(
        self, services: Services, tenant: str, begin: Start, window: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._services = services
        self._tenant = tenant
        self._begin = begin
        self._window = window
        self._abort: Callable[[], None] | None = scope.get(ABORT)
        self._receive = receive
        self._send = send
        self._seconds = services.settings.send_timeout_seconds
        self._unacknowledged: deque[str] = deque()  # positions, in the order in which they were sent
        self._highest = 0  # seq of all that was sent
        self._acknowledged = asyncio.Event()

    async def run(self) -> None:
        """Send and listen until one of the two has reason to end; then close."""
        self._services.viewers += 1
        name = f"websocket {self._begin.generation}"
        writing = asyncio.create_task(self._write(), name=f"{name} write")
        reading = asyncio.create_task(self._read(), name=f"{name} read")
        try:
            await asyncio.wait({writing, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._services.viewers -= 1
            ended = reading if reading.done() else writing
            for task in (writing, reading):
                task.cancel()
            await asyncio.wait({writing, reading})
        if ended.cancelled():
            return
        if (defect := ended.exception()) is not None:
            _log.error("websocket_failed", generation=self._begin.generation, error=repr(defect)[:300])
            await self._close(Close(1011, "something went wrong here, and has been logged"))
        elif (close := ended.result()) is not None:
            await self._close(close)

    async def _close(self, close: Close) -> None:
        with suppress(OSError, RuntimeError, TimeoutError):  # it left at the same time
            async with asyncio.timeout(self._seconds):
                if close.error:
                    await self._send({"type": "websocket.send", "text": close.error.decode().rstrip("\n")})
                await self._send({"type": "websocket.close", "code": close.code, "reason": close.reason})

    # --- to the reader ---

    async def _write(self) -> Close | None:
        """Events as messages; why it ends. None: the connection is gone."""
        if self._begin.seen_the_end:
            return ENDED
        viewer = Viewer(self._services, self._begin, NDJSON)
        try:
            async for chunk in viewer.chunks():
                for line in chunk.splitlines():
                    place = _position(line)
                    if place is not None and (close := await self._credit()) is not None:
                        return close
                    async with asyncio.timeout(self._seconds):
                        await self._send({"type": "websocket.send", "text": line.decode()})
                    if place is not None:
                        self._unacknowledged.append(place)
                        self._highest = max(self._highest, _seq(place))
        except TimeoutError:  # it takes nothing, not even a close
            if self._abort is not None:
                self._abort()
            return None
        except OSError:
            return None
        finally:
            viewer.leave()
        if viewer.finished:
            return ENDED
        return RESTART if viewer.fault is None else _close_of(viewer.fault)

    async def _credit(self) -> Close | None:
        """Wait until less than a window is unacknowledged; why not to wait any longer."""
        now = asyncio.get_running_loop().time
        patient_until = now() + self._seconds
        while len(self._unacknowledged) >= self._window:
            if self._services.draining:
                return RESTART
            if now() >= patient_until:
                message = f"nothing was acknowledged for {self._seconds:g} s, with {self._window} events on the way"
                return Close(4408, "acknowledge what you take", _error("acknowledgement_missing", message, True))
            self._acknowledged.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._acknowledged.wait()
                    patient_until = now() + self._seconds
        return None

    # --- from the reader ---

    async def _read(self) -> Close | None:
        """Take messages until one is wrong; None when the reader has left."""
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return None
            if (close := await self._take(message.get("text"))) is not None:
                return close

    async def _take(self, text: str | None) -> Close | None:
        try:
            said = orjson.loads(text) if text is not None else None
        except orjson.JSONDecodeError:
            said = None
        if not isinstance(said, dict):
            return _mistake(1007, "a message is one JSON object, as text")
        match said:
            case {"type": "ack", "position": str(position), **rest} if not rest:
                return self._take_ack(position)
            case {"type": "cancel", **rest} if not rest:
                return await self._cancel()
            case {"type": "ack"}:
                return _mistake(1008, "an ack has a position, and nothing else")
            case _:
                return _mistake(1008, 'a message is {"type": "ack", "position": "…"} or {"type": "cancel"}')

    def _take_ack(self, text: str) -> Close | None:
        """All up to that position was taken. An older one tells nothing new."""
        try:
            seq = Position.parse(text).seq
        except InvalidPosition as wrong:
            return _mistake(1008, str(wrong))
        if text in self._unacknowledged:
            while self._unacknowledged.popleft() != text:
                pass
            self._acknowledged.set()
        elif seq > self._highest:
            return _mistake(1008, f"{text} was not sent on this connection")
        return None

    async def _cancel(self) -> Close | None:
        """As by POST; what comes of it is an event of the log. Gone already: the events say so, too."""
        try:
            record = await self._services.record(self._tenant, self._begin.generation)
            if not record.state.is_terminal:
                await self._services.cancel(record, CancelReason.USER)
        except (GenerationUnknown, GenerationExpired):
            return None
        except StoreError as error:
            return _close_of(error)
        return None


def _position(line: bytes) -> str | None:
    """The position of a message of ours."""
    return line[len(_ID) : line.index(b'"', len(_ID))].decode() if line.startswith(_ID) else None


def _seq(position: str) -> int:
    return int(position.partition("-")[0])


def _error(code: str, message: str, retryable: bool) -> bytes:
    return NDJSON.frame(b"error", orjson.dumps({"code": code, "message": message, "retryable": retryable}))


def _mistake(code: int, message: str) -> Close:
    return Close(code, "that is no message of this protocol", _error("invalid_message", message, False))


def _close_of(error: LegatoError) -> Close:
    """The code for a fault; the event is the viewer's, where it was one of its."""
    status = problem_of(error).status
    code = 1013 if isinstance(error, PASSING) else 4000 + status
    return Close(code, error.code)

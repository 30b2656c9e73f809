"""What holds for every answer, errors too: CORS headers, OPTIONS, the size of bodies. Pure ASGI, no copy of a body."""

from __future__ import annotations

import re
from typing import Final
from uuid import uuid4

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api.problem import Problem, Shapes, allowed_methods, shaped
from broker.errors import where

_log = structlog.get_logger("legato.api")

_ALLOW_HEADERS: Final = "Authorization, X-API-Key, Content-Type, Accept, Last-Event-ID, Idempotency-Key"
_EXPOSE_HEADERS: Final = (
    "Location, Retry-After, Idempotent-Replayed, X-Request-Id, "
    "X-Workflow-Run-Id, X-Workflow-Stream-Tail-Index, X-Legato-Code"
)

#: Headers that OpenAI's SDK adds in a browser. They are allowed to who asks for them.
_SDK_HEADER: Final = re.compile(r"(?:x-stainless|openai)-[a-z-]{1,40}")


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: FastAPI, *, origins: tuple[str, ...], max_body_bytes: int, shapes: Shapes) -> None:
        self._app = app
        self._shapes = shapes
        self._origins = origins
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = self._allowed(headers.get("origin"))
        request_id = f"req_{uuid4().hex}" if scope["path"].startswith(tuple(self._shapes)) else None

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                if origin is not None:
                    answer["Access-Control-Allow-Origin"] = origin
                    answer["Access-Control-Expose-Headers"] = _EXPOSE_HEADERS
                if request_id is not None:
                    answer["X-Request-Id"] = request_id
                if "vary" not in answer:
                    answer["Vary"] = "Accept, Origin"
            await send(message)

        if scope["method"] == "OPTIONS":
            await self._options(scope, send_with_cors)
            return
        if int(headers.get("content-length") or 0) > self._max_body_bytes:
            await self._shaped(self._too_large(), scope)(scope, receive, send_with_cors)
            return
        received = 0
        started = False

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_body_bytes:
                    raise self._too_large()
            return message

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send_with_cors(message)

        try:
            await self._app(scope, receive_bounded, send_noting)
        except Problem as problem:
            await self._shaped(problem, scope)(scope, receive, send_with_cors)
        except ClientDisconnect:
            return  # it left while it was sending: nobody to answer
        except Exception as exc:  # noqa: BLE001 - the last one to see it: one line in the log, never a traceback
            _log.error("request_failed", path=scope["path"], request=request_id, **where(exc))
            if not started:
                ours = Problem(500, "internal", "something went wrong here, and has been logged")
                await self._shaped(ours, scope)(scope, receive, send_with_cors)

    def _allowed(self, origin: str | None) -> str | None:
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else None

    def _shaped(self, problem: Problem, scope: Scope) -> Problem:
        return shaped(problem, self._shapes, scope["path"])

    def _too_large(self) -> Problem:
        return Problem(413, "body_too_large", f"a body has at most {self._max_body_bytes} bytes")

    async def _options(self, scope: Scope, send: Send) -> None:
        methods = allowed_methods(self._app.routes, scope)
        requested = Headers(scope=scope).get("access-control-request-headers", "").lower().split(",")
        allowed = [_ALLOW_HEADERS, *(name for item in requested if _SDK_HEADER.fullmatch(name := item.strip()))]
        headers = [
            (b"allow", methods.encode()),
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-allow-headers", ", ".join(allowed).encode()),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

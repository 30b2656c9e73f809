"""Errors as answers: problem+json (RFC 9457), one table from exceptions to statuses.

An answer says what is wrong and where; it never holds a stack trace, a credential, a prompt or an address of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from api.services import Draining
from broker import errors
from broker.wire import StoreReplyError

_log = structlog.get_logger("legato.api")

#: Seconds a client should wait before it comes back, where we cannot know better.
RETRY_AFTER_SECONDS: Final = 2

#: Status of each exception of ours; a class that is not here has that of its nearest ancestor.
STATUS: Final[Mapping[type[errors.LegatoError], int]] = {
    errors.LegatoError: 500,
    errors.InvalidPosition: 400,
    errors.GenerationUnknown: 404,
    errors.GenerationExpired: 410,
    errors.KeyReused: 422,
    errors.QueueFull: 429,
    errors.ThreadBusy: 409,
    errors.StoreError: 503,
    errors.StoreUnavailable: 503,
    errors.StoreUnusable: 503,
    StoreReplyError: 500,
    Draining: 503,
    errors.LeaseLost: 500,  # a worker's, never an answer's
    errors.ProviderError: 502,  # a worker's, never an answer's
}

MEDIA_TYPE: Final = b"application/problem+json"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of the request that is wrong, by its path: `messages.0.role`."""

    field: str
    message: str


class Problem(Exception):
    """An answer other than the one asked for."""

    media_type: bytes = MEDIA_TYPE

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        fields: tuple[FieldError, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """`{type, title, status, code, detail, errors?}`."""
        data: dict[str, object] = {
            "type": f"urn:legato:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.fields:
            data["errors"] = [{"field": item.field, "message": item.message} for item in self.fields]
        return orjson.dumps(data)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI application."""
        body = self.body()
        headers = [
            (b"content-type", self.media_type),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *((name.lower().encode(), value.encode()) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def problem_of(error: errors.LegatoError) -> Problem:
    """The answer for an exception of ours. What is our own fault is logged, and not told."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    if status >= 500 and status != 503:
        _log.error("request_failed", error=repr(error)[:300])
        return Problem(status, "internal", "something went wrong here, and has been logged")
    return Problem(status, error.code, str(error), headers=headers)


#: A dialect's form of a problem, for the paths below a prefix.
Shapes = Mapping[str, Callable[[Problem], Problem]]


def shaped(problem: Problem, shapes: Shapes, path: str) -> Problem:
    """The problem as the clients of `path` know errors."""
    shape = next((shape for prefix, shape in shapes.items() if path.startswith(prefix)), None)
    return problem if shape is None else shape(problem)


def install(app: FastAPI, shapes: Shapes) -> None:
    """Make every error of an application a problem."""

    def answer(request: Request, problem: Problem) -> Response:
        return _response(shaped(problem, shapes, request.url.path))

    async def legato_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, errors.LegatoError)  # noqa: S101
        return answer(request, problem_of(exc))

    async def problem(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, Problem)  # noqa: S101
        return answer(request, exc)

    async def http_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        if exc.status_code == 404:
            nothing = "there is nothing at this path; /openapi.json says what there is"
            return answer(request, Problem(404, "not_found", nothing))
        if exc.status_code == 405:
            allowed = allowed_methods(app.routes, request.scope)
            detail = f"{request.method} is not possible here; {allowed} is"
            return answer(request, Problem(405, "method_not_allowed", detail, headers={"Allow": allowed}))
        return answer(request, Problem(exc.status_code, "http_error", str(exc.detail)))

    async def bad_query(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)  # noqa: S101
        fields = tuple(
            FieldError(".".join(str(part) for part in item["loc"][1:]), str(item["msg"])) for item in exc.errors()
        )
        named = ", ".join(item.field for item in fields)
        return answer(request, Problem(400, "invalid_query", f"not right in the query: {named}", fields=fields))

    async def unexpected(request: Request, exc: Exception) -> Response:
        return answer(request, Problem(500, "internal", "something went wrong here, and has been logged"))

    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(RequestValidationError, bad_query)
    app.add_exception_handler(errors.LegatoError, legato_error)
    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, http_error)


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> str:
    """Every method that some route takes at the path of `scope`, for the Allow header."""
    taken = [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join([*taken, "OPTIONS"])


def _response(problem: Problem) -> Response:
    return Response(
        problem.body(),
        status_code=problem.status,
        headers={"cache-control": "no-store"} | problem.headers,
        media_type=problem.media_type.decode(),
    )

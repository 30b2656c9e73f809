"""Errors on the OpenAI routes: `{"error": {message, type, param, code}}`, and the headers that OpenAI's SDKs obey.

The SDKs repeat a request by themselves after 408, 409, 429 and every 5xx, and they send no idempotency key with it. So
what a repetition cannot help, or would bill twice, says `x-should-retry: false`; what passes says when to come back.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from api.problem import FieldError, Problem
from broker.events import Json

PREFIX: Final = "/openai/"

#: What OpenAI calls by another status.
_STATUS: Final = {410: 404, 422: 400}

#: So many fields are told in a message.
_MOST_NAMES: Final = 10


class OpenAIError(Problem):
    """A problem as OpenAI's clients know errors."""

    media_type = b"application/json"

    def body(self) -> bytes:
        """`{"error": {…}}`."""
        return orjson.dumps({"error": error_object(self.status, self.code, self.detail, self.fields)})


def shape(problem: Problem) -> OpenAIError:
    """The same problem, for a client of OpenAI."""
    if isinstance(problem, OpenAIError):
        return problem
    status = _STATUS.get(problem.status, problem.status)
    headers = dict(problem.headers)
    if status == 409 or (status >= 500 and status != 503):
        headers.setdefault("x-should-retry", "false")
    return OpenAIError(status, problem.code, problem.detail, fields=problem.fields, headers=headers)


def error_object(status: int, code: str, message: str, fields: tuple[FieldError, ...] = ()) -> Json:
    """`{message, type, param, code}`; the message names every field, `param` the first."""
    if fields:
        more = "; and more" if len(fields) > _MOST_NAMES else ""
        message = "; ".join(f"{item.field}: {item.message}" for item in fields[:_MOST_NAMES]) + more
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return {"message": message, "type": kind, "param": fields[0].field if fields else None, "code": code}


def refused(field: str, message: str, *, code: str = "invalid_request") -> Problem:
    """400 for one field."""
    return Problem(400, code, f"{field}: {message}", fields=(FieldError(field, message),))


def stream_reset(name: str) -> Problem:
    """409 for a reader that would have to forget what it was shown, and cannot be told to."""
    message = f"the answer was begun anew since {name}: ask for the whole stream, without it"
    return Problem(409, "stream_reset", message, fields=(FieldError(name, message),))


_NUMBER: Final = re.compile(r"\.(\d+)(?=\.|$)")


def in_brackets(path: str) -> str:
    """A path as OpenAI writes it: `input.0.content` is `input[0].content`."""
    return _NUMBER.sub(r"[\1]", path)

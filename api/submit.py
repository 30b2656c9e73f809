"""`POST /v1/generations`: store a job, answer 202, or 200 and its stream."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from api.auth import authenticate
from api.checks import check
from api.frames import SSE
from api.problem import FieldError, Problem
from api.request_model import WORDED, Submit
from api.services import PASSING, Services
from api.stream import FaultResponse, StreamResponse, cursor_of, names_sse
from api.viewer import start
from broker import generation
from broker.errors import DataLost, GenerationUnknown
from broker.events import CancelReason, Json
from broker.options import MOST_PROBLEMS, Path, Wrong, did_you_mean
from broker.records import Submitted
from broker.settings import Settings

#: What is wrong, by pydantic's name for it; `{…}` is its own parameter.
_SAID: Final = {
    "missing": "it is required",
    "extra_forbidden": "there is no such field",
    "model_type": "it must be an object",
    "dict_type": "it must be an object",
    "list_type": "it must be a list",
    "string_type": "it must be a string",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "string_too_short": "it must not be empty",
    "string_too_long": "it must have at most {max_length} characters",
    "too_short": "it must not be empty",
    "too_long": "it must have at most {max_length} items",
    "literal_error": "it must be {expected}",
    "string_pattern_mismatch": "it must match {pattern}",
}

_FIELDS: Final = frozenset(Submit.model_fields)

#: So many fields are named in a problem's `detail`; its `errors` hold up to `MOST_PROBLEMS`.
_MOST_NAMES: Final = 10

#: Longest path of a field in an answer.
_MOST_PATH_CHARS: Final = 256

_ROUTE: Final = "POST /v1/generations"

#: JSON deeper than this is refused: what reads it back (ours, the providers', the clients') gives up somewhere.
_MOST_LEVELS = 64

#: Numbers long enough that they may not fit 64 bits, which JSON in Python, JavaScript and Redis do not agree on.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def router(services: Services) -> APIRouter:
    """The submit route."""
    routes = APIRouter()

    @routes.post(
        "/v1/generations",
        status_code=202,
        summary="Submit a job",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema(Submit)}}}},
    )
    async def submit(request: Request) -> Response:
        """202 once the job is stored and will end; with `Accept: text/event-stream`, 200 and its stream."""
        tenant = authenticate(request.scope)
        body = parse(await request.body())
        wanted = validate(body, services.settings)
        key = idempotency_key(request)
        cursor = cursor_of(request.headers, {})
        if cursor is not None and key is None:
            raise Problem(
                409,
                "idempotency_key_required",
                "a POST with Last-Event-ID is a reader coming back, and starts nothing without the Idempotency-Key "
                "it began with; or read on with GET /v1/generations/{id}/events",
            )
        returning = cursor is not None and names_sse(request.headers)
        try:
            accepted = await submit_job(services, tenant, wanted.job(), key=key, body=body, route=_ROUTE)
        except PASSING as error:
            if not returning:
                raise
            return FaultResponse(services, SSE, "", cursor, error)

        headers = {"Location": f"/v1/generations/{accepted.id}"}
        if accepted.replayed:
            headers["Idempotent-Replayed"] = "true"
        if names_sse(request.headers):
            try:
                with _known_a_moment_ago():
                    begin = await start(services, tenant, accepted.id, cursor, snapshot=False, queued=True)
            except PASSING as error:
                return FaultResponse(services, SSE, accepted.id, cursor, error)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            return StreamResponse(services, begin, SSE, headers=raw)
        status = accepted.state.value
        if accepted.replayed:
            with _known_a_moment_ago():
                status = (await services.records.get(tenant, accepted.id)).shown_state.value
        answer = {
            "id": accepted.id,
            "object": "generation",
            "status": status,
            "created_at": accepted.created_ms / 1000,
            "stream_url": f"/v1/generations/{accepted.id}/events",
            "stream_token": None,
        }
        return Response(orjson.dumps(answer), status_code=202, headers=headers, media_type="application/json")

    return routes


async def submit_job(
    services: Services, tenant: str, job: generation.Request, *, key: str | None, body: Json, route: str
) -> Submitted:
    """Store a job that was asked for with `body` at `route`, which together are what an Idempotency-Key stands for."""
    services.check_open()
    fingerprint = sha256(route.encode() + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
    accepted = await services.records.submit(tenant, job, key=key, fingerprint=fingerprint)
    for other in accepted.interrupted:
        services.background(services.see_cancelled(other, CancelReason.INTERRUPTED), name=f"see {other.id} interrupted")
    return accepted


@contextmanager
def _known_a_moment_ago() -> Iterator[None]:
    """What the store had a step before and has no more, it has lost: the same submit again finds it, or begins anew. A
    404 would say that there is nothing to ask again for."""
    try:
        yield
    except GenerationUnknown as exc:
        raise DataLost("the store has lost the job that it had just taken; submit it again") from exc


def parse(raw: bytes) -> Any:
    """The body as JSON; 400 says where it is not, 422 which field is too deep or holds too long a number."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise Problem(400, "malformed_json", f"the body is not JSON in UTF-8: {exc.msg.lower()} ({where})") from exc
    if isinstance(body, dict):
        _refuse(body, _too_deep, f"it is nested more than {_MOST_LEVELS} levels deep")
        if _LONG_NUMBER.search(raw):
            # orjson makes floats of integers that do not fit; the standard library shows which they are.
            exact = json.loads(raw, parse_int=_within_64_bits)
            _refuse(exact, _too_long, "an integer in it does not fit 64 bits; send it as a string")
    return body


def _refuse(body: Json, is_wrong: Callable[[object], bool], message: str) -> None:
    if wrong := [Wrong((name,), message) for name, value in body.items() if is_wrong(value)]:
        raise refusal(wrong)


def _too_deep(value: object) -> bool:
    return next(islice(_layers(value), _MOST_LEVELS, None), None) is not None


def _too_long(value: object) -> bool:
    return any(item is _NO_NUMBER for layer in _layers(value) for item in layer)


def _layers(value: object) -> Iterator[list[object]]:
    """What is in a value of JSON, level by level: it may be deeper than the stack."""
    layer = [value]
    while layer:
        yield layer
        layer = [item for outer in layer for item in _items(outer)]


#: Stands for an integer that no 64 bits hold.
_NO_NUMBER: Final = object()


def _within_64_bits(digits: str) -> object:
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else _NO_NUMBER


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def validate(body: object, settings: Settings) -> Submit:
    """The body as a job; 422 names everything that is wrong, in the order in which it stands in the body."""
    wanted: Submit | None = None
    wrong: list[Wrong] = []
    try:
        wanted = Submit.model_validate(body)
    except ValidationError as exc:
        found = exc.errors(include_url=False, include_input=False)[:MOST_PROBLEMS]
        wrong = [Wrong(item["loc"], _message(item)) for item in found]
    if isinstance(body, dict):
        wrong += islice(check(body, settings), MOST_PROBLEMS)
    if wanted is None or wrong:
        raise refusal(sorted(wrong, key=lambda item: _place(body, item.path)))
    return wanted


def _message(error: ErrorDetails) -> str:
    if error["type"] == WORDED:
        return error["msg"]
    bounds = {name: int(item) if isinstance(item, float) else item for name, item in error.get("ctx", {}).items()}
    said = _SAID.get(error["type"], "it is not right").format_map(bounds)
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        said += did_you_mean(str(error["loc"][0]), _FIELDS)
    return said


def _place(body: object, path: Path) -> list[int]:
    """Where a path stands in the body, to sort by. What is not there stands behind all that is."""
    place: list[int] = []
    for part in path:
        match body, part:
            case dict(), _ if part in body:
                place.append(list(body).index(part))
                body = body[part]
            case list(), int() if part < len(body):
                place.append(part)
                body = body[part]
            case _:
                return [*place, sys.maxsize]
    return place


def refusal(wrong: Sequence[Wrong]) -> Problem:
    """One answer for all of them; a field's path is cut where a client's own names make it long."""
    fields = tuple(
        FieldError(".".join(str(part) for part in item.path)[:_MOST_PATH_CHARS] or "(body)", item.message)
        for item in wrong[:MOST_PROBLEMS]
    )
    names = list(dict.fromkeys(item.field for item in fields))
    more = " and more" if len(names) > _MOST_NAMES or len(wrong) > len(fields) else ""
    detail = f"these fields are not right: {', '.join(names[:_MOST_NAMES])}{more}"
    return Problem(422, "invalid_request", detail, fields=fields)


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key, or None; 400 for one that is empty, too long or not printable ASCII."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip(" \t")
    if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(400, "invalid_idempotency_key", "an Idempotency-Key has 1 to 255 printable ASCII characters")
    return key


_REFERENCE: Final = re.compile(r"#/\$defs/(.+)")


def schema(model: type[BaseModel]) -> Json:
    """A body as a JSON Schema that may stand anywhere in a document: it refers to nothing outside of itself."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def inlined(value: Any) -> Any:
        match value:
            case {"$ref": str(reference), **rest}:
                name = _REFERENCE.fullmatch(reference)
                return inlined(definitions[name[1]] | rest) if name else value
            case dict():
                return {key: inlined(item) for key, item in value.items()}
            case list():
                return [inlined(item) for item in value]
            case _:
                return value

    inlined_whole: Json = inlined(whole)
    return inlined_whole

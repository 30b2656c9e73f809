"""`POST /v1/generations`: store a job, answer 202, or 200 and its stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.responses import Response

from api.auth import authenticate
from api.frames import SSE
from api.problem import FieldError, Problem
from api.services import PASSING, Services
from api.stream import FaultResponse, StreamResponse, cursor_of, names_sse
from api.viewer import start
from broker.generation import Priority, Recovery
from broker.generation import Request as Job

#: What pydantic says in terms of itself, in terms of the request.
_SAID = {"extra_forbidden": "there is no such field", "model_type": "it must be a JSON object"}

_ROUTE = "POST /v1/generations"
_METADATA_BYTES = 16 * 1024

#: JSON deeper than this is refused: what reads it back (ours, the providers', the clients') gives up somewhere.
_MOST_LEVELS = 64

#: Numbers long enough that they may not fit 64 bits, which JSON in Python, JavaScript and Redis do not agree on.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content, or tool_calls")
        if isinstance(self.content, list) and any(not isinstance(part.get("type"), str) for part in self.content):
            raise ValueError("every part of content needs a type")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool message needs tool_call_id")
        return self


class OnDisconnect(_Strict):
    """What happens when no viewer has been attached for `grace_seconds`, or none ever came."""

    policy: Literal["continue", "cancel"] = "continue"
    grace_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0


class Delivery(_Strict):
    """How text is cut into deltas. This version passes on what the provider sends."""

    unit: Literal["token"] = "token"


class Submit(_Strict):
    """A job."""

    provider: Annotated[str, Field(min_length=1, max_length=64)]
    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1)]
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    provider_options: dict[str, Any] = {}
    tool_mode: Literal["return"] = "return"
    thread: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    recovery: Literal["restart", "continue", "fail"] = "restart"
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    on_disconnect: OnDisconnect = OnDisconnect()
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    stall_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    delivery: Delivery = Delivery()
    priority: Literal["interactive", "batch"] = "interactive"
    ttl_seconds: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    metadata: dict[str, Any] = {}

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(orjson.dumps(value)) > _METADATA_BYTES:
            raise ValueError("it is larger than 16 KiB")
        return value

    def job(self) -> Job:
        """What the store keeps."""
        return Job(
            provider=self.provider,
            model=self.model,
            messages=[message.model_dump(exclude_none=True) for message in self.messages],
            max_output_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop,
            tools=self.tools,
            tool_choice=self.tool_choice,
            provider_options=self.provider_options,
            thread=self.thread,
            recovery=Recovery(self.recovery),
            max_attempts=self.max_attempts,
            timeout_seconds=self.timeout_seconds,
            stall_seconds=self.stall_seconds,
            priority=Priority(self.priority),
            ttl_seconds=self.ttl_seconds,
            grace_seconds=self.on_disconnect.grace_seconds if self.on_disconnect.policy == "cancel" else None,
            metadata=self.metadata,
        )


def router(services: Services) -> APIRouter:
    """The submit route."""
    routes = APIRouter()

    @routes.post(
        "/v1/generations",
        status_code=202,
        summary="Submit a job",
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": Submit.model_json_schema()}}}
        },
    )
    async def submit(request: Request) -> Response:
        """202 once the job is stored and will end; with `Accept: text/event-stream`, 200 and its stream."""
        tenant = authenticate(request.scope)
        body = parse(await request.body())
        wanted = validate(body, services.settings.providers)
        key = idempotency_key(request)
        cursor = cursor_of(request.headers, {})
        if cursor is not None and key is None:
            raise Problem(
                409,
                "idempotency_key_required",
                "a POST with Last-Event-ID is a reader coming back, and starts nothing without the Idempotency-Key "
                "it began with; or read on with GET /v1/generations/{id}/events",
            )
        fingerprint = sha256(_ROUTE.encode() + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()
        returning = cursor is not None and names_sse(request.headers)
        try:
            services.check_open()
            accepted = await services.records.submit(tenant, wanted.job(), key=key, fingerprint=fingerprint)
        except PASSING as error:
            if not returning:
                raise
            return FaultResponse(services, SSE, "", cursor, error)

        headers = {"Location": f"/v1/generations/{accepted.id}"}
        if accepted.replayed:
            headers["Idempotent-Replayed"] = "true"
        if names_sse(request.headers):
            try:
                begin = await start(services, tenant, accepted.id, cursor, snapshot=False)
            except PASSING as error:
                return FaultResponse(services, SSE, accepted.id, cursor, error)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            return StreamResponse(services, begin, SSE, headers=raw)
        status = accepted.state.value
        if accepted.replayed:
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


def parse(raw: bytes) -> Any:
    """The body as JSON; 400 says where it is not, 422 which field is too deep or holds too long a number."""
    try:
        body = orjson.loads(raw)
        # orjson makes floats of integers that do not fit; the standard library shows which they are.
        exact = json.loads(raw, parse_int=_within_64_bits) if _LONG_NUMBER.search(raw) else body
    except orjson.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise Problem(400, "malformed_json", f"the body is not JSON in UTF-8: {exc.msg.lower()} ({where})") from exc
    for name, value in exact.items() if isinstance(exact, dict) else ():
        layer, depth = [value], 0
        while layer:  # level by level: it may be deeper than the stack
            depth += 1
            if depth > _MOST_LEVELS:
                raise _wrong(FieldError(str(name), f"it is nested more than {_MOST_LEVELS} levels deep"))
            if any(item is _TOO_LONG for item in layer):
                raise _wrong(FieldError(str(name), "an integer in it does not fit 64 bits; send it as a string"))
            layer = [item for outer in layer for item in _items(outer)]
    return body


_TOO_LONG = object()


def _within_64_bits(digits: str) -> object:
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else _TOO_LONG


def _items(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _wrong(*fields: FieldError) -> Problem:
    named = ", ".join(dict.fromkeys(item.field for item in fields))
    return Problem(422, "invalid_request", f"these fields are not right: {named}", fields=fields)


def validate(body: object, providers: tuple[str, ...]) -> Submit:
    """The body as a job; 422 names every field that is wrong."""
    try:
        wanted = Submit.model_validate(body)
    except ValidationError as exc:
        fields = tuple(
            FieldError(".".join(str(part) for part in item["loc"]) or "(body)", _SAID.get(item["type"], item["msg"]))
            for item in exc.errors(include_url=False, include_input=False, include_context=False)
        )
        raise _wrong(*fields) from exc
    if wanted.provider not in providers:
        there_is = ", ".join(providers) or "none"
        raise _wrong(FieldError("provider", f"no provider is named so; there is {there_is}"))
    return wanted


def idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key, or None; 400 for one that is empty, too long or not printable ASCII."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Problem(400, "invalid_idempotency_key", "an Idempotency-Key has 1 to 255 printable ASCII characters")
    return key

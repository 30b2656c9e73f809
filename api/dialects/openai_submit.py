"""What a POST of either OpenAI dialect does before it has words of its own: read the body, store the job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.openai_errors import refused
from api.problem import RETRY_AFTER_SECONDS, Problem
from api.services import Services
from api.submit import idempotency_key, parse, submit_job
from broker import generation
from broker.errors import GenerationUnknown
from broker.events import Json
from broker.records import Submitted

#: Tells a client of the dialect which generation it is on the native routes.
GENERATION_HEADER: Final = "Legato-Generation"

#: Fields that say how the answer is delivered, not what is generated: the same key gives the same answer either way.
_DELIVERY: Final = ("stream", "stream_options")


async def body_of(request: Request) -> Json:
    """The body, a JSON object. Raises `Problem`."""
    body: Any = parse(await request.body())
    if not isinstance(body, dict):
        raise refused("(body)", "it must be an object")
    return body


async def submit(
    services: Services, tenant: str, request: Request, body: Json, job: generation.Request, *, route: str
) -> Submitted:
    """Store the job, or find it again by its `Idempotency-Key`. Raises as `Records.submit`."""
    key = idempotency_key(request)
    if key is None and request.headers.get("last-event-id"):
        message = (
            "a POST with Last-Event-ID is a reader coming back, and starts nothing without the Idempotency-Key "
            "it began with"
        )
        raise Problem(409, "idempotency_key_required", message)
    asked = {name: value for name, value in body.items() if name not in _DELIVERY}
    return await submit_job(services, tenant, job, key=key, body=asked, route=route)


def headers_of(accepted: Submitted) -> dict[str, str]:
    """Headers of every answer to a POST."""
    headers = {GENERATION_HEADER: accepted.id}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return headers


def interrupted(request: Request, accepted: Submitted, where: str) -> Problem:
    """503 for a POST that cannot be answered, though its job is stored and goes on. A client that repeated it without
    a key would start, and pay for, another one."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS), **headers_of(accepted)}
    if "idempotency-key" not in request.headers:
        headers["x-should-retry"] = "false"
    return Problem(503, "interrupted", f"it goes on without this connection: {where}", headers=headers)


def generation_of(text: str, prefix: str) -> str:
    """The generation that an id of the dialect stands for (its own is taken, too). Raises `GenerationUnknown`."""
    known = f"gen_{text.removeprefix(prefix)}" if text.startswith(prefix) else text
    if not generation.is_id(known):
        raise GenerationUnknown("there is nothing of that id")
    return known


def json_response(data: object, headers: Mapping[str, str] | None = None) -> Response:
    """200 with JSON."""
    kept = {"cache-control": "no-store"} | dict(headers or {})
    return Response(orjson.dumps(data), headers=kept, media_type="application/json")


def query_of(request: Request, *names: str) -> Json:
    """The query, which may hold `names`, each once. Raises `Problem`."""
    query = {name.removesuffix("[]"): value for name, value in request.query_params.multi_items()}
    for name in query:
        if name not in names:
            raise refused(name[:64], "there is no such parameter here")
    if query.get("include", "reasoning.encrypted_content") != "reasoning.encrypted_content":
        raise refused("include", "only reasoning.encrypted_content can be included, and always is")
    return query

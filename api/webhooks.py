"""Dead deliveries of webhooks: list them, and have them tried again."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.auth import authenticate
from api.problem import Problem
from api.services import Services
from broker.errors import GenerationUnknown
from broker.events import Json
from broker.generation import Record, is_id
from broker.webhooks import is_dead


def router(services: Services) -> APIRouter:
    """The two routes."""
    routes = APIRouter()
    webhooks = services.records.webhooks

    async def dead(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, cursor: str | None = None
    ) -> Response:
        """Deliveries that nobody tries any more, newest generation first."""
        tenant = authenticate(request.scope)
        if cursor is not None and not is_id(cursor.partition(":")[0]):
            raise Problem(400, "invalid_query", "cursor is the next_cursor of an earlier answer")
        page = await webhooks.dead(tenant, limit=limit, cursor=cursor or "")
        data: list[Json] = []
        stale: list[tuple[str, str]] = []
        for generation, endpoint in page.deliveries:
            record = await services.records.find(generation)
            if record is None or not is_dead(record, endpoint):
                stale.append((generation, endpoint))
            else:
                data.append(_describe(record, endpoint))
        await webhooks.forget(tenant, stale)
        more = {"next_cursor": page.next_cursor, "has_more": page.next_cursor is not None}
        return _json(200, {"object": "list", "data": data} | more)

    async def redeliver(request: Request, delivery: str) -> Response:
        """202: it is tried again, as often as a new one."""
        generation, _, endpoint = delivery.partition(":")
        if not is_id(generation):
            raise GenerationUnknown("there is no delivery of that id")
        record = await services.record(authenticate(request.scope), generation)
        if not is_dead(record, endpoint):
            raise GenerationUnknown("there is no dead delivery of that id")
        await webhooks.revive(record, endpoint)
        return _json(202, {"id": delivery, "object": "webhook_delivery", "status": "scheduled"})

    routes.add_api_route("/v1/webhooks/dead", dead, methods=["GET"], summary="List dead deliveries of webhooks")
    routes.add_api_route(
        "/v1/webhooks/dead/{delivery}/redeliver",
        redeliver,
        methods=["POST"],
        status_code=202,
        summary="Try a dead delivery again",
    )
    return routes


def _describe(record: Record, endpoint: str) -> Json:
    hook = record.webhooks[endpoint]
    return {
        "id": f"{record.id}:{endpoint}",
        "object": "webhook_delivery",
        "generation": record.id,
        "endpoint": endpoint,
        "status": record.state.value,
        "ended_at": record.ended_ms / 1000 if record.ended_ms is not None else None,
        "tries": hook.tries,
        "error": hook.outcome,
    }


def _json(status: int, data: Json) -> Response:
    return Response(orjson.dumps(data), status_code=status, media_type="application/json")

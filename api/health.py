"""Is this process alive, and should it get requests."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.responses import Response

from api.problem import RETRY_AFTER_SECONDS
from api.services import Services
from broker.errors import StoreError


def router(services: Services) -> APIRouter:
    """`/livez` and `/readyz`."""
    routes = APIRouter()

    async def livez() -> Response:
        """200 while the process answers at all."""
        return _json(200, {"status": "alive"})

    async def readyz() -> Response:
        """200 when the store answers and keeps what it is given, and this process is not stopping; else 503."""
        if services.draining:
            return _json(503, {"status": "draining"})
        try:
            facts = await services.store.facts()
        except StoreError as error:
            return _json(503, {"status": "unready", "store": error.code, "detail": str(error)})
        if facts.evicts:
            detail = f"maxmemory-policy is {facts.maxmemory_policy}: the store may drop logs; it must be noeviction"
            return _json(503, {"status": "unready", "store": "evicts", "detail": detail})
        return _json(200, {"status": "ready", "store": f"{facts.server} {facts.version}"})

    for path, handler in (("/livez", livez), ("/readyz", readyz)):
        routes.add_api_route(path, handler, methods=["GET"])
        routes.add_api_route(path, handler, methods=["HEAD"], include_in_schema=False)
    return routes


def _json(status: int, data: dict[str, str]) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return Response(orjson.dumps(data), status_code=status, headers=headers, media_type="application/json")

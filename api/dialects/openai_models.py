"""`GET /openai/v1/models`: the names that this deployment has given to models. A provider's own are not known here."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth import authenticate
from api.dialects.openai_request import resolve
from api.dialects.openai_submit import json_response
from api.services import Services
from broker.events import Json

_PATTERN: Final = frozenset("*?[")


def router(services: Services) -> APIRouter:
    """The routes of models."""
    routes = APIRouter(include_in_schema=False)
    settings = services.settings
    named = [name for name in settings.openai_dialect_models if not _PATTERN.intersection(name)]
    if "sim" in settings.providers:
        named.append("sim/sim-1")

    async def listed(request: Request) -> Response:
        authenticate(request.scope)
        return json_response({"object": "list", "data": [model(name) for name in named]})

    def model(name: str) -> Json:
        return {"id": name, "object": "model", "created": 0, "owned_by": resolve(name, settings)[0]}

    routes.add_api_route("/openai/v1/models", listed, methods=["GET", "HEAD"])
    return routes

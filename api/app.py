"""Builds the API: the one place in `api` that chooses and wires things."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from api import (
    generations,
    health,
    metrics,
    multiplex,
    openapi,
    problem,
    submit,
    threads,
    tool_results,
    webhooks,
    websocket,
)
from api.dialects import ai_sdk, chat_routes, openai_errors, openai_models, responses_items, responses_routes
from api.edge import Edge
from api.services import Services
from api.stream import EventsRoute


def build(services: Services) -> ASGIApp:
    """The ASGI application over `services`, which the caller has opened in the loop that will serve it."""
    app = FastAPI(
        title="Legato",
        summary="A generated text arrives whole, whatever breaks.",
        version="1",
        docs_url=None,  # the page would load its scripts from elsewhere; /openapi.json is all it needs
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the query, and with it tokens
    )
    shapes = {openai_errors.PREFIX: openai_errors.shape, ai_sdk.PREFIX: ai_sdk.shape}
    problem.install(app, shapes)
    events = Route(
        "/v1/generations/{generation}/events", EventsRoute(services), methods=["GET", "HEAD"], include_in_schema=False
    )
    thread_events = Route(
        "/v1/threads/{thread:path}/events",
        threads.ThreadEventsRoute(services),
        methods=["GET", "HEAD"],
        include_in_schema=False,
    )
    many = Route("/v1/events", multiplex.MultiplexRoute(services), methods=["GET", "HEAD"], include_in_schema=False)
    # First: routes are tried in turn, and to get past the others costs as much as a short replay.
    app.router.routes += [events, thread_events, many]
    app.include_router(submit.router(services))
    app.include_router(generations.router(services))
    app.include_router(tool_results.router(services))
    app.include_router(responses_routes.router(services))
    app.include_router(responses_items.router(services))
    app.include_router(chat_routes.router(services))
    app.include_router(openai_models.router(services))
    app.include_router(webhooks.router(services))
    app.include_router(health.router(services))
    app.include_router(metrics.router(services))
    sockets = websocket.WebSocketRoute(services)
    where = "/v1/generations/{generation}/ws"
    app.router.routes += [
        Route(where, sockets, methods=["GET"], include_in_schema=False),
        WebSocketRoute(where, sockets),
        WebSocketRoute("/{path:path}", websocket.Nowhere()),
    ]
    app.include_router(threads.router(services))  # behind them: a name may hold slashes
    app.router.routes.extend(ai_sdk.routes(services))
    openapi.install(app)
    settings = services.settings
    return Edge(app, origins=settings.cors_origins, max_body_bytes=settings.max_body_bytes, shapes=shapes)

"""Look up, list, cancel and delete generations."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.auth import authenticate
from api.problem import Problem
from api.services import Services
from broker.errors import GenerationUnknown
from broker.events import CancelReason, Completed, Failed, FailureCode, Json
from broker.generation import Record, State, is_id
from broker.records import CancelOutcome
from broker.snapshot import Fold

_LISTABLE = [state.value for state in State if state is not State.DELETED]
_FAILURES = [code.value for code in FailureCode]


def router(services: Services) -> APIRouter:
    """The control routes of existing generations."""
    routes = APIRouter()

    async def find(request: Request, generation: str) -> Record:
        if not is_id(generation):
            raise GenerationUnknown("there is no generation of that id")
        return await services.record(authenticate(request.scope), generation)

    async def show(request: Request, generation: str) -> Response:
        """The record and the text so far, as one JSON object."""
        record = await find(request, generation)
        fold, _ = await services.log.folded(generation)
        return _json(200, _describe(record) | fold.state() | _ending(fold) | {"timings": record.timings})

    async def newest(
        request: Request,
        status: str | None = None,
        thread: str | None = None,
        code: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        cursor: str | None = None,
    ) -> Response:
        """The tenant's generations, newest first; `next_cursor` leads to the next page. `code=worker_lost` finds the
        jobs that lost a worker at every attempt."""
        if status is not None and status not in _LISTABLE:
            raise Problem(400, "invalid_query", f"status is one of {', '.join(_LISTABLE)}")
        if code is not None and code not in _FAILURES:
            raise Problem(400, "invalid_query", f"code is one of {', '.join(_FAILURES)}")
        if cursor is not None and not is_id(cursor):
            raise Problem(400, "invalid_query", "cursor is the next_cursor of an earlier answer")
        page = await services.records.newest(
            authenticate(request.scope),
            limit=limit,
            cursor=cursor or "",
            state=State(status) if status else None,
            thread=thread,
            failure=FailureCode(code) if code else None,
        )
        data = [_describe(record) for record in page.records]
        more = {"next_cursor": page.next_cursor, "has_more": page.next_cursor is not None}
        return _json(200, {"object": "list", "data": data} | more)

    async def cancel(request: Request, generation: str) -> Response:
        """202: stored, and `cancelled` will be the end. 200: asked before, or ended already."""
        record = await find(request, generation)
        if record.state.is_terminal:
            return _json(200, _brief(record, record.state))
        match await services.cancel(record, CancelReason.USER):
            case CancelOutcome.ENDED:
                return _json(200, _brief(record, (await find(request, generation)).state))
            case CancelOutcome.CANCELLED:
                return _json(202, _brief(record, State.CANCELLED))
            case CancelOutcome.REQUESTED:
                return _json(200 if record.cancel_requested else 202, _brief(record, State.CANCELLING))

    async def delete(request: Request, generation: str) -> Response:
        """204: prompt and log are erased, a worker that still wrote is fenced; the id answers 410 from now on."""
        await services.records.delete(await find(request, generation))
        return Response(status_code=204)

    one = "/v1/generations/{generation}"
    routes.add_api_route("/v1/generations", newest, methods=["GET"], summary="List generations")
    routes.add_api_route("/v1/generations", newest, methods=["HEAD"], include_in_schema=False)
    routes.add_api_route(one, show, methods=["GET"], summary="Status and text so far")
    routes.add_api_route(one, show, methods=["HEAD"], include_in_schema=False)
    routes.add_api_route(one, delete, methods=["DELETE"], status_code=204, summary="Erase a generation")
    routes.add_api_route(one + "/cancel", cancel, methods=["POST"], status_code=202, summary="Cancel a generation")
    return routes


def _describe(record: Record) -> Json:
    return {
        "id": record.id,
        "object": "generation",
        "status": record.shown_state.value,
        "provider": record.provider,
        "model": record.model,
        "priority": record.priority.value,
        "thread": record.thread,
        "created_at": record.created_ms / 1000,
        "started_at": record.started_ms / 1000 if record.started_ms is not None else None,
        "ended_at": record.ended_ms / 1000 if record.ended_ms is not None else None,
        "attempt": record.attempt,
        "code": record.failure.value if record.failure else None,
        "position": str(record.head),
        "stream_url": f"/v1/generations/{record.id}/events",
        "metadata": record.metadata,
    }


def _ending(fold: Fold) -> Json:
    match fold.end:
        case Completed(finish_reason=reason, characters=characters):
            return {"finish_reason": reason.value, "characters": characters, "error": None}
        case Failed() as failed:
            error = {
                "code": failed.code.value,
                "message": failed.message,
                "retryable": failed.retryable,
                "partial": failed.partial,
                "characters": failed.characters,
            }
            return {"finish_reason": None, "error": error}
        case _:
            return {"finish_reason": None, "error": None}


def _brief(record: Record, state: State) -> Json:
    return {"id": record.id, "object": "generation", "status": state.value}


def _json(status: int, data: Json) -> Response:
    return Response(orjson.dumps(data), status_code=status, media_type="application/json")

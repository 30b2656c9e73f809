"""OpenAI's chat completions, `POST /openai/v1/chat/completions`: stream and whole.

No SDK can resume a stream here. The same POST with the same `Idempotency-Key` gives the same answer again, from its
beginning, or behind the position that it names as `Last-Event-ID`; without a key it is another answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth import authenticate
from api.dialects.chat_chunks import DONE, ChunkStream, Completion, completion, failure_of
from api.dialects.chat_request import include_usage, job_of
from api.dialects.openai_errors import stream_reset
from api.dialects.openai_submit import body_of, headers_of, interrupted, json_response, submit
from api.dialects.viewer import DialectStream, last_reset
from api.dialects.waiting import Silent, WaitForEnd
from api.frames import SSE
from api.problem import Problem
from api.services import PASSING, Services
from api.stream import STREAM_HEADERS, cursor_of
from api.viewer import Start, start
from broker.events import Cancelled, Completed, Failed
from broker.position import BEGINNING, Position

_ROUTE: Final = "POST /openai/v1/chat/completions"


def router(services: Services) -> APIRouter:
    """The route of the dialect."""
    routes = APIRouter(include_in_schema=False)

    async def create(request: Request) -> Response:
        """The stream, or the completion once it has ended."""
        tenant = authenticate(request.scope)
        body = await body_of(request)
        job = job_of(body, services.settings)
        cursor = cursor_of(request.headers, {})
        accepted = await submit(services, tenant, request, body, job, route=_ROUTE)
        key = accepted.id.removeprefix("gen_")
        subject = Completion(key=key, created=accepted.created_ms // 1000, model=str(body["model"]))
        headers = headers_of(accepted)
        otherwise = interrupted(request, accepted, "the same POST with its Idempotency-Key has it")
        try:
            begin = await _begin(services, tenant, accepted.id, cursor)
        except PASSING:
            raise otherwise from None
        if body.get("stream") is True:
            if begin.seen_the_end:
                kept = {name.decode(): value.decode() for name, value in STREAM_HEADERS}
                return Response(DONE, headers=kept | headers, media_type=SSE.media_type.decode())
            resumed = cursor not in (None, BEGINNING)
            chunks = ChunkStream(subject, include_usage=include_usage(body), resumed=resumed)
            return DialectStream(services, begin, chunks, headers=headers)

        async def ended() -> Response:
            fold, _ = await services.log.folded(accepted.id)
            match fold.end:
                case Completed() as end:
                    return json_response(completion(subject, fold, end), headers)
                case Failed() as failed:
                    raise _problem(*failure_of(failed), failed.message, headers)
                case Cancelled(reason=why):
                    raise _problem(409, "cancelled", f"it was cancelled ({why.value})", headers)
                case None:  # its end is lost for a moment
                    raise otherwise

        return WaitForEnd(services, begin, Silent(), ended, otherwise=otherwise)

    routes.add_api_route("/openai/v1/chat/completions", create, methods=["POST"])
    return routes


async def _begin(services: Services, tenant: str, generation: str, cursor: str | None) -> Start:
    """Where a reader starts: behind its cursor, or behind the last `reset`. Raises `Problem` for one that would have to
    forget something."""
    while True:
        reset = await last_reset(services, generation)
        if cursor not in (None, BEGINNING) and Position.of_entry_id(cursor).seq < Position.of_entry_id(reset).seq:
            raise stream_reset("Last-Event-ID")
        place = reset if cursor in (None, BEGINNING) else cursor
        begin = await start(services, tenant, generation, place, snapshot=False)
        if begin.verdict != "rewound":
            return begin
        if place == cursor:
            raise stream_reset("Last-Event-ID")


def _problem(status: int, code: str, message: str, headers: Mapping[str, str]) -> Problem:
    """How an answer that is not whole is told to who waited for it. Asking again was tried here already."""
    return Problem(status, code, message, headers={"x-should-retry": "false", **headers})

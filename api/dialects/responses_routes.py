"""OpenAI's Responses API under `/openai/v1/responses`: create, retrieve, cancel, delete, input items.

A response is a generation seen through `responses_events`; nothing is stored besides. Its id is `resp_` and the hex
digits of the generation's. What comes before a stream is OpenAI's JSON; a stream that cannot go on is cut, and
`GET …?stream=true&starting_after=N` reads on behind event N, on any process.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.auth import authenticate
from api.dialects.encoder import CannotTakeBack
from api.dialects.openai_errors import refused, stream_reset
from api.dialects.openai_submit import body_of, generation_of, headers_of, interrupted, json_response, query_of, submit
from api.dialects.responses_events import ResponseStream
from api.dialects.responses_input import Before
from api.dialects.responses_object import NAME, PREFIX, Subject, subject_of
from api.dialects.responses_request import job_of
from api.dialects.viewer import DialectStream
from api.dialects.waiting import WaitForEnd
from api.services import PASSING, Services
from api.viewer import Start, start
from broker.errors import GenerationExpired, GenerationUnknown, StoreError
from broker.events import CancelReason
from broker.generation import Record, State
from broker.position import BEGINNING

_ROUTE: Final = "POST /openai/v1/responses"


def router(services: Services) -> APIRouter:
    """The routes of the dialect."""
    routes = APIRouter(include_in_schema=False)

    async def retrieve(request: Request, response_id: str) -> Response:
        """The response as of now, or its stream behind an event."""
        after, streamed = _asked(request)
        record = await _find(services, request, response_id)
        if not streamed:
            return await _shown(services, record)
        services.check_open()
        subject = await _subject(services, record)
        begin, events = await replay(services, record.tenant, record.id, subject, after=after)
        return DialectStream(services, begin, events, headers={})

    async def cancel(request: Request, response_id: str) -> Response:
        """The response, which is cancelled, or had ended before."""
        record = await _find(services, request, response_id)
        if not record.state.is_terminal:
            await services.cancel(record, CancelReason.USER)
        return await _shown(services, await _find(services, request, response_id))

    async def delete(request: Request, response_id: str) -> Response:
        """Prompt and log are erased; whoever reads it is told that it was cancelled."""
        record = await _find(services, request, response_id)
        await services.records.delete(record)
        return json_response({"id": PREFIX + record.id.removeprefix("gen_"), "object": "response", "deleted": True})

    async def create(request: Request) -> Response:
        return await _create(services, request)

    one = "/openai/v1/responses/{response_id}"
    routes.add_api_route("/openai/v1/responses", create, methods=["POST"])
    routes.add_api_route(one, retrieve, methods=["GET", "HEAD"])
    routes.add_api_route(one, delete, methods=["DELETE"])
    routes.add_api_route(f"{one}/cancel", cancel, methods=["POST"])
    return routes


async def _create(services: Services, request: Request) -> Response:
    """The stream, the response as it is queued (`background`), or the response once it has ended."""
    tenant = authenticate(request.scope)
    body = await body_of(request)
    before = await _before(services, tenant, body.get("previous_response_id"))
    job = job_of(body, services.settings, before)
    if "last-event-id" in request.headers and "idempotency-key" in request.headers:
        raise refused("Last-Event-ID", "this stream has no ids: read on with GET …?stream=true&starting_after=N")
    accepted = await submit(services, tenant, request, body, job, route=_ROUTE)
    subject = subject_of(accepted.id, accepted.created_ms, job)
    headers = headers_of(accepted)
    otherwise = interrupted(request, accepted, f"GET /openai/v1/responses/{subject.id} has it")
    try:
        if body.get("background") is True and body.get("stream") is not True:
            return json_response((await state(services, accepted.id, subject)).response(), headers)
        begin, events = await replay(services, tenant, accepted.id, subject)
    except PASSING:
        raise otherwise from None
    if body.get("stream") is True:
        return DialectStream(services, begin, events, headers=headers)
    seen = ResponseStream(subject, mute=True)

    async def ended() -> Response:
        try:
            completed_at = _completed_at(await services.record(tenant, accepted.id))
        except StoreError:
            completed_at = None
        return json_response(seen.response(completed_at=completed_at), headers)

    return WaitForEnd(services, begin, seen, ended, otherwise=otherwise)


async def _before(services: Services, tenant: str, response_id: object) -> Before | None:
    """The response that another one goes on from. Raises `Problem`."""
    if response_id is None:
        return None
    field = "previous_response_id"
    if not isinstance(response_id, str):
        raise refused(field, "it must be a string")
    try:
        record = await services.record(tenant, generation_of(response_id, PREFIX))
        asked = await services.records.asked(record.id)
        seen = await state(services, record.id, subject_of(record.id, record.created_ms, asked))
    except (GenerationUnknown, GenerationExpired):
        raise refused(field, "there is no such response (any more)", code="previous_response_not_found") from None
    if not seen.ended:
        raise refused(field, "it has not ended yet")
    instructions = asked.dialect.get("name") == NAME and asked.dialect.get("instructions")
    return Before(messages=asked.messages[1 if instructions else 0 :], output=seen.response()["output"])


async def _find(services: Services, request: Request, response_id: str) -> Record:
    return await services.record(authenticate(request.scope), generation_of(response_id, PREFIX))


async def _subject(services: Services, record: Record) -> Subject:
    return subject_of(record.id, record.created_ms, await services.records.asked(record.id))


async def _shown(services: Services, record: Record) -> Response:
    seen = await state(services, record.id, await _subject(services, record))
    if seen.ended and not record.state.is_terminal:  # in between
        record = await services.record(record.tenant, record.id)
    cancelling = record.shown_state in (State.CANCELLING, State.CANCELLED)
    return json_response(seen.response(cancelling=cancelling, completed_at=_completed_at(record)))


async def state(services: Services, generation: str, subject: Subject, *, after: int | None = None) -> ResponseStream:
    """The whole log, seen and not shown. Raises `CannotTakeBack` where `after` names an event that is lost."""
    while True:
        seen = ResponseStream(subject, after=after, mute=True)
        seen.begin()
        async for page in services.log.pages(generation):
            seen.encode(page.entries)
        if page.held:
            return seen


async def replay(
    services: Services, tenant: str, generation: str, subject: Subject, *, after: int | None = None
) -> tuple[Start, ResponseStream]:
    """Where a reader of the stream starts, and what it is shown: everything behind the last `reset`, or what of that
    follows event `after`. Raises `Problem` for a number that names no event of this answer."""
    while True:
        try:
            seen = await state(services, generation, subject, after=after)
        except CannotTakeBack:
            raise stream_reset("starting_after") from None
        origin = seen.origin
        if not origin.answers(after):
            raise stream_reset("starting_after")
        if after is not None and not seen.gives(after):
            raise refused("starting_after", f"the last event of this response is {seen.number - 1}")
        cursor = None if origin.position == BEGINNING else origin.position
        begin = await start(services, tenant, generation, cursor, snapshot=False)
        if begin.verdict != "rewound":
            return begin, ResponseStream(subject, origin=origin, after=after)


def _completed_at(record: Record) -> float | None:
    completed = record.state is State.COMPLETED and record.ended_ms is not None
    return record.ended_ms // 1000 if completed and record.ended_ms is not None else None


def _asked(request: Request) -> tuple[int | None, bool]:
    """`starting_after` and `stream` of a retrieval."""
    query = query_of(request, "stream", "starting_after", "include", "include_obfuscation")
    for name in ("stream", "include_obfuscation"):
        if query.get(name, "false") not in ("true", "false"):
            raise refused(name, "it must be true or false")
    if query.get("include_obfuscation") == "true":
        raise refused("include_obfuscation", "streams are not obfuscated here; leave it out or say false")
    streamed = query.get("stream") == "true"
    text = query.get("starting_after")
    if text is None:
        return None, streamed
    if not streamed:
        raise refused("starting_after", "it goes with stream=true only")
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise refused("starting_after", "it must be the sequence_number of an event")
    return int(text), streamed

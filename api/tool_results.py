"""`POST /v1/generations/{id}/tool_results`: what the client's tools gave back, and the generation goes on."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from api.auth import authenticate
from api.problem import FieldError, Problem
from api.services import Services
from api.submit import parse, schema
from broker.calls import Accepted, CallResult, Conflict, NotWaiting, UnknownCall
from broker.errors import GenerationUnknown
from broker.generation import is_id


class Result(BaseModel):
    """The result of one call. `content` is text; anything else is sent to the model as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tool_call_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: Any
    is_error: bool = False


class Results(BaseModel):
    """Results, of all the calls that were asked for or of some."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tool_results: Annotated[list[Result], Field(min_length=1, max_length=256)]


def router(services: Services) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/v1/generations/{generation}/tool_results",
        status_code=202,
        summary="Give the results of tools that the client runs",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema(Results)}}}},
    )
    async def give(request: Request, generation: str) -> Response:
        """202: stored, and once none is owed the generation goes on. 200: the very same results were stored before."""
        if not is_id(generation):
            raise GenerationUnknown("there is no generation of that id")
        tenant = authenticate(request.scope)
        results = _results(parse(await request.body()))
        services.check_open()
        record = await services.record(tenant, generation)
        match await services.calls.give(record, results):
            case Accepted(fresh=fresh, owed=owed):
                data = {"id": generation, "object": "generation", "accepted": fresh, "owed": owed}
                return Response(orjson.dumps(data), status_code=202 if fresh else 200, media_type="application/json")
            case Conflict(call=call):
                raise Problem(409, "result_conflict", f"another result of the call {call} is stored already")
            case UnknownCall(call=call):
                where = [number for number, result in enumerate(results) if result.call == call]
                raise _wrong(FieldError(f"tool_results.{where[0]}.tool_call_id", "no result of this call is wanted"))
            case NotWaiting(state=state):
                raise Problem(409, "not_waiting_for_tools", f"it waits for no results: it is {state.value}")

    return routes


def _results(body: object) -> list[CallResult]:
    """The body's results; 422 names what is wrong."""
    try:
        given = Results.model_validate(body).tool_results
    except ValidationError as exc:
        raise _wrong(
            *(
                FieldError(".".join(map(str, item["loc"])) or "(body)", item["msg"].lower())
                for item in exc.errors(include_url=False, include_input=False, include_context=False)
            )
        ) from exc
    seen: set[str] = set()
    for number, result in enumerate(given):
        if result.tool_call_id in seen:
            raise _wrong(FieldError(f"tool_results.{number}.tool_call_id", "the call is in this list already"))
        seen.add(result.tool_call_id)
    return [
        CallResult(call=result.tool_call_id, content=_text(result.content), is_error=result.is_error)
        for result in given
    ]


def _text(content: object) -> str:
    return content if isinstance(content, str) else orjson.dumps(content).decode()


def _wrong(*fields: FieldError) -> Problem:
    named = ", ".join(dict.fromkeys(item.field for item in fields))
    return Problem(422, "invalid_request", f"these fields are not right: {named}", fields=fields)

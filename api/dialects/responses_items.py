"""`GET /openai/v1/responses/{id}/input_items`: what a response was asked with, as items."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from api.auth import authenticate
from api.dialects.openai_errors import refused
from api.dialects.openai_submit import generation_of, json_response, query_of
from api.dialects.responses_object import NAME, PREFIX, Subject, subject_of
from api.services import Services
from broker.events import Json
from broker.generation import Request

_DEFAULT_ITEMS: Final = 20
_MOST_ITEMS: Final = 100


def router(services: Services) -> APIRouter:
    """The route."""
    routes = APIRouter(include_in_schema=False)

    async def items(request: HttpRequest, response_id: str) -> Response:
        """What it was asked with, a page at a time."""
        limit, newest_first, after = _page(request)
        generation = generation_of(response_id, PREFIX)
        record = await services.record(authenticate(request.scope), generation)
        asked = await services.records.asked(record.id)
        listed = input_items(subject_of(record.id, record.created_ms, asked), asked)
        if newest_first:
            listed.reverse()
        if after is not None:
            places = [at for at, item in enumerate(listed) if item["id"] == after]
            if not places:
                raise refused("after", "no item of this response has that id")
            listed = listed[places[0] + 1 :]
        page = listed[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return json_response({"object": "list", "data": page, **ends, "has_more": len(listed) > limit})

    routes.add_api_route("/openai/v1/responses/{response_id}/input_items", items, methods=["GET", "HEAD"])
    return routes


def _page(request: HttpRequest) -> tuple[int, bool, str | None]:
    """`limit`, `order` and `after` of a list."""
    query = query_of(request, "limit", "order", "after", "include")
    limit = query.get("limit", str(_DEFAULT_ITEMS))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= _MOST_ITEMS and len(limit) <= 4):
        raise refused("limit", f"it must be 1 to {_MOST_ITEMS}")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise refused("order", "it must be asc or desc")
    return int(limit), order == "desc", query.get("after")


def input_items(subject: Subject, request: Request) -> list[Json]:
    """The items that were asked with, oldest first, each with an id of its own."""
    skip = request.dialect.get("skip", 0) if request.dialect.get("name") == NAME else 0
    items: list[Json] = []
    for message in request.messages[skip:]:
        items += _items(message)
    return [{"id": f"{_PREFIX[item['type']]}_{subject.key}_in{at}"} | item for at, item in enumerate(items)]


_PREFIX: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def _items(message: Json) -> list[Json]:
    role, content = message["role"], message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    shown = [converted for part in parts if (converted := _shown_part(part, role)) is not None]
    if role == "tool":
        output = content if isinstance(content, str) else shown
        call_id = message.get("tool_call_id")
        return [{"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}]
    items: list[Json] = []
    if shown:
        items.append({"type": "message", "role": role, "status": "completed", "content": shown})
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        called = {"call_id": call.get("id"), "name": function.get("name"), "arguments": function.get("arguments")}
        items.append({"type": "function_call", **called, "status": "completed"})
    return items


def _shown_part(part: Json, role: str) -> Json | None:
    match part:
        case {"type": "text", "text": text} if role == "assistant":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url}}:
            return {
                "type": "input_image",
                "image_url": url,
                "detail": part["image_url"].get("detail", "auto"),
                "file_id": None,
            }
        case {"type": "file", "file": dict(file)}:
            return {"type": "input_file"} | file
        case {"type": "refusal"}:
            return part
        case _:  # what a provider wants back, unread
            return None

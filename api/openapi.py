"""What `GET /openapi.json` says beside what FastAPI sees: the shapes of answers and problems, and the stream route.

Handlers make their answers themselves, so FastAPI knows of none; left alone it would promise errors of its own shape.
Tests hold what stands here against what a running server answers.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from broker.events import FailureCode, Json
from broker.generation import State

_STATUSES: Final = [state.value for state in State if state is not State.DELETED]
_STRING: Final[Json] = {"type": "string"}
_NUMBER: Final[Json] = {"type": "number"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_OBJECT: Final[Json] = {"type": "object"}
_POSITION: Final[Json] = {"type": "string", "pattern": "^(0-0|[1-9][0-9]{0,15}-[1-9][0-9]{0,15})$"}


def _object(required: Json, **optional: Json) -> Json:
    """An object of these; every property beyond is a later version's."""
    return {"type": "object", "properties": required | optional, "required": list(required)}


def _or_null(kind: Json) -> Json:
    return {"anyOf": [kind, {"type": "null"}]}


def _list(kind: Json) -> Json:
    return {"type": "array", "items": kind}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_NAMED: Final[Json] = {
    "id": _STRING,
    "object": {"const": "generation"},
    "status": {"enum": _STATUSES},
}
_RECORD: Final[Json] = _NAMED | {
    "provider": _STRING,
    "model": _STRING,
    "priority": {"enum": ["interactive", "batch"]},
    "thread": _or_null(_STRING),
    "created_at": _NUMBER,
    "started_at": _or_null(_NUMBER),
    "ended_at": _or_null(_NUMBER),
    "attempt": _COUNT,
    "code": _or_null({"enum": [code.value for code in FailureCode]}),
    "position": _POSITION,
    "stream_url": _STRING,
    "metadata": _OBJECT,
}
_SCHEMAS: Final[Json] = {
    "Problem": _object(
        {
            "type": _STRING,
            "title": _STRING,
            "status": {"type": "integer"},
            "code": _STRING,
            "detail": _STRING,
        },
        errors=_list(_object({"field": _STRING, "message": _STRING})),
    ),
    "Named": _object(_NAMED),
    "Accepted": _object(
        _NAMED | {"created_at": _NUMBER, "stream_url": _STRING, "stream_token": _or_null(_STRING)},
    ),
    "Record": _object(_RECORD),
    "Generation": _object(
        _RECORD
        | {
            "text": _STRING,
            "tool_calls": _list(_object({"index": _COUNT, "id": _STRING, "name": _STRING, "arguments": _STRING})),
            "finish_reason": _or_null(_STRING),
            "error": _or_null(
                _object(
                    {
                        "code": _STRING,
                        "message": _STRING,
                        "retryable": {"type": "boolean"},
                        "partial": {"type": "boolean"},
                        "characters": _COUNT,
                    }
                )
            ),
            "timings": _or_null(_OBJECT),
        },
        reasoning=_STRING,
        refusal=_STRING,
        tool_results=_list(_OBJECT),
        parts=_list(_OBJECT),
        usage=_object({"input_tokens": _COUNT, "output_tokens": _COUNT}),
        characters=_COUNT,
    ),
    "List": _object(
        {
            "object": {"const": "list"},
            "data": _list(_ref("Record")),
            "next_cursor": _or_null(_STRING),
            "has_more": {"type": "boolean"},
        }
    ),
    "Given": _object({"id": _STRING, "object": {"const": "generation"}, "accepted": _COUNT, "owed": _COUNT}),
    "Poll": _object(
        {
            "verdict": {"enum": ["start", "resumed", "rewound"]},
            "events": _list(_object({"id": _POSITION, "event": _STRING, "data": _OBJECT})),
            "position": _POSITION,
            "status": {"enum": _STATUSES},
        }
    ),
    "Thread": _object(
        {
            "object": {"const": "thread"},
            "thread": _STRING,
            "active": _or_null(_STRING),
            "queued": _list(_STRING),
            "last": _or_null(_STRING),
            "stream_url": _STRING,
        }
    ),
    "DeadDeliveries": _object(
        {
            "object": {"const": "list"},
            "data": _list(
                _object(
                    {
                        "id": _STRING,
                        "object": {"const": "webhook_delivery"},
                        "generation": _STRING,
                        "endpoint": _STRING,
                        "status": {"enum": _STATUSES},
                        "ended_at": _or_null(_NUMBER),
                        "tries": _COUNT,
                        "error": _STRING,
                    }
                )
            ),
            "next_cursor": _or_null(_STRING),
            "has_more": {"type": "boolean"},
        }
    ),
    "Delivery": _object({"id": _STRING, "object": {"const": "webhook_delivery"}, "status": {"const": "scheduled"}}),
    "Health": _object({"status": _STRING}, store=_STRING, detail=_STRING),
}

_LOCATION: Final[Json] = {"Location": {"schema": _STRING, "description": "of the generation"}}
_REPLAYED: Final[Json] = {"Idempotent-Replayed": {"schema": {"const": "true"}, "description": "the key was known"}}
_EVENTS: Final[Json] = {"schema": _STRING}
_PROBLEM: Final[Json] = {
    "description": "What is wrong, and where",
    "content": {"application/problem+json": {"schema": _ref("Problem")}},
}


def _answer(description: str, kind: str | None = None, /, *, headers: Json | None = None, **content: Json) -> Json:
    """One answer: JSON of a kind, and what else it may be, by media type; neither: it has no body."""
    bodies = ({} if kind is None else {"application/json": {"schema": _ref(kind)}}) | content
    answer: Json = {"description": description}
    if bodies:
        answer["content"] = bodies
    return answer | ({"headers": headers} if headers else {})


_ONE: Final = "/v1/generations/{generation}"
_THREAD: Final = "/v1/threads/{thread}"
_STREAM: Final[Json] = {"text/event-stream": _EVENTS}

#: What each operation answers when it does what was asked. Everything else is a problem.
_ANSWERS: Final[dict[tuple[str, str], Json]] = {
    ("post", "/v1/generations"): {
        "202": _answer("Stored; it will end", "Accepted", headers=_LOCATION | _REPLAYED),
        "200": _answer("The stream, where Accept names it", headers=_LOCATION | _REPLAYED, **_STREAM),
        "204": _answer("The cursor has seen the end"),
    },
    ("get", "/v1/generations"): {"200": _answer("A page", "List")},
    ("get", _ONE): {"200": _answer("Status and text so far", "Generation")},
    ("delete", _ONE): {"204": _answer("Erased")},
    ("post", _ONE + "/cancel"): {
        "202": _answer("Stored; `cancelled` will be the end", "Named"),
        "200": _answer("Asked before, or ended already", "Named"),
    },
    ("post", _ONE + "/tool_results"): {
        "202": _answer("Stored", "Given"),
        "200": _answer("The very same results were stored before", "Given"),
    },
    ("get", _ONE + "/events"): {
        "200": _answer(
            "Events as they come, or one answer to a poll",
            "Poll",
            **_STREAM,
            **{"application/x-ndjson": _EVENTS},
        ),
        "204": _answer("The cursor has seen the end"),
    },
    ("get", _ONE + "/ws"): {"101": _answer("A WebSocket: the same events as messages")},
    ("get", _THREAD): {"200": _answer("What it is doing", "Thread")},
    ("get", _THREAD + "/events"): {
        "200": _answer("Events of one of its generations", **_STREAM, **{"application/x-ndjson": _EVENTS}),
        "204": _answer("There is nothing more"),
    },
    ("get", "/v1/events"): {
        "200": _answer("Events of all of them, mixed", **_STREAM, **{"application/x-ndjson": _EVENTS}),
        "204": _answer("There is nothing more"),
    },
    ("get", "/v1/webhooks/dead"): {"200": _answer("A page", "DeadDeliveries")},
    ("post", "/v1/webhooks/dead/{delivery}/redeliver"): {"202": _answer("It is tried again", "Delivery")},
    ("get", "/livez"): {"200": _answer("Alive", "Health")},
    ("get", "/readyz"): {"200": _answer("Ready", "Health"), "503": _answer("Not ready", "Health")},
    ("get", "/metrics"): {"200": _answer("Metrics", **{"text/plain": _EVENTS})},
}


def _parameter(where: str, name: str, description: str, schema: Json) -> Json:
    return {"in": where, "name": name, "description": description, "schema": schema}


_QUALIFIED: Final = "<generation>/<position>: the last id that was taken in"
_CURSOR: Final = _parameter("header", "Last-Event-ID", "the last position that was taken in", _POSITION)
_FROM: Final = _parameter("query", "from", "begin with the state so far", {"const": "snapshot"})
_PARAMETERS: Final[dict[tuple[str, str], list[Json]]] = {
    ("post", "/v1/generations"): [
        _parameter(
            "header", "Idempotency-Key", "the same key and body: the same generation", {**_STRING, "maxLength": 255}
        ),
        _CURSOR,
    ],
    ("get", _ONE + "/events"): [
        {**_parameter("path", "generation", "its id", _STRING), "required": True},
        _CURSOR,
        _parameter("query", "last_event_id", "the same, where no header can be set", _POSITION),
        _FROM,
        _parameter("query", "wait", "poll: seconds", {"type": "number", "minimum": 0, "maximum": 55, "default": 25}),
        _parameter(
            "query", "limit", "poll: events", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 500}
        ),
    ],
    ("get", _ONE + "/ws"): [
        {**_parameter("path", "generation", "its id", _STRING), "required": True},
        _parameter("query", "last_event_id", "the last position that was taken in", _POSITION),
        _FROM,
        _parameter("query", "window", "most events unacknowledged", {"type": "integer", "minimum": 1, "maximum": 1024}),
    ],
    ("get", _THREAD + "/events"): [
        {**_parameter("path", "thread", "its name", _STRING), "required": True},
        _parameter("header", "Last-Event-ID", _QUALIFIED, _STRING),
        _parameter("query", "last_event_id", "the same, where no header can be set", _STRING),
        _FROM,
    ],
    ("get", "/v1/events"): [
        _parameter("query", "generation", "ids", _list(_STRING)),
        _parameter("query", "thread", "names of threads", _list(_STRING)),
        _parameter("header", "Last-Event-ID", "the last id that was taken in: a place in each", _STRING),
        _parameter("query", "last_event_id", "the same, where no header can be set", _STRING),
        _FROM,
    ],
}


def install(app: FastAPI) -> None:
    """Make `/openapi.json` say so. To be called behind the last route."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            paths = document["paths"]
            paths[_ONE + "/events"] = {"get": {"summary": "Follow a generation", "operationId": "events"}}
            paths[_ONE + "/ws"] = {"get": {"summary": "Follow a generation by WebSocket", "operationId": "websocket"}}
            paths[_THREAD + "/events"] = {"get": {"summary": "Follow a thread", "operationId": "thread_events"}}
            paths["/v1/events"] = {"get": {"summary": "Follow many generations", "operationId": "many_events"}}
            for (method, path), answers in _ANSWERS.items():
                operation = paths[path][method]
                operation["responses"] = answers | {"default": _PROBLEM}
                if more := _PARAMETERS.get((method, path)):
                    operation["parameters"] = [*operation.get("parameters", []), *more]
            document["components"] = {"schemas": _SCHEMAS}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's own way to change it

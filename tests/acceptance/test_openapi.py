"""`/openapi.json` says what a running server does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator

from tests.support.sse_client import NDJSON, SSE, Answer, request
from tests.support.stack import Stack, job

JSON = {"Content-Type": "application/json"}
ONE = "/v1/generations/{generation}"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("openapi")) as running:
        yield running


@pytest.fixture(scope="module")
def document(stack: Stack) -> Any:
    return stack.get("/openapi.json").json()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def schemas(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "schema" in value:
            yield value["schema"]
        for item in value.values():
            yield from schemas(item)
    elif isinstance(value, list):
        for item in value:
            yield from schemas(item)


def test_every_schema_is_one_and_refers_to_what_is_there(document: Any) -> None:
    there = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) == there
    for schema in [*schemas(document["paths"]), *document["components"]["schemas"].values()]:
        Draft202012Validator.check_schema(schema)


def test_every_operation_is_there_and_none_that_is_not(stack: Stack, document: Any) -> None:
    for path, operations in document["paths"].items():
        where = path.replace("{generation}", f"gen_{'0' * 32}")
        allowed = {name.strip().lower() for name in stack_options(stack, where)} - {"head", "options"}
        assert set(operations) == allowed, path
        for operation in operations.values():
            assert operation["summary"]
            assert "default" in operation["responses"]
            named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
            assert named == {name for name in ("generation", "thread", "delivery") if f"{{{name}}}" in path}


def stack_options(stack: Stack, path: str) -> list[str]:
    return request(stack.urls[0], "OPTIONS", path).headers["allow"].split(",")


def check(document: Any, method: str, path: str, answer: Answer) -> None:
    """The answer is one of those that the document names, of a type and a shape that it gives."""
    responses = document["paths"][path][method.lower()]["responses"]
    told = responses.get(str(answer.status), responses["default"])
    if not answer.body:
        assert "content" not in told, (method, path, answer.status)
        return
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in told["content"], (method, path, answer.status, kind)
    schema = told["content"][kind]["schema"] | {"components": document["components"]}
    body = answer.json() if kind.endswith(("/json", "+json")) else answer.body.decode()
    assert list(Draft202012Validator(schema).iter_errors(body)) == [], body


def test_answers_are_as_it_says(stack: Stack, document: Any) -> None:
    url = stack.urls[0]

    def ask(
        method: str, path: str, generation: str = "", *, query: str = "", body: Any = None, **headers: str
    ) -> Answer:
        where = path.replace("{generation}", generation) + query
        named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if method == "GET" else b"" if body is None else json.dumps(body).encode()
        answer = request(url, method, where, headers=named, body=data)
        check(document, method, path, answer)
        return answer

    submit = "/v1/generations"
    key = {"Idempotency_Key": uuid4().hex}
    accepted = ask("POST", submit, body=job({"tokens": 3}), **key)
    assert accepted.status == 202
    done = accepted.json()["id"]
    stack.wait_status(done, "completed")
    assert ask("POST", submit, body=job({"tokens": 3}), **key).headers["idempotent-replayed"] == "true"
    assert ask("POST", submit, body=job({"tokens": 4}), **key).status == 422
    assert ask("POST", submit, body=job({"tokens": 3}), Accept=SSE).status == 200
    end = ask("GET", ONE, done).json()["position"]
    assert ask("POST", submit, body=job({"tokens": 3}), Accept=SSE, Last_Event_ID=end, **key).status == 204
    assert ask("POST", submit, body={"provider": 5}).status == 422
    failing = job({"tokens": 3, "faults": [{"at_token": 1, "kind": "error"}]}, max_attempts=1, thread="t")
    failed = ask("POST", submit, body=failing).json()["id"]
    stack.wait_status(failed, "failed")
    assert ask("GET", ONE, failed).json()["error"]["code"] == "upstream_error"
    running = ask("POST", submit, body=job({"tokens": 9_000, "tokens_per_second": 5})).json()["id"]
    stack.wait_entries(running, 3)
    assert ask("GET", ONE, running).json()["ended_at"] is None
    for accept in ("application/json", SSE, NDJSON):
        assert ask("GET", ONE + "/events", done, Accept=accept).status == 200
        after = ask("GET", ONE + "/events", done, Accept=accept, Last_Event_ID=end)
        assert after.status == (200 if accept == "application/json" else 204)
        assert ask("GET", ONE + "/events", done, Accept=accept, Last_Event_ID="1").status == 400
    assert ask("GET", ONE + "/events", running, query="?wait=0&from=snapshot", Accept="application/json").json()[
        "events"
    ]
    assert ask("POST", ONE + "/cancel", running).status == 202
    stack.wait_status(running, "cancelled")
    assert ask("POST", ONE + "/cancel", running).status == 200
    calls = [{"name": "look", "arguments": {}}]
    asking = job({"turns": [{"tool_calls": calls}, {"text": "x"}]}, tools=[TOOL], tool_mode="interactive")
    waiting = ask("POST", submit, body=asking).json()["id"]
    stack.wait_status(waiting, "waiting_for_tools")
    results = [{"tool_call_id": ask("GET", ONE, waiting).json()["tool_calls"][0]["id"], "content": "x"}]
    for status in (202, 200):
        assert ask("POST", ONE + "/tool_results", waiting, body={"tool_results": results}).status == status
    stack.wait_status(waiting, "completed")
    assert ask("GET", ONE, waiting).json()["tool_results"]
    assert len(ask("GET", submit, query="?limit=2").json()["data"]) == 2
    assert ask("GET", submit, query="?limit=0").status == 400
    assert ask("DELETE", ONE, done).status == 204
    for method, path in (("GET", ONE), ("DELETE", ONE), ("GET", ONE + "/events"), ("POST", ONE + "/cancel")):
        assert ask(method, path, done).status == 410
        assert ask(method, path, "gen_x").status == 404
    in_thread = ask("POST", submit, body=job({"tokens": 3}, thread="{thread}")).json()["id"]
    assert ask("GET", "/v1/threads/{thread}").json()["last"] == in_thread
    assert ask("GET", ONE + "/ws", in_thread).status == 426
    assert ask("POST", submit, body=job({"tokens": 3}, thread_policy="reject")).status == 422
    for accept in (SSE, NDJSON):
        assert ask("GET", "/v1/threads/{thread}/events", Accept=accept).status == 200
        assert ask("GET", "/v1/threads/{thread}/events", Accept=accept, Last_Event_ID="1-1").status == 400
    for accept in (SSE, NDJSON):
        assert ask("GET", "/v1/events", query=f"?generation={in_thread}", Accept=accept).status == 200
        assert ask("GET", "/v1/events", Accept=accept).status == 400
    assert ask("GET", "/v1/events", query=f"?generation={in_thread}", Accept="application/json").status == 406
    for path in ("/livez", "/readyz", "/metrics"):
        assert ask("GET", path).status == 200

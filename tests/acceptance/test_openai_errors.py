"""Everything that is not an answer, on the OpenAI routes: one shape, a status that OpenAI's clients act on, headers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from broker.embedded import EmbeddedServer
from tests.support.sse_client import Answer, Ending, Stream, request
from tests.support.stack import Stack, eventually

RESPONSES = "/openai/v1/responses"
CHAT = "/openai/v1/chat/completions"
UNKNOWN = f"{RESPONSES}/resp_{'0' * 32}"
JSON = {"Content-Type": "application/json"}
BODY: dict[str, Any] = {"model": "sim-1", "input": "x", "legato": {"provider_options": {"tokens": 5}}}
USER = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of each; little fits into a body or into the queue."""
    environment = {"LEGATO_MAX_BODY_BYTES": "20000"}
    with Stack.start(redis_url, tmp_path_factory.mktemp("errors"), environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def ended(stack: Stack) -> str:
    """The path of a response that has ended, with event 8 as its last."""
    body = {**BODY, "legato": {"provider_options": {"text": "abcd"}}}
    return f"{RESPONSES}/{ask(stack.urls[0], 'POST', RESPONSES, body).json()['id']}"


def ask(url: str, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Answer:
    """One request; `body` is JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return request(url, method, path, body=data, headers=JSON | (headers or {}))


#: method, path, body, headers -> status, type, code, param
TABLE: list[tuple[str, str, object, dict[str, str], tuple[int, str, str, str | None]]] = [
    ("POST", RESPONSES, b"{", {}, (400, "invalid_request_error", "malformed_json", None)),
    ("POST", RESPONSES, [], {}, (400, "invalid_request_error", "invalid_request", "(body)")),
    ("POST", RESPONSES, {"input": "x"}, {}, (400, "invalid_request_error", "invalid_request", "model")),
    ("POST", RESPONSES, BODY | {"shoe": 1}, {}, (400, "invalid_request_error", "invalid_request", "shoe")),
    (
        *("POST", RESPONSES, BODY | {"previous_response_id": f"resp_{'0' * 32}"}, {}),
        (400, "invalid_request_error", "previous_response_not_found", "previous_response_id"),
    ),
    (
        *("POST", RESPONSES, BODY | {"previous_response_id": 3}, {}),
        (400, "invalid_request_error", "invalid_request", "previous_response_id"),
    ),
    ("POST", RESPONSES, BODY, {"Idempotency-Key": ""}, (400, "invalid_request_error", "invalid_idempotency_key", None)),
    (
        "POST",
        RESPONSES,
        BODY,
        {"Last-Event-ID": "1-1"},
        (409, "invalid_request_error", "idempotency_key_required", None),
    ),
    (
        *("POST", RESPONSES, BODY, {"Last-Event-ID": "1-1", "Idempotency-Key": "e1"}),
        (400, "invalid_request_error", "invalid_request", "Last-Event-ID"),
    ),
    ("POST", RESPONSES, b" " * 30_000, {}, (413, "invalid_request_error", "body_too_large", None)),
    ("PUT", RESPONSES, None, {}, (405, "invalid_request_error", "method_not_allowed", None)),
    ("GET", UNKNOWN, None, {}, (404, "invalid_request_error", "not_found", None)),
    ("GET", f"{RESPONSES}/nonsense", None, {}, (404, "invalid_request_error", "not_found", None)),
    ("GET", f"{UNKNOWN}?stream=true", None, {}, (404, "invalid_request_error", "not_found", None)),
    ("GET", f"{UNKNOWN}/input_items", None, {}, (404, "invalid_request_error", "not_found", None)),
    ("POST", f"{UNKNOWN}/cancel", None, {}, (404, "invalid_request_error", "not_found", None)),
    ("DELETE", UNKNOWN, None, {}, (404, "invalid_request_error", "not_found", None)),
    ("GET", "/openai/v1/files", None, {}, (404, "invalid_request_error", "not_found", None)),
    ("GET", "{ended}?stream=perhaps", None, {}, (400, "invalid_request_error", "invalid_request", "stream")),
    ("GET", "{ended}?shoe=1", None, {}, (400, "invalid_request_error", "invalid_request", "shoe")),
    ("GET", "{ended}?starting_after=1", None, {}, (400, "invalid_request_error", "invalid_request", "starting_after")),
    (
        *("GET", "{ended}?stream=true&starting_after=-1", None, {}),
        (400, "invalid_request_error", "invalid_request", "starting_after"),
    ),
    (
        *("GET", "{ended}?stream=true&starting_after=9", None, {}),
        (400, "invalid_request_error", "invalid_request", "starting_after"),
    ),
    (
        *("GET", "{ended}?include_obfuscation=true", None, {}),
        (400, "invalid_request_error", "invalid_request", "include_obfuscation"),
    ),
    ("GET", "{ended}?include[]=x", None, {}, (400, "invalid_request_error", "invalid_request", "include")),
    ("GET", "{ended}/input_items?limit=0", None, {}, (400, "invalid_request_error", "invalid_request", "limit")),
    ("GET", "{ended}/input_items?order=up", None, {}, (400, "invalid_request_error", "invalid_request", "order")),
    ("GET", "{ended}/input_items?after=x", None, {}, (400, "invalid_request_error", "invalid_request", "after")),
    ("POST", CHAT, {"model": "sim-1"}, {}, (400, "invalid_request_error", "invalid_request", "messages")),
    (
        *("POST", CHAT, {"model": "sim-1", "messages": USER}, {"Last-Event-ID": "1-1"}),
        (409, "invalid_request_error", "idempotency_key_required", None),
    ),
    (
        *("POST", CHAT, {"model": "sim-1", "messages": USER}, {"Last-Event-ID": "x", "Idempotency-Key": "e2"}),
        (400, "invalid_request_error", "invalid_position", None),
    ),
    (
        *("POST", CHAT, {"model": "sim-1", "messages": USER}, {"Last-Event-ID": "77-1", "Idempotency-Key": "e3"}),
        (409, "invalid_request_error", "stream_reset", "Last-Event-ID"),
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "expected"), TABLE, ids=[f"{row[0]} {row[1]} {row[4][2]}" for row in TABLE]
)
def test_every_error_has_openai_s_shape(
    stack: Stack,
    ended: str,
    method: str,
    path: str,
    body: object,
    headers: dict[str, str],
    expected: tuple[int, str, str, str | None],
) -> None:
    """Status, type, code and param; a request id; and no repetition where it cannot help."""
    answer = ask(stack.urls[0], method, path.replace("{ended}", ended), body, headers)
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["code"], error["param"]) == expected
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"]
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers.get("x-should-retry") == ("false" if answer.status == 409 else None)


def test_other_routes_keep_their_own_shape(stack: Stack) -> None:
    """A problem, as RFC 9457 has it."""
    answer = ask(stack.urls[0], "GET", "/v1/generations/nonsense")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "not_found"


def test_a_key_stands_for_one_body_however_it_is_delivered(stack: Stack) -> None:
    """The same response, streamed or not; another body is refused."""
    key = {"Idempotency-Key": "twice"}
    first = ask(stack.urls[0], "POST", RESPONSES, BODY, key)
    again = ask(stack.urls[0], "POST", RESPONSES, BODY, key)
    assert again.json() == first.json()
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["legato-generation"] == f"gen_{first.json()['id'].removeprefix('resp_')}"
    body = json.dumps(BODY | {"stream": True}).encode()
    with Stream(stack.urls[0], RESPONSES, method="POST", headers=JSON | key, body=body) as stream:
        text = stream.rest().decode()
        assert stream.ending is Ending.CLEAN
    assert first.json()["id"] in text
    assert stream.headers["idempotent-replayed"] == "true"
    other = ask(stack.urls[0], "POST", RESPONSES, BODY | {"input": "y"}, key)
    assert (other.status, other.json()["error"]["code"]) == (400, "idempotency_key_reused")


def test_the_end_that_was_seen_is_an_empty_stream(stack: Stack, ended: str) -> None:
    """Behind the last event there is nothing, and that is no cut."""
    with Stream(stack.urls[0], f"{ended}?stream=true&starting_after=8") as stream:
        assert (stream.status, stream.rest(), stream.ending) == (200, b"", Ending.CLEAN)
    with Stream(stack.urls[0], f"{ended}?stream=true&starting_after=7") as stream:
        assert stream.rest().startswith(b"event: response.completed\n")


def test_a_full_queue_says_when_to_come_back(stack: Stack) -> None:
    """429, and nothing is stored."""
    api = stack.add_api({"LEGATO_MAX_QUEUED": "1"})
    stack.workers[0].pause()
    try:
        waiting = ask(api.url, "POST", RESPONSES, BODY | {"background": True})
        assert waiting.json()["status"] == "queued"
        answer = ask(api.url, "POST", CHAT, {"model": "sim-1", "messages": USER})
        error = answer.json()["error"]
        assert (answer.status, error["type"], error["code"]) == (429, "rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) > 0
    finally:
        stack.workers[0].resume()
        stack.remove(api)


def test_head_and_options(stack: Stack, ended: str) -> None:
    """As on every route: status and headers; what is possible."""
    for path in (ended, f"{ended}?stream=true"):
        answer = ask(stack.urls[0], "HEAD", path)
        assert (answer.status, answer.body) == (200, b"")
    answer = ask(stack.urls[0], "OPTIONS", ended)
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS"


def test_the_sdk_may_ask_from_a_browser(stack: Stack) -> None:
    """It adds headers of its own, for which a browser asks first. Nothing else is allowed besides."""
    asked = {"Access-Control-Request-Headers": "authorization,x-stainless-lang, openai-project,x-other"}
    answer = ask(stack.urls[0], "OPTIONS", RESPONSES, headers=asked | {"Origin": "https://example.org"})
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "idempotency-key", "x-stainless-lang", "openai-project"} <= set(allowed)
    assert "x-other" not in allowed


def test_a_store_that_is_away_is_503(tmp_path: Path) -> None:
    """For streams as well: these clients come back after it. An open stream is waited with, and goes on."""
    with EmbeddedServer.start(tmp_path / "store") as server, Stack.start(server.url, tmp_path) as stack:
        client = openai.OpenAI(base_url=f"{stack.urls[0]}/openai/v1", api_key="x", max_retries=0)
        extra = {"legato": {"provider_options": {"tokens": 60, "tokens_per_second": 20}}}
        with client.responses.stream(model="sim-1", input="x", extra_body=extra) as events:
            created = next(iter(events))
            assert created.type == "response.created"
            path = f"{RESPONSES}/{created.response.id}"
            server.kill()
            answer = ask(stack.urls[0], "GET", f"{path}?stream=true", headers={"Accept": "text/event-stream"})
            assert answer.status == 503
            assert answer.json()["error"]["type"] == "server_error"
            assert int(answer.headers["retry-after"]) > 0
            server.restart()
            final = events.get_final_response()
        assert final.status == "completed"
        eventually(lambda: client.responses.retrieve(final.id).output_text == final.output_text, "it is stored")
        client.close()

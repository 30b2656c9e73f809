"""The routes of the AI SDK, on real processes: what stands on the wire, byte by byte, and what breaks on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from broker.embedded import EmbeddedServer
from tests.support.servers import wait_until
from tests.support.sse_client import Answer, Ending, request
from tests.support.stack import ONE_BY_ONE, Stack
from tests.support.ui_message import UiMessage, built

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
#: The first attempt stands still: it cannot end before its worker is killed.
STALLS = {"at_token": 40, "kind": "stall", "attempt": 1}


@pytest.fixture(scope="module")
def weather() -> Iterator[str]:
    """A tool over HTTP, which knows the weather."""

    class Weather(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = b'{"sky": "clear"}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Weather)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def stack(redis_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory, weather: str) -> Iterator[Stack]:
    tools = {"weather": {"url": weather, "private": True, "idempotent": True}}
    with Stack.start(
        redis_server.url,
        tmp_path_factory.mktemp("ai-sdk"),
        environment={
            "LEGATO_HTTP_TOOLS": json.dumps(tools),
            "LEGATO_AI_SDK_DEFAULTS": json.dumps({"provider": "sim", "model": "sim-1", "thread_policy": "enqueue"}),
        },
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults(stack: Stack) -> Iterator[None]:
    yield
    faults = stack.new_faults()
    assert not faults, faults


def says(text: str, message: str = "u1") -> dict[str, Any]:
    return {"id": message, "role": "user", "parts": [{"type": "text", "text": text}]}


def post(stack: Stack, chat: str | None, options: Mapping[str, Any], query: str = "", **fields: Any) -> Answer:
    body = {"id": chat, "messages": [says("hi")], "trigger": "submit-message", "provider_options": options, **fields}
    return stack.post(f"/ai-sdk/chat{query}", {name: value for name, value in body.items() if value is not None})


def posting(stack: Stack, pool: ThreadPoolExecutor, *args: Any, **fields: Any) -> Future[Answer]:
    """POST while the test goes on."""
    return pool.submit(post, stack, *args, **fields)


def chunks(answer: Answer) -> list[dict[str, Any]]:
    blocks = answer.body.decode().split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: {")]


def message(answer: Answer) -> UiMessage:
    return built(chunks(answer))


def generation(stack: Stack, chat: str) -> str:
    """The chat's newest generation, once there is one."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = [item["id"] for item in stack.get(f"/v1/generations?thread=ai-sdk:{chat}").json()["data"]]
        return bool(found)

    wait_until(is_there, "the chat has a generation")
    return found[0]


def test_an_answer_stands_on_the_wire_as_the_sdk_wants_it(stack: Stack) -> None:
    """Headers and every byte of the body: `start`, one step with one part, `finish`, `[DONE]`, and a clean end."""
    answer = post(stack, "golden", {"text": "Hello there.", "chunk_chars": 12})
    assert answer.status == 200
    run = answer.headers["x-workflow-run-id"]
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "no-cache" in answer.headers["cache-control"]
    assert answer.headers["x-accel-buffering"] == "no"
    body = answer.body.decode().replace(": ping\n", "")
    assert body == (
        f'data: {{"type":"start","messageId":"msg_{run.removeprefix("gen_")}"}}\n\n'
        'data: {"type":"start-step"}\n\n'
        'data: {"type":"text-start","id":"1"}\n\n'
        'data: {"type":"text-delta","id":"1","delta":"Hello there."}\n\n'
        'data: {"type":"text-end","id":"1"}\n\n'
        'data: {"type":"finish-step"}\n\n'
        'data: {"type":"finish","finishReason":"stop"}\n\n'
        "data: [DONE]\n\n"
    )
    assert answer.ending is Ending.CLEAN


def test_a_resumed_chat_gets_the_whole_answer_under_the_same_message_id(stack: Stack) -> None:
    """`GET …/{chat}/stream` in mid-stream and behind the end: `start` with the same id, the same text."""
    with ThreadPoolExecutor() as pool:
        live = posting(stack, pool, "resumed", {"tokens": 60, "seed": 1, "tokens_per_second": 100})
        stack.wait_entries(generation(stack, "resumed"), 5)
        again = pool.submit(stack.get, "/ai-sdk/chat/resumed/stream")
        first, second = message(live.result()), message(again.result())
    third = message(stack.get("/ai-sdk/chat/resumed/stream"))
    assert first.text
    assert first.text == second.text == third.text
    assert first.id == second.id == third.id


def test_a_chat_of_which_nothing_is_known_has_nothing_to_resume(stack: Stack) -> None:
    """204: `useChat` stays as it is."""
    answer = stack.get("/ai-sdk/chat/nobody/stream")
    assert (answer.status, answer.body) == (204, b"")


def test_a_chat_is_replayed_for_its_grace_and_then_no_more(redis_url: str, tmp_path: Path) -> None:
    """A client that comes back just behind the end gets the rest of its text; one that comes much later, 204."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_AI_SDK_REPLAY_SECONDS": "0"}) as hasty:
        answer = post(hasty, "brief", {"text": "Gone."}, provider="sim", model="sim-1")
        wait_until(lambda: hasty.get("/ai-sdk/chat/brief/stream").status == 204, "the grace is over")
        run = answer.headers["x-workflow-run-id"]
        assert hasty.get(f"/ai-sdk/chat/{run}/stream").status == 204
        counted = hasty.get(f"/ai-sdk/chat/{run}/stream?startIndex=2")
        assert chunks(counted) == chunks(answer)[2:]
        only_finish = hasty.get("/ai-sdk/chat/brief/stream?startIndex=0")
        assert [chunk["type"] for chunk in chunks(only_finish)] == ["finish"]


def test_any_start_index_gives_exactly_the_rest(stack: Stack) -> None:
    """For `WorkflowChatTransport`: chunk N is the same chunk at every replay, however it was merged before; a negative
    index counts from the end, and the header says which chunk that is. There is always `finish`."""
    options = {"turns": [{"text": "Let me see. ", "tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}]}]}
    options["turns"].append({"text": "It is clear in Rome today, and warm."})
    answer = post(stack, None, options, trigger=None, tools=[TOOL], tool_mode="server")
    whole = chunks(answer)
    run = answer.headers["x-workflow-run-id"]
    for index in range(len(whole)):
        rest = stack.get(f"/ai-sdk/chat/{run}/stream?startIndex={index}")
        assert chunks(rest) == whole[index:], index
        assert rest.ending is Ending.CLEAN
    beyond = stack.get(f"/ai-sdk/chat/{run}/stream?startIndex={len(whole) + 5}")
    assert chunks(beyond) == whole[-1:]
    tail = stack.get(f"/ai-sdk/chat/{run}/stream?startIndex=-3")
    assert chunks(tail) == whole[-3:]
    assert tail.headers["x-workflow-stream-tail-index"] == str(len(whole) - 1)


@pytest.mark.parametrize("asked", ["x", "1.5", "--1", "", "9" * 20])
def test_a_start_index_that_is_none_is_refused(stack: Stack, asked: str) -> None:
    assert stack.get(f"/ai-sdk/chat/any/stream?startIndex={asked}").status == 400


def test_tools_of_the_worker_come_as_steps(stack: Stack) -> None:
    """Call and result in one step, what the model makes of it in the next."""
    options = {"turns": [{"tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}]}, {"text": "Clear."}]}
    said = message(post(stack, "tools", options, tools=[TOOL], tool_mode="server"))
    call = said.tools[0].pop("id")
    assert [part["type"] for part in said.parts] == ["step-start", "tool", "step-start", "text"]
    assert said.tools == [
        {
            "type": "tool",
            "name": "weather",
            "state": "output-available",
            "input": {"city": "Rome"},
            "output": {"sky": "clear"},
        }
    ]
    assert call
    assert said.text == "Clear."
    assert said.ended == {"type": "finish", "finishReason": "stop"}


def test_an_answer_behind_the_tools_of_the_client_goes_on_with_its_message(stack: Stack) -> None:
    """`useChat` posts the message again with the outputs; the answer has the message's id, and a replay, which builds
    the message anew, holds what was there before, without asking the client to run anything."""
    options = {"turns": [{"tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}, "id": "call_1"}]}]}
    asked = message(post(stack, "client-tools", options, tools=[TOOL]))
    assert asked.ended == {"type": "finish", "finishReason": "tool-calls"}
    assert asked.tools[0]["state"] == "input-available"

    call = asked.tools[0]["id"]
    parts = [
        {"type": "step-start"},
        {
            "type": "tool-weather",
            "toolCallId": call,
            "state": "output-available",
            "input": {"city": "Rome"},
            "output": {"sky": "clear"},
        },
    ]
    conversation = [says("hi"), {"id": asked.id, "role": "assistant", "parts": parts}]
    answer = message(post(stack, "client-tools", {"text": "Clear."}, messages=conversation, messageId=asked.id))
    assert answer.id == asked.id
    assert answer.text == "Clear."
    replay = stack.get("/ai-sdk/chat/client-tools/stream")
    assert message(replay).id == asked.id
    assert [part["type"] for part in message(replay).parts] == ["step-start", "tool", "step-start", "text"]
    assert message(replay).tools[0]["output"] == {"sky": "clear"}
    assert "tool-input-available" not in replay.body.decode()


def test_a_lost_worker_costs_a_reset_step_and_no_text(redis_url: str, tmp_path: Path) -> None:
    """The stream that is open says `reset-step`; the message that the client ends with is the replay's."""
    options = {"tokens": 60, "seed": 3, "tokens_per_second": 30, "faults": [STALLS]}
    with Stack.start(redis_url, tmp_path, workers=2) as stack, ThreadPoolExecutor() as pool:
        live = posting(stack, pool, "lost", options, provider="sim", model="sim-1", delivery=ONE_BY_ONE)
        run = generation(stack, "lost")
        stack.wait_entries(run, 10)
        stack.holder(run).kill()
        answer = live.result()
        assert [chunk["type"] for chunk in chunks(answer)].count("reset-step") == 1
        replay = stack.get("/ai-sdk/chat/lost/stream")
        assert message(answer).parts == message(replay).parts
        assert message(answer).text == stack.get(f"/v1/generations/{run}").json()["text"]
        assert "reset-step" not in replay.body.decode()


def test_a_client_that_knows_no_reset_is_cut_and_gets_the_whole_answer_by_its_next_request(
    redis_url: str, tmp_path: Path
) -> None:
    """Version 6 of the SDK takes an unknown chunk for a fault: with `reset=cut` the body ends incompletely instead."""
    options = {"tokens": 60, "seed": 4, "tokens_per_second": 30, "faults": [STALLS]}
    with Stack.start(redis_url, tmp_path, workers=2) as stack, ThreadPoolExecutor() as pool:
        live = posting(stack, pool, "cut", options, "?reset=cut", provider="sim", model="sim-1", delivery=ONE_BY_ONE)
        run = generation(stack, "cut")
        stack.wait_entries(run, 10)
        stack.holder(run).kill()
        answer = live.result()
        assert answer.ending is Ending.INCOMPLETE
        assert not {"reset-step", "finish"} & {chunk["type"] for chunk in chunks(answer)}
        replay = stack.get("/ai-sdk/chat/cut/stream?reset=cut")
        assert message(replay).text == stack.get(f"/v1/generations/{run}").json()["text"]
        assert replay.ending is Ending.CLEAN


def test_a_stopping_api_ends_its_streams_incompletely(redis_url: str, tmp_path: Path) -> None:
    """A clean end would be the end of the text to this client."""
    with Stack.start(redis_url, tmp_path, apis=2) as stack, ThreadPoolExecutor() as pool:
        options = {"tokens": 300, "seed": 5, "tokens_per_second": 40}
        live = posting(stack, pool, "drained", options, provider="sim", model="sim-1")
        stack.wait_entries(generation(stack, "drained"), 5)
        stack.remove(stack.apis[0])
        assert live.result().ending is Ending.INCOMPLETE
        stack.post("/ai-sdk/chat/drained/stop")


def test_stop_cancels_the_running_answer_of_the_chat(stack: Stack) -> None:
    """The open stream ends with `abort` and `finish`; the text so far stays, also in the replay."""
    with ThreadPoolExecutor() as pool:
        live = posting(stack, pool, "stopped", {"tokens": 5000, "tokens_per_second": 20})
        run = generation(stack, "stopped")
        stack.wait_entries(run, 5)
        stale = stack.post("/ai-sdk/chat/stopped/stop", {"activeStreamId": "another"})
        assert stale.json() == {"success": True, "generation": None}
        assert stack.status(run) == "running"
        body = {"assistantMessage": {"id": "m", "role": "assistant", "parts": []}, "activeStreamId": run}
        assert stack.post("/ai-sdk/chat/stopped/stop", body).json() == {"success": True, "generation": run}
        answer = live.result()
    assert [chunk["type"] for chunk in chunks(answer)][-3:] == ["finish-step", "abort", "finish"]
    assert message(answer).aborted
    assert message(stack.get("/ai-sdk/chat/stopped/stream")).text == message(answer).text
    assert stack.status(run) == "cancelled"
    assert stack.post("/ai-sdk/chat/stopped/stop").json() == {"success": True, "generation": None}


def test_a_failure_of_the_provider_is_an_error_chunk_and_a_finish(stack: Stack) -> None:
    """What `useChat` shows is the message of the failure."""
    options = {"tokens": 20, "faults": [{"at_token": 5, "kind": "truncate"}]}
    failed = message(post(stack, "failed", options, max_attempts=1))
    assert failed.error
    assert failed.ended == {"type": "finish", "finishReason": "error"}
    assert failed.text


def test_a_post_that_is_repeated_with_its_key_starts_nothing(stack: Stack) -> None:
    def keyed() -> Answer:
        body = {"id": "keyed", "messages": [says("hi")], "provider_options": {"text": "Once."}}
        return stack.post("/ai-sdk/chat", body, headers={"Idempotency-Key": "k-1"})

    assert keyed().headers["x-workflow-run-id"] == keyed().headers["x-workflow-run-id"]


def test_a_deleted_generation_ends_its_stream_with_abort(stack: Stack) -> None:
    with ThreadPoolExecutor() as pool:
        live = posting(stack, pool, "deleted", {"tokens": 5000, "tokens_per_second": 20})
        run = generation(stack, "deleted")
        stack.wait_entries(run, 5)
        stack.delete(f"/v1/generations/{run}")
        answer = live.result()
    assert [chunk["type"] for chunk in chunks(answer)][-2:] == ["abort", "finish"]
    assert stack.get("/ai-sdk/chat/deleted/stream").status == 204


REFUSED = {
    "no messages": ({"messages": []}, "messages"),
    "a file that is no image": (
        {"messages": [{"role": "user", "parts": [{"type": "file", "mediaType": "audio/mp3", "url": "data:,"}]}]},
        "messages.0.parts.0.mediaType",
    ),
    "an approval": (
        {
            "messages": [
                says("hi"),
                {
                    "role": "assistant",
                    "parts": [{"type": "tool-x", "toolCallId": "c", "state": "approval-requested", "input": {}}],
                },
            ]
        },
        "messages.1.parts.0.state",
    ),
    "an unknown part": ({"messages": [{"role": "user", "parts": [{"type": "custom"}]}]}, "messages.0.parts.0"),
    "an unknown field": ({"temprature": 1}, "temprature"),
    "a thread": ({"thread": "t"}, "thread"),
    "an interactive tool": ({"tool_mode": "interactive"}, "tool_mode"),
    "a trigger": ({"trigger": "resume-stream"}, "trigger"),
    "a long id": ({"id": "x" * 200}, "id"),
    "an unknown provider": ({"provider": "nobody"}, "provider"),
}


@pytest.mark.parametrize(("fields", "named"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_not_supported_is_refused_by_its_name(stack: Stack, fields: dict[str, Any], named: str) -> None:
    """In plain text, for `useChat` shows the body as it is; the code is in a header."""
    answer = post(stack, "refused", {"text": "x"}, **fields)
    assert answer.status == 422
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-legato-code"] == "invalid_request"
    assert named in answer.body.decode()
    assert stack.get("/v1/generations?thread=ai-sdk:refused").json()["data"] == []


def test_what_is_asked_beside_the_routes_is_answered_in_the_same_shape(stack: Stack) -> None:
    """No such path, no such method, a body that is too large."""
    large = b"[" + b" " * 2_000_000 + b"]"
    for answer, status in (
        (stack.get("/ai-sdk/nothing"), 404),
        (stack.get("/ai-sdk/chat"), 405),
        (request(stack.urls[0], "POST", "/ai-sdk/chat", body=large), 413),
    ):
        assert answer.status == status
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.headers["x-legato-code"]


def test_a_chat_follows_the_policy_of_its_thread(stack: Stack) -> None:
    """A message that interrupts ends the answer before it; the chat's stream is that of the new one."""
    with ThreadPoolExecutor() as pool:
        first = posting(stack, pool, "policy", {"tokens": 5000, "tokens_per_second": 20})
        old = generation(stack, "policy")
        stack.wait_entries(old, 5)
        second = post(stack, "policy", {"text": "Second."}, thread_policy="interrupt")
        assert message(first.result()).aborted
    assert message(second).text == "Second."
    assert message(stack.get("/ai-sdk/chat/policy/stream")).id == message(second).id


def test_a_body_that_is_not_json_is_refused(stack: Stack) -> None:
    answer = request(stack.urls[0], "POST", "/ai-sdk/chat", body=b"{", headers={"content-type": "text/plain"})
    assert (answer.status, answer.headers["x-legato-code"]) == (400, "malformed_json")

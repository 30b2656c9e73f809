"""Webhooks on real processes: a receiver that is down, slow, or says no; workers that die; a store that comes back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from standardwebhooks import Webhook

from broker.embedded import EmbeddedServer
from broker.events import Completed, Delta, Entry, FinishReason, Started, encode
from broker.lease import Lease, Leases, new_owner
from broker.lifeline import bound_to_us
from broker.log import Appended, Log
from broker.settings import Settings
from broker.store import Store
from cli.webhooks import webhooks
from tests.support.servers import free_port, wait_until
from tests.support.sse_client import follow
from tests.support.stack import ROOT, Stack

SECRET = "whsec_" + b64encode(b"s" * 32).decode()
OLD_SECRET = "whsec_" + b64encode(b"o" * 32).decode()


@dataclass
class Receiver:
    """An endpoint. `answers` are statuses of the next deliveries, 200 behind them; `headers` go with each."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)  # path, headers, body
    hold: threading.Event = field(default_factory=threading.Event)

    def of(self, generation: str) -> list[dict[str, Any]]:
        """What was received of a generation, each verified by an implementation that is not ours."""
        found = []
        for _, headers, body in list(self.got):
            data = Webhook(SECRET).verify(body.decode(), headers)
            if data["data"]["id"] == generation:
                found.append(data)
        return found

    def wait(self, generation: str, count: int = 1, *, seconds: float = 60.0) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.of(generation)) >= count, f"{count} deliveries", seconds=seconds)
        return self.of(generation)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()
    state.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # its sender was killed
            state.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            state.hold.wait(60)
            status = state.answers.pop(0) if state.answers else 200
            try:
                self.send_response(status)
                for name, value in state.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()
            except OSError:
                pass  # it did not wait

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    state.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


def environment(url: str, *, more: Mapping[str, str] | None = None, **endpoint: object) -> dict[str, str]:
    declared = {"url": f"{url}/hook", "secret_env": "HOOK_SECRET", "private": True, **endpoint}
    return {
        "HOOK_SECRET": SECRET,
        "LEGATO_WEBHOOKS": json.dumps({"ops": declared}),
        "LEGATO_WEBHOOK_BASE_SECONDS": "0.1",
        "LEGATO_WEBHOOK_TIMEOUT_SECONDS": "5",
        "LEGATO_SWEEP_SECONDS": "1",
        **(more or {}),
    }


Start = Callable[..., Stack]


@pytest.fixture
def start(redis_url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Start]:
    """Starts a stack whose generations are told to the receiver."""
    running: list[Stack] = []

    def begin(*, workers: int = 1, more: Mapping[str, str] | None = None, **endpoint: object) -> Stack:
        stack = Stack.start(
            redis_url, tmp_path, workers=workers, environment=environment(receiver.url, more=more, **endpoint)
        )
        running.append(stack)
        return stack

    yield begin
    for stack in running:
        stack.close()


def dead(stack: Stack) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = stack.get("/v1/webhooks/dead").json()["data"]
    return listed


def test_an_end_is_told_once_signed_and_small(start: Start, receiver: Receiver) -> None:
    """Status, reason, usage, metadata, and no text; the id is the generation's."""
    stack = start(workers=2)
    generation = stack.submit({"text": "Hello."}, metadata={"order": 7}, thread="t-1")
    (told,) = receiver.wait(generation)
    data = told["data"]
    assert told["type"] == "generation.completed"
    assert (data["id"], data["status"], data["finish_reason"]) == (generation, "completed", "stop")
    assert (data["metadata"], data["thread"], data["characters"]) == ({"order": 7}, "t-1", 6)
    assert data["usage"]["output_tokens"] > 0
    assert "text" not in data
    path, headers, _ = receiver.got[0]
    assert path == "/hook"
    assert headers["webhook-id"] == "msg_" + generation.removeprefix("gen_")
    assert headers["content-type"] == "application/json"
    wait_until(lambda: 'legato_webhooks_total{outcome="delivered"} 1' in metrics(stack), "it is counted")
    assert len(receiver.of(generation)) == 1
    assert dead(stack) == []


def metrics(stack: Stack) -> str:
    return stack.get("/metrics").body.decode()


def test_failures_and_cancels_are_told_too(start: Start, receiver: Receiver) -> None:
    """Also an end that no worker wrote: a queued job that is cancelled."""
    stack = start(text=True)
    failed = stack.submit({"tokens": 9, "faults": [{"at_token": 3, "kind": "truncate"}]}, max_attempts=1)
    (told,) = receiver.wait(failed)
    assert (told["type"], told["data"]["code"]) == ("generation.failed", "upstream_incomplete")
    assert told["data"]["message"]

    running = stack.submit({"tokens": 5000, "tokens_per_second": 20})
    stack.wait_entries(running, 3)
    stack.post(f"/v1/generations/{running}/cancel")
    (told,) = receiver.wait(running)
    assert (told["type"], told["data"]["reason"]) == ("generation.cancelled", "user")
    assert told["data"]["text"] == stack.get(f"/v1/generations/{running}").json()["text"]

    for worker in list(stack.workers):
        stack.remove(worker)
    queued = stack.submit({"tokens": 5})
    stack.post(f"/v1/generations/{queued}/cancel")
    stack.add_worker()
    (told,) = receiver.wait(queued)
    assert told["type"] == "generation.cancelled"


def test_only_the_events_that_an_endpoint_wants(start: Start, receiver: Receiver) -> None:
    stack = start(events=["failed"])
    fine = stack.submit({"text": "x"})
    stack.wait_status(fine, "completed")
    failed = stack.submit({"tokens": 9, "faults": [{"at_token": 3, "kind": "truncate"}]}, max_attempts=1)
    receiver.wait(failed)
    assert receiver.of(fine) == []


def test_a_receiver_that_fails_is_asked_again_with_the_same_id_and_body(start: Start, receiver: Receiver) -> None:
    """500, 503, a redirect (which is not followed) and a connection that is refused by status are all tried again."""
    receiver.answers = [500, 302, 404, 429]
    receiver.headers = {"location": "http://127.0.0.1:1/elsewhere"}
    stack = start()
    generation = stack.submit({"text": "Hello."})
    receiver.wait(generation, 5)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    assert len({body for _, _, body in receiver.got}) == 1
    assert {path for path, _, _ in receiver.got} == {"/hook"}


def test_a_receiver_that_is_down_gets_it_when_it_is_up(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    with Stack.start(redis_url, tmp_path, environment=environment(f"http://127.0.0.1:{port}")) as stack:
        generation = stack.submit({"text": "Hello."})
        wait_until(lambda: bool(stack.workers[0].events("webhook_failed")), "it was tried")
        assert stack.workers[0].events("webhook_failed")[0]["why"] == "it cannot be reached"
        got: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            wait_until(lambda: bool(got), "it is delivered", seconds=60)
            server.shutdown()
            thread.join()
        assert json.loads(got[0])["data"]["id"] == generation


def test_410_is_the_end_and_a_dead_delivery_can_be_tried_again(start: Start, receiver: Receiver) -> None:
    receiver.answers = [410]
    stack = start()
    generation = stack.submit({"text": "Hello."})
    wait_until(lambda: len(dead(stack)) == 1, "it is dead")
    listed = dead(stack)[0]
    assert listed["id"] == f"{generation}:ops"
    assert (listed["tries"], listed["error"], listed["status"]) == (1, "it answered 410", "completed")
    assert len(receiver.of(generation)) == 1
    run = CliRunner()
    shown = run.invoke(webhooks, ["--url", stack.urls[0]])
    assert shown.output == f"{generation}:ops  completed, 1 tries: it answered 410\n"
    again = run.invoke(webhooks, ["--url", stack.urls[0], f"{generation}:ops"])
    assert (again.exit_code, again.output) == (0, f"{generation}:ops  scheduled\n")
    receiver.wait(generation, 2)
    wait_until(lambda: dead(stack) == [], "it is off the list")
    assert stack.post(f"/v1/webhooks/dead/{generation}:ops/redeliver").status == 404
    assert stack.post("/v1/webhooks/dead/x:ops/redeliver").status == 404


def test_tries_are_bounded_and_the_list_of_the_dead_too(start: Start, receiver: Receiver) -> None:
    receiver.answers = [500] * 100
    stack = start(more={"LEGATO_WEBHOOK_ATTEMPTS": "2", "LEGATO_WEBHOOK_DEAD_MOST": "2"})
    first = [stack.submit({"text": "Hello."}) for _ in range(3)]
    wait_until(lambda: len(stack.workers[0].events("webhook_dead")) == 3, "all are dead")
    listed = dead(stack)
    assert [item["generation"] for item in listed] == [first[2], first[1]]
    assert {item["tries"] for item in listed} == {2}
    page = stack.get("/v1/webhooks/dead?limit=1").json()
    more = stack.get(f"/v1/webhooks/dead?limit=1&cursor={page['next_cursor']}").json()
    assert [page["data"][0]["generation"], more["data"][0]["generation"]] == [first[2], first[1]]
    assert stack.get("/v1/webhooks/dead?cursor=x").status == 400


def test_a_slow_receiver_holds_up_nobody_and_its_delivery_is_tried_again(start: Start, receiver: Receiver) -> None:
    """While it is silent, generations run; after the time-out it is asked again, by one worker at a time."""
    stack = start(workers=2, more={"LEGATO_WEBHOOK_TIMEOUT_SECONDS": "1"})
    receiver.hold.clear()
    generation = stack.submit({"text": "Hello."})
    receiver.wait(generation)
    quick = stack.submit({"text": "Hello."})
    stack.wait_status(quick, "completed")
    receiver.wait(generation, 2)
    receiver.hold.set()
    receiver.wait(quick)
    failed = [line for worker in stack.workers for line in worker.events("webhook_failed")]
    assert "it did not answer within 1 s" in {line["why"] for line in failed}


def test_a_worker_killed_in_mid_delivery_is_followed_by_another(start: Start, receiver: Receiver) -> None:
    stack = start(more={"LEGATO_WEBHOOK_TIMEOUT_SECONDS": "1"})
    receiver.hold.clear()
    generation = stack.submit({"text": "Hello."})
    receiver.wait(generation)
    stack.workers[0].kill()
    receiver.hold.set()
    stack.add_worker()
    receiver.wait(generation, 2, seconds=90)
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1


async def test_a_worker_lost_behind_the_end_leaves_no_delivery_behind(
    redis_url: str, tmp_path: Path, receiver: Receiver
) -> None:
    """It dies between the step that stores the end and everything else: whoever meets its hint tells the endpoint."""
    told = environment(receiver.url)
    with Stack.start(redis_url, tmp_path, workers=0, environment=told) as stack:
        generation = stack.submit({"text": "Hello."}, metadata={"a": 1})
        store = Store(redis_url, Settings(prefix=stack.prefix, lease_seconds=2))
        try:
            lease = await Leases(store).claim(generation, owner=new_owner())
            assert isinstance(lease, Lease)
            events = [
                Started(attempt=1, provider="sim", model="sim-1"),
                Delta(text="Hello."),
                Completed(finish_reason=FinishReason.STOP, usage=None, characters=6),
            ]
            entries = [Entry(f"{seq}-{lease.epoch}", *encode(event)) for seq, event in enumerate(events, 1)]
            answer = await Log(store).append(generation, lease.epoch, lease.owner, "0-0", entries)
            assert isinstance(answer, Appended)
        finally:
            await store.aclose()
        stack.add_worker()
        (found,) = receiver.wait(generation)
        assert found["data"]["metadata"] == {"a": 1}
        assert found["data"]["characters"] == 6


def test_every_end_is_told_while_workers_are_killed(start: Start, receiver: Receiver) -> None:
    """Workers die again and again while jobs end: each end arrives, under one id, with one body."""
    stack = start(workers=2)
    jobs = [stack.submit({"tokens": 10, "seed": seed, "tokens_per_second": 30}) for seed in range(24)]
    for _ in range(4):
        victim = stack.workers[0]
        seen = len(receiver.got)
        wait_until(lambda seen=seen: len(receiver.got) > seen or len(receiver.got) >= len(jobs), "another end")  # type: ignore[misc]
        victim.kill()
        stack.workers.remove(victim)
        stack.add_worker()
    for generation in jobs:
        deliveries = receiver.wait(generation, seconds=90)
        assert len({json.dumps(told, sort_keys=True) for told in deliveries}) == 1
        status = stack.get(f"/v1/generations/{generation}").json()["status"]
        assert {told["data"]["status"] for told in deliveries} == {status}
    assert len(receiver.got) <= 2 * len(jobs)


def test_a_restart_of_the_store_loses_no_delivery(tmp_path: Path, receiver: Receiver) -> None:
    """The receiver is down, the store is killed and comes back from its file; then the receiver is up."""
    receiver.answers = [503] * 3
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path, environment=environment(receiver.url)) as stack,
    ):
        generation = stack.submit({"text": "Hello."})
        receiver.wait(generation)
        server.kill()
        server.restart()
        receiver.wait(generation, 4, seconds=90)


def test_what_the_queue_forgets_the_sweep_finds(start: Start, redis_url: str, receiver: Receiver) -> None:
    """The deliveries are gone, the record is not."""
    receiver.answers = [503]
    stack = start(more={"LEGATO_WEBHOOK_BASE_SECONDS": "3600", "LEGATO_WEBHOOK_CAP_SECONDS": "3600"})
    generation = stack.submit({"text": "Hello."})
    wait_until(lambda: bool(stack.workers[0].events("webhook_failed")), "it was tried")
    key = f"{stack.prefix}:{{queue}}:hooks:ops"
    with redis.Redis.from_url(redis_url, protocol=2) as client:
        wait_until(lambda: bool(client.zcard(key)), "it is put off")
        client.delete(key)
    receiver.wait(generation, 2)


def test_a_submit_asks_for_a_url_below_the_allowed_one(start: Start, receiver: Receiver) -> None:
    """And only those who ask are told there."""
    stack = start(asked=True)
    silent = stack.submit({"text": "Hello."})
    asked = stack.submit({"text": "Hello."}, webhook={"url": f"{receiver.url}/hook/orders/7?a=b"})
    receiver.wait(asked)
    stack.wait_status(silent, "completed")
    assert receiver.of(silent) == []
    assert [path for path, _, _ in receiver.got] == ["/hook/orders/7?a=b"]
    body = {"provider": "sim", "model": "sim-1", "messages": [{"role": "user", "content": "hi"}]}
    refused = stack.post("/v1/generations", body | {"webhook": {"url": "http://169.254.169.254/"}})
    assert refused.status == 422
    assert refused.json()["errors"][0]["field"] == "webhook.url"


def test_an_address_of_the_workers_own_network_is_not_reached(start: Start, receiver: Receiver) -> None:
    stack = start(private=False, more={"LEGATO_WEBHOOK_ATTEMPTS": "1"})
    generation = stack.submit({"text": "Hello."})
    wait_until(lambda: len(dead(stack)) == 1, "it is dead")
    assert dead(stack)[0]["error"] == "it has an address that it must not have"
    assert receiver.of(generation) == []


def test_a_deleted_generation_is_told_to_nobody(start: Start, receiver: Receiver) -> None:
    receiver.answers = [503]
    stack = start(more={"LEGATO_WEBHOOK_BASE_SECONDS": "2"})
    receiver.hold.clear()  # the try is not over before the generation is deleted
    generation = stack.submit({"text": "Hello."})
    receiver.wait(generation)
    stack.delete(f"/v1/generations/{generation}")
    receiver.hold.set()
    other = stack.submit({"text": "Hello."})
    receiver.wait(other)
    time.sleep(2.5)  # nothing is to be waited for
    assert len(receiver.of(generation)) == 1


def test_two_secrets_sign_while_they_are_changed(start: Start, receiver: Receiver) -> None:
    stack = start(more={"HOOK_OLD": OLD_SECRET}, old_secret_env="HOOK_OLD")
    generation = stack.submit({"text": "Hello."})
    receiver.wait(generation)
    _, headers, body = receiver.got[0]
    assert Webhook(OLD_SECRET).verify(body.decode(), headers)["data"]["id"] == generation


def test_the_token_path_pays_nothing(start: Start, receiver: Receiver) -> None:
    """A reader sees the same events with webhooks as without."""
    stack = start()
    generation = stack.submit({"tokens": 50, "seed": 2})
    reader, _ = follow(stack.urls, generation)
    assert reader.ended is not None
    assert reader.ended.event == "completed"
    assert len(receiver.wait(generation)) == 1


def test_the_receiver_of_the_how_to_receives(redis_url: str, tmp_path: Path) -> None:
    """The code of docs/how-to/webhooks.md, taken from the page and run."""
    page = (ROOT / "docs/how-to/webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "receiver.py"
    script.write_text(code)
    port = free_port()
    receiving = subprocess.Popen(
        bound_to_us([sys.executable, str(script)]),
        env={"PORT": str(port), "ORDERS_SECRET": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        told = environment(f"http://127.0.0.1:{port}")
        with Stack.start(redis_url, tmp_path, environment=told) as stack:
            generation = stack.submit({"text": "Hello."})
            assert receiving.stdout is not None
            assert receiving.stdout.readline() == f"{generation} completed stop\n"
            listed = CliRunner().invoke(webhooks, ["--url", stack.urls[0], "--json"])
            assert json.loads(listed.output)["data"] == []
    finally:
        receiving.kill()
        receiving.communicate()

"""Threads with real processes: order, refusal, interruption, and devices that read along."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker.embedded import EmbeddedServer
from tests.support.servers import command, free_port
from tests.support.sse_client import NDJSON, Answer, Ending, Reader, request
from tests.support.stack import ONE_BY_ONE, Stack, eventually, job
from tests.support.thread_reader import Device, open_thread, thread_path
from worker.providers.sim import sim_text


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("threads"), apis=2, workers=2) as running:
        yield running


@pytest.fixture
def thread() -> str:
    return f"chat/ä {uuid4().hex[:8]}"


def post(
    stack: Stack, thread: str, options: dict[str, Any], *, api: int = 0, key: str | None = None, **fields: Any
) -> Answer:
    headers = {"Idempotency-Key": key} if key else {}
    body = json.dumps(job(options, thread=thread, **fields)).encode()
    return request(stack.urls[api], "POST", "/v1/generations", body=body, headers=headers)


def submit(stack: Stack, thread: str, options: dict[str, Any], **fields: Any) -> str:
    answer = post(stack, thread, options, **fields)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def records(stack: Stack, generations: list[str]) -> list[dict[str, Any]]:
    return [stack.get(f"/v1/generations/{generation}").json() for generation in generations]


def assert_one_after_another(stack: Stack, generations: list[str], statuses: list[str] | None = None) -> None:
    """They ended, and each began only when the one before it had ended, by the store's clock."""
    found = records(stack, generations)
    assert [record["status"] for record in found] == (statuses or ["completed"] * len(found))
    ran = [record for record in found if record["started_at"] is not None]
    for before, behind in pairwise(ran):
        assert before["ended_at"] <= behind["started_at"]


def wait_ended(stack: Stack, generations: list[str]) -> None:
    for generation in generations:
        stack.wait_status(generation, "completed", "failed", "cancelled", seconds=60)


def test_a_thread_runs_in_order_though_workers_are_killed(stack: Stack, thread: str) -> None:
    stall = {"at_token": 10, "kind": "stall", "attempt": 1}  # those whose worker is killed do not end before
    options = [{"tokens": 20, "seed": n, "tokens_per_second": 60, "faults": [stall] * (n in (1, 3))} for n in range(6)]
    ids = [submit(stack, thread, options[n], api=n % 2, delivery=ONE_BY_ONE) for n in range(6)]
    for killed in (ids[1], ids[3]):
        stack.wait_entries(killed, 5, seconds=60)
        holder = stack.holder(killed)
        holder.kill()
        stack.remove(holder)
        stack.add_worker()
    wait_ended(stack, ids)
    assert_one_after_another(stack, ids)
    assert [record["text"] for record in records(stack, ids)] == [sim_text(20, n) for n in range(6)]
    said = stack.get(thread_path(thread, "")).json()
    assert (said["thread"], said["active"], said["queued"], said["last"]) == (thread, None, [], ids[-1])
    assert stack.get(said["stream_url"]).status == 200


def test_one_that_waits_takes_no_place_in_a_worker(redis_url: str, tmp_path: Path, thread: str) -> None:
    """One worker that runs two at once: with nine of one thread in the line another job still runs."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_WORKER_CONCURRENCY": "2"}) as narrow:
        ids = [submit(narrow, thread, {"tokens": 2, "first_token_ms": 60_000}) for _ in range(10)]
        narrow.wait_status(ids[0], "running")
        assert narrow.get(thread_path(thread, "")).json()["queued"] == ids[1:]
        other = narrow.submit({"tokens": 5})
        narrow.wait_status(other, "completed")
        claimed = {line["generation"] for worker in narrow.workers for line in worker.events("generation_claimed")}
        assert claimed == {ids[0], other}
        assert submit(narrow, thread, {"tokens": 2}, thread_policy="interrupt")
        wait_ended(narrow, ids)


def test_a_restart_of_the_store_loses_no_place(tmp_path: Path, thread: str) -> None:
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path, apis=1, workers=2) as stack,
    ):
        ids = [submit(stack, thread, {"tokens": 30, "seed": n, "tokens_per_second": 40}) for n in range(4)]
        stack.wait_entries(ids[1], 5)
        server.kill()
        server.restart()
        wait_ended(stack, ids)
        assert_one_after_another(stack, ids)
        assert [record["text"] for record in records(stack, ids)] == [sim_text(30, n) for n in range(4)]


def test_a_flushed_store_gets_the_running_one_and_its_place_back(tmp_path: Path, thread: str) -> None:
    """What nobody held is lost; the one that runs is healed, and who comes after that waits for it."""
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path, apis=1, workers=2) as stack,
    ):
        running = submit(stack, thread, {"tokens": 200, "seed": 1, "tokens_per_second": 30})
        stack.wait_entries(running, 5)
        command(server, "FLUSHALL")
        eventually(
            lambda: stack.get(thread_path(thread, "")).json()["active"] == running, "the place is back", seconds=30
        )
        behind = submit(stack, thread, {"tokens": 5, "seed": 2})
        assert stack.status(behind) == "queued"
        wait_ended(stack, [running, behind])
        assert_one_after_another(stack, [running, behind])
        assert records(stack, [running])[0]["text"] == sim_text(200, 1)


def test_interrupts_from_many_sides_leave_one_that_completes(stack: Stack, thread: str) -> None:
    first = submit(stack, thread, {"tokens": 3000, "tokens_per_second": 50})
    stack.wait_entries(first, 3)
    options = {"tokens": 150, "seed": 4, "tokens_per_second": 30}  # none ends before the next one is asked for
    with ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(submit, stack, thread, options, api=n % 2, thread_policy="interrupt") for n in range(8)]
        ids = {future.result() for future in posts}
    wait_ended(stack, [first, *ids])
    found = {record["id"]: record for record in records(stack, [first, *ids])}
    completed = [name for name, record in found.items() if record["status"] == "completed"]
    assert len(completed) == 1
    assert found[completed[0]]["text"] == sim_text(150, 4)
    for name in found.keys() - set(completed):
        assert found[name]["status"] == "cancelled"
        assert stack.log(name)[-1][1].reason.value == "interrupted"  # type: ignore[union-attr]
    ran = sorted((record for record in found.values() if record["started_at"]), key=lambda item: item["started_at"])
    for before, behind in pairwise(ran):
        assert before["ended_at"] <= behind["started_at"]


def test_an_interrupt_ends_one_whose_worker_does_not_answer(stack: Stack, thread: str) -> None:
    frozen = submit(stack, thread, {"tokens": 3000, "tokens_per_second": 50})
    stack.wait_entries(frozen, 3)
    holder = stack.holder(frozen)
    holder.pause()
    try:
        newest = submit(stack, thread, {"tokens": 5, "seed": 1}, thread_policy="interrupt")
        stack.wait_status(newest, "completed")
        assert_one_after_another(stack, [frozen, newest], ["cancelled", "completed"])
    finally:
        holder.resume()


def test_reject_is_409_and_its_key_stays_free(stack: Stack, thread: str) -> None:
    first = submit(stack, thread, {"tokens": 2, "first_token_ms": 60_000})
    refused = post(stack, thread, {"tokens": 5}, key="again", thread_policy="reject")
    assert (refused.status, refused.json()["code"]) == (409, "thread_busy")
    assert [item["id"] for item in stack.get("/v1/generations?limit=1").json()["data"]] == [first]
    stack.post(f"/v1/generations/{first}/cancel")
    stack.wait_status(first, "cancelled")
    with ThreadPoolExecutor(6) as pool:
        posts = [
            pool.submit(post, stack, thread, {"tokens": 5}, api=n % 2, key="again", thread_policy="reject")
            for n in range(6)
        ]
        answers = [future.result() for future in posts]
    assert {answer.status for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("policy", ["enqueue", "reject", "interrupt"])
def test_a_policy_needs_a_thread(stack: Stack, policy: str) -> None:
    answer = stack.post("/v1/generations", job({"tokens": 1}, thread_policy=policy))
    assert answer.status == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["thread_policy"]


def test_two_devices_see_the_same_through_cuts(stack: Stack, thread: str) -> None:
    """Both read along while five answers come, one of them interrupted, over connections that break."""
    rng = random.Random(7)
    tokens = [60, 60, 3_000, 60, 60]  # the third is interrupted, and does not end before
    phone, laptop = Device(), Device()
    ids = [submit(stack, thread, {"tokens": tokens[0], "seed": 0, "tokens_per_second": 60})]

    def is_done(device: Device) -> bool:
        return len(ids) == 5 and ids[-1] in device.texts

    def follow(device: Device, urls: list[str]) -> None:
        cuts = iter([rng.choice([None, rng.randint(300, 3000)]) for _ in range(200)])
        device.follow(urls, thread, lambda: is_done(device), cuts=cuts)

    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(follow, phone, stack.urls), pool.submit(follow, laptop, stack.urls[::-1])]
        for seed in range(1, 5):
            policy = "interrupt" if seed == 3 else "enqueue"
            options = {"tokens": tokens[seed], "seed": seed, "tokens_per_second": 60}
            if seed == 3:
                stack.wait_entries(ids[-1], 5, seconds=60)
            ids.append(submit(stack, thread, options, thread_policy=policy))
        for each in reading:
            each.result(100)
    assert list(phone.readers) == list(laptop.readers) == ids
    assert phone.texts == laptop.texts
    for seed, generation in enumerate(ids):
        text, end = phone.texts[generation]
        whole = sim_text(tokens[seed], seed)
        assert end == ("cancelled" if seed == 2 else "completed")
        assert text == whole if end == "completed" else whole.startswith(text)


def test_a_cursor_of_an_earlier_generation_gets_its_rest_then_the_next_then_204(stack: Stack, thread: str) -> None:
    first, second = (submit(stack, thread, {"tokens": 12, "seed": n}, delivery=ONE_BY_ONE) for n in range(2))
    wait_ended(stack, [first, second])
    device = Device(cursor=f"{first}/5-1")
    device.readers[first] = Reader(cursor="5-1")
    stream = device.read(stack.urls[0], thread)
    assert (stream.status, stream.ending) == (200, Ending.CLEAN)
    assert list(device.readers) == [first]
    assert device.readers[first].opens[0]["verdict"] == "resumed"
    assert device.readers[first].ended is not None
    shown = "".join(getattr(event, "text", "") for _, event in stack.log(first)[:5])
    assert shown + device.readers[first].text == sim_text(12, 0)
    stream = device.read(stack.urls[1], thread)
    assert stream.ending is Ending.CLEAN
    assert device.readers[second].opens[0]["verdict"] == "start"
    assert device.texts[second] == (sim_text(12, 1), "completed")
    assert device.cursor is not None
    assert device.cursor.startswith(second)
    stream = device.read(stack.urls[0], thread)
    assert (stream.status, stream.headers["content-type"]) == (204, "text/event-stream")
    third = submit(stack, thread, {"tokens": 12, "seed": 9})
    device.read(stack.urls[1], thread)
    assert device.texts[third] == (sim_text(12, 9), "completed")


def test_without_a_cursor_it_is_the_running_one_else_the_last(stack: Stack, thread: str) -> None:
    with open_thread(stack.urls[0], thread) as stream:
        assert stream.status == 204
    first = submit(stack, thread, {"tokens": 6, "seed": 1})
    wait_ended(stack, [first])
    device = Device()
    device.read(stack.urls[0], thread)
    assert device.texts == {first: (sim_text(6, 1), "completed")}
    second = submit(stack, thread, {"tokens": 9_000, "seed": 2, "tokens_per_second": 50})
    stack.wait_entries(second, 3)
    submit(stack, thread, {"tokens": 6, "seed": 3})
    fresh = Device()
    with open_thread(stack.urls[1], thread, accept=NDJSON) as stream:
        frames = stream.frames()
        while second not in fresh.readers or not fresh.readers[second].text:
            fresh.take(next(frames))
        stack.post(f"/v1/generations/{second}/cancel")
        for frame in frames:
            fresh.take(frame)
    [(text, end)] = fresh.texts.values()
    assert (list(fresh.texts), end) == ([second], "cancelled")
    assert sim_text(9_000, 2).startswith(text)


def test_an_erased_predecessor_stands_in_nobodys_way(stack: Stack, thread: str) -> None:
    first = submit(stack, thread, {"tokens": 1000, "tokens_per_second": 40})
    second = submit(stack, thread, {"tokens": 8, "seed": 5})
    stack.wait_entries(first, 5)
    device, deleted = Device(), False
    with open_thread(stack.urls[0], thread) as stream:
        for frame in stream.frames():
            device.take(frame)
            if not deleted and device.readers[first].text:
                assert stack.delete(f"/v1/generations/{first}").status == 204
                deleted = True
    assert device.readers[first].ended is not None
    assert device.readers[first].ended.data == {"reason": "deleted"}
    device.read(stack.urls[1], thread)
    assert device.texts[second] == (sim_text(8, 5), "completed")


def test_a_cursor_must_say_which_generation_of_this_thread_it_is_of(stack: Stack, thread: str) -> None:
    mine = submit(stack, thread, {"tokens": 3})
    other = submit(stack, thread + "x", {"tokens": 3})
    plain = stack.submit({"tokens": 3})
    wait_ended(stack, [mine, other, plain])
    for cursor in ("5-1", "0-0", f"{mine}", f"{mine}/5", f"{mine}/05-1", f"{other}/3-1", f"{plain}/3-1", "x/5-1"):
        with open_thread(stack.urls[0], thread, cursor) as stream:
            problem = json.loads(stream.rest())
            assert (stream.status, problem["code"]) == (400, "invalid_position"), cursor


def test_a_cursor_of_a_generation_that_nobody_knows_gets_the_next_one(stack: Stack, thread: str) -> None:
    """For as long as the store may have lost it just now, it may still be put back: until then the fault is passing."""
    mine = submit(stack, thread, {"tokens": 3, "seed": 1})
    wait_ended(stack, [mine])
    texts: dict[str, tuple[str, str]] = {}

    def is_told() -> bool:
        device = Device(cursor=f"gen_{'0' * 32}/5-1")
        device.read(stack.urls[0], thread)
        texts.update(device.texts)
        return bool(texts)

    eventually(is_told, "the next one", seconds=60)
    assert texts == {mine: (sim_text(3, 1), "completed")}


def test_a_thread_can_be_asked_answer_by_answer(stack: Stack, thread: str) -> None:
    """Long-poll: the same rules, and ids that say which generation they are of."""

    def ask(cursor: str | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"} | ({"Last-Event-ID": cursor} if cursor else {})
        answer = request(stack.urls[0], "GET", thread_path(thread) + "?wait=5&limit=9", headers=headers)
        assert answer.status == 200
        said: dict[str, Any] = answer.json()
        return said

    assert ask(None) == {"verdict": None, "events": [], "position": None, "status": None}
    ids = [submit(stack, thread, {"tokens": 30, "seed": n, "tokens_per_second": 200}) for n in range(3)]
    cursor, texts = f"{ids[0]}/0-0", dict.fromkeys(ids, "")
    while (said := ask(cursor))["status"] is not None:
        for event in said["events"]:
            generation, _, _ = event["id"].partition("/")
            texts[generation] += event["data"]["text"] if event["event"] == "delta" else ""
        cursor = said["position"]
    assert said["position"] == cursor
    assert [texts[generation] for generation in ids] == [sim_text(30, n) for n in range(3)]


def test_head_tells_status_and_headers_and_reads_nothing(stack: Stack, thread: str) -> None:
    assert request(stack.urls[0], "HEAD", thread_path(thread)).status == 204
    generation = submit(stack, thread, {"tokens": 2, "first_token_ms": 30_000})
    since = time.monotonic()
    answer = request(stack.urls[0], "HEAD", thread_path(thread))
    assert (answer.status, answer.body) == (200, b"")
    assert time.monotonic() - since < 20
    stack.delete(f"/v1/generations/{generation}")

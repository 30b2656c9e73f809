"""Long-poll: the same log, asked for answer by answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgpack
import pytest
import redis

from broker.events import Completed, Delta, FinishReason, Started, encode
from broker.keys import Keys
from tests.support.sse_client import Answer, events_path, request
from tests.support.stack import ONE_BY_ONE, Stack, eventually
from worker.providers.sim import sim_text

#: A whole answer of another attempt.
ANOTHER = (
    Started(attempt=2, provider="sim", model="sim-1"),
    Delta(text="another"),
    Completed(finish_reason=FinishReason.STOP, usage=None, characters=7),
)
JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"LEGATO_LEASE_SECONDS": "30"}  # a worker that is paused shall not have lost its lease
    with Stack.start(redis_url, tmp_path_factory.mktemp("longpoll"), apis=2, environment=environment) as stack:
        yield stack


def ask(stack: Stack, generation: str, cursor: str | None = None, *, query: str = "", api: int = 0) -> Answer:
    headers = JSON | ({"Last-Event-ID": cursor} if cursor else {})
    return request(stack.urls[api], "GET", events_path(generation, query), headers=headers)


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["data"]["text"] for event in events if event["event"] in ("delta", "snapshot"))


def test_an_answer_holds_as_many_events_as_were_asked_for(stack: Stack) -> None:
    """If there are so many: whatever the pages are in which the log is read, and in which form it is stored."""
    generation = stack.submit({"tokens": 300, "seed": 4}, delivery=ONE_BY_ONE)
    stack.wait_status(generation, "completed")
    for _ in range(2):
        seqs, more = [0], True
        while more:
            said = ask(stack, generation, f"{seqs[-1]}-1" if seqs[-1] else None, query="limit=120").json()
            seqs.append(int(said["position"].partition("-")[0]))
            more = bool(said["events"])
        whole = len(stack.log(generation))
        assert seqs == [0, 120, 240, whole, whole]
        stack.wait_sealed(generation)


def test_a_running_text_is_whole_over_many_answers_of_both_replicas(stack: Stack) -> None:
    generation = stack.submit({"tokens": 150, "seed": 9, "tokens_per_second": 100}, delivery=ONE_BY_ONE)
    cursor, text, answers = None, "", 0
    while True:
        answer = ask(stack, generation, cursor, query="wait=5&limit=7", api=answers % 2)
        assert answer.status == 200
        said = answer.json()
        answers += 1
        assert said["verdict"] == ("start" if cursor is None else "resumed")
        text += text_of(said["events"])
        cursor = said["position"]
        if not said["events"] and said["status"] == "completed":
            break
    assert text == sim_text(150, 9)
    assert answers > 20


def test_it_waits_for_what_is_to_come_and_not_longer(stack: Stack) -> None:
    generation = stack.submit({"tokens": 100_000, "seed": 9, "tokens_per_second": 20})
    stack.wait_entries(generation, 1)
    worker = stack.workers[0]
    worker.pause()
    try:
        head = stack.log(generation)[-1][0]
        for query in ("wait=0", "wait=0.2"):
            said = ask(stack, generation, head, query=query).json()
            assert (said["events"], said["position"], said["status"]) == ([], head, "running")
        waking = threading.Timer(0.5, worker.resume)
        waking.start()
        said = ask(stack, generation, head, query="wait=55").json()
        assert said["events"]
        waking.join()
    finally:
        worker.resume()
    stack.post(f"/v1/generations/{generation}/cancel")


def test_whoever_asks_is_a_viewer_even_if_the_answer_is_there_at_once(stack: Stack) -> None:
    """A generation that is cancelled when nobody reads: each poll begins the grace anew. HEAD is nobody."""
    left_alone = {"policy": "cancel", "grace_seconds": 3600}
    generation = stack.submit({"tokens": 100_000, "tokens_per_second": 20}, on_disconnect=left_alone)
    stack.wait_entries(generation, 3)
    record = Keys(stack.prefix).record(generation)
    with redis.Redis.from_url(stack.url, protocol=2) as client:

        def unattended() -> int:
            return int(client.hget(record, "unattended_ms") or 0)

        eventually(unattended, "the worker has noticed that nobody reads")
        for query in ("wait=0", "from=snapshot", ""):
            before = unattended()
            assert ask(stack, generation, query=query).json()["events"]
            eventually(lambda earlier=before: unattended() > earlier, "the grace has begun anew")
        before = unattended()
        assert request(stack.urls[0], "HEAD", events_path(generation), headers=JSON).status == 200
        assert unattended() == before
    stack.post(f"/v1/generations/{generation}/cancel")


def test_a_position_that_is_gone_gives_a_snapshot_first(stack: Stack) -> None:
    generation = stack.submit({"tokens": 20, "seed": 9})
    stack.wait_status(generation, "completed")
    said = ask(stack, generation, "5-7").json()
    assert said["verdict"] == "rewound"
    assert [event["event"] for event in said["events"]] == ["snapshot", "completed"]
    assert text_of(said["events"]) == sim_text(20, 9)
    ended = ask(stack, generation, said["position"]).json()
    assert (ended["events"], ended["status"]) == ([], "completed")


def test_a_delete_ends_the_wait(stack: Stack) -> None:
    generation = stack.submit({"tokens": 3, "first_token_ms": 20_000})
    stack.wait_entries(generation, 1)
    deleting = threading.Timer(0.5, stack.delete, [f"/v1/generations/{generation}"])
    deleting.start()
    assert ask(stack, generation, "1-1", query="wait=15").status == 410
    deleting.join()


def test_another_attempt_that_has_ended_meanwhile_gives_a_snapshot(stack: Stack) -> None:
    """All at once the position is gone and the end is there: a reader that was told only of the end would stop, with
    text that is no more."""
    generation = stack.submit({"tokens": 3, "first_token_ms": 20_000})
    stack.wait_entries(generation, 1)
    holder = stack.holder(generation)
    holder.pause()
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(stack.url, protocol=2) as client:
        waiting = pool.submit(ask, stack, generation, "1-1", query="wait=20")
        keys = Keys(stack.prefix)
        eventually(lambda: client.pubsub_shardnumsub(keys.live(generation))[0][1] == 1, "it waits")
        log, record = keys.log(generation), keys.record(generation)
        with client.pipeline() as changes:
            changes.delete(log)
            for place, event in zip(("1-9", "2-9", "3-9"), ANOTHER, strict=True):
                stored = encode(event)
                changes.xadd(log, {stored.field: stored.payload}, id=place)
            changes.hset(record, mapping={"head": "3-9", "state": "completed", "epoch": "9", "owner": "another"})
            changes.execute()
        said = waiting.result(30).json()
    holder.resume()
    assert said["verdict"] == "rewound"
    assert [(event["event"], event["id"]) for event in said["events"]] == [("snapshot", "2-9"), ("completed", "3-9")]
    assert (text_of(said["events"]), said["status"], said["position"]) == ("another", "completed", "3-9")


def test_a_loss_that_is_put_back_is_no_404_to_who_waits(stack: Stack) -> None:
    generation = stack.submit({"tokens": 5, "seed": 9, "first_token_ms": 4000})
    stack.wait_entries(generation, 1)
    holder = stack.holder(generation)
    with ThreadPoolExecutor(1) as pool, redis.Redis.from_url(stack.url, protocol=2) as client:
        waiting = pool.submit(ask, stack, generation, "1-1", query="wait=40")
        keys = Keys(stack.prefix)
        eventually(lambda: client.pubsub_shardnumsub(keys.live(generation))[0][1] == 1, "it waits")
        holder.pause()
        client.delete(*keys.of(generation))
        client.execute_command("SPUBLISH", keys.live(generation), msgpack.packb(["look"]))  # it sees the loss first
        time.sleep(0.3)
        holder.resume()
        answer = waiting.result(60)
    assert answer.status == 200
    assert answer.json()["events"][0]["event"] == "delta"


@pytest.mark.parametrize(
    "query",
    [
        *("wait=56", "wait=-1", "wait=-0", "wait=soon", "wait=nan", "wait=inf", "wait=1e1", "wait=1_0", "wait="),
        *("limit=0", "limit=1001", "limit=1_0", "limit=%2B5", "limit=1.0", "limit=%D9%A3", "limit=", "limit=x&wait=1"),
    ],
)
def test_a_bad_bound_is_named(stack: Stack, query: str) -> None:
    generation = stack.submit({"tokens": 1})
    answer = ask(stack, generation, query=query)
    assert (answer.status, answer.json()["code"]) == (400, "invalid_query")
    assert [item["field"] for item in answer.json()["errors"]] == [query.partition("=")[0]]

"""What the next attempt does, who is reading, and how processes leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from broker.events import Completed, Delta, Failed, Reset, Started, Status
from broker.keys import Keys
from tests.support.sse_client import follow, open_stream
from tests.support.stack import ONE_BY_ONE, Stack, eventually
from tests.support.wire_provider import Reply, WireProvider
from worker.providers.sim import sim_text

SLOW = {"tokens": 120, "seed": 5, "tokens_per_second": 40}
#: The first attempt stands still behind so much: it cannot end before its worker is killed.
STALLS = {"at_token": 40, "kind": "stall", "attempt": 1}


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path, apis=1, workers=1) as stack:
        yield stack


def lose_the_worker(stack: Stack, generation: str) -> None:
    stack.wait_entries(generation, 20)
    stack.holder(generation).kill()
    stack.add_worker()


def test_continue_goes_on_to_the_character_where_the_lost_worker_stopped(stack: Stack) -> None:
    """No reset, nothing twice, nothing missing: chunks are cut apart so that the seam falls inside one."""
    text = "Über die Brücke 🌉 gehen, ohne zweimal zu gehen. " * 8
    options = {"text": text, "chunk_chars": 7, "tokens_per_second": 25, "faults": [STALLS]}
    generation = stack.submit(options, recovery="continue", delivery=ONE_BY_ONE)
    lose_the_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    assert reader.text == text
    assert "reset" not in reader.events
    assert reader.events.count("started") == 2
    end = stack.log(generation)[-1][1]
    assert isinstance(end, Completed)
    assert end.characters == len(text)


def test_restart_says_reset_and_writes_the_text_anew(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "faults": [STALLS]}, recovery="restart", delivery=ONE_BY_ONE)
    lose_the_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(120, 5)
    assert reader.events.count("reset") == 1


def test_an_attempt_that_showed_nothing_is_replaced_silently(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "faults": [{**STALLS, "at_token": 0}]})
    stack.wait_entries(generation, 1)
    stack.holder(generation).kill()
    stack.add_worker()
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(120, 5)
    assert "reset" not in reader.events


def test_fail_ends_what_was_shown_and_says_that_it_is_partial(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "faults": [STALLS]}, recovery="fail", delivery=ONE_BY_ONE)
    lose_the_worker(stack, generation)
    reader, _ = follow(stack.urls, generation)
    assert reader.ended is not None
    assert reader.ended.event == "failed"
    assert reader.ended.data["code"] == "worker_lost"
    assert reader.ended.data["partial"] is True
    assert sim_text(120, 5).startswith(reader.text)


def test_a_job_that_kills_its_workers_ends_and_can_be_found(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "tokens": 2000}, max_attempts=2)
    for attempt in (1, 2):
        eventually(
            lambda attempt=attempt: [type(e) for _, e in stack.log(generation)].count(Started) == attempt,  # type: ignore[misc]
            f"attempt {attempt}",
        )
        stack.holder(generation).kill()
        stack.add_worker()
    stack.wait_status(generation, "failed")
    end = stack.log(generation)[-1][1]
    assert isinstance(end, Failed)
    assert end.code.value == "worker_lost"
    found = stack.get("/v1/generations?status=failed&code=worker_lost").json()["data"]
    assert [item["id"] for item in found] == [generation]


def test_a_failed_attempt_is_tried_again_and_seen(stack: Stack) -> None:
    faults = [{"at_token": 10, "kind": "error", "attempt": 1}, {"at_token": 3, "kind": "truncate", "attempt": 2}]
    generation = stack.submit({"tokens": 30, "seed": 5, "faults": faults})
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(30, 5)
    events = [event for _, event in stack.log(generation)]
    assert [event.detail["code"] for event in events if isinstance(event, Status)] == [
        "upstream_error",
        "upstream_incomplete",
    ]
    assert [event.reason for event in events if isinstance(event, Reset)] == ["upstream_error", "upstream_incomplete"]


def test_a_silent_provider_is_stalled(stack: Stack) -> None:
    faults = [{"at_token": 4, "kind": "stall"}]
    generation = stack.submit({"tokens": 30, "faults": faults}, stall_seconds=0.5, max_attempts=1)
    reader, _ = follow(stack.urls, generation)
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "stalled")


def test_a_generation_that_takes_too_long_times_out(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "tokens": 5000}, timeout_seconds=1.5)
    reader, _ = follow(stack.urls, generation)
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "timeout")


def test_a_leaving_worker_hands_its_text_over_without_waiting_for_the_lease(redis_url: str, tmp_path: Path) -> None:
    """With a lease of a minute, only a hand-over can explain that the job ends within seconds."""
    environment = {"LEGATO_LEASE_SECONDS": "60", "LEGATO_DRAIN_SECONDS": "0"}
    with Stack.start(redis_url, tmp_path, apis=1, workers=1, environment=environment) as stack:
        generation = stack.submit({**SLOW, "tokens": 300}, recovery="continue", max_attempts=1)
        stack.wait_entries(generation, 20)
        first = stack.holder(generation)
        stack.add_worker()
        first.terminate()
        assert first.wait() == 0
        reader, _ = follow(stack.urls, generation, seconds=50)
        assert reader.text == sim_text(300, 5)
        # A hand-over burns no attempt.
        assert [event.attempt for _, event in stack.log(generation) if isinstance(event, Started)] == [1, 1]


def test_a_second_signal_ends_a_worker_that_still_drains(redis_url: str, tmp_path: Path) -> None:
    with Stack.start(redis_url, tmp_path, workers=1, environment={"LEGATO_DRAIN_SECONDS": "600"}) as stack:
        generation = stack.submit({**SLOW, "tokens": 5000})
        stack.wait_entries(generation, 5)
        worker = stack.workers[0]
        worker.terminate()
        eventually(lambda: worker.events("stopping"), "it has been told")
        assert worker.alive
        worker.terminate()
        assert worker.wait() == 130


def test_nobody_reading_cancels_after_the_grace_and_not_before(stack: Stack) -> None:
    left_alone = {"policy": "cancel", "grace_seconds": 1.5}
    generation = stack.submit(
        {**SLOW, "tokens": 4000}, on_disconnect=left_alone, max_output_tokens=10_000, delivery=ONE_BY_ONE
    )
    with open_stream(stack.urls[0], generation) as stream:
        frames = stream.frames()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            next(frames)
        assert stack.status(generation) == "running"
    stack.wait_status(generation, "cancelled")
    assert stack.log(generation)[-1][1].reason.value == "abandoned"  # type: ignore[union-attr]
    counted = "legato_generations_abandoned_total 1\n"  # behind the end that it counts
    eventually(lambda: counted in stack.get("/metrics").body.decode(), "it is counted")
    lines = stack.get("/metrics").body.decode().splitlines()
    unspent = next(line for line in lines if line.startswith("legato_tokens_unspent_total "))
    shown = sum(isinstance(event, Delta) for _, event in stack.log(generation))
    assert float(unspent.split()[1]) == 10_000 - shown


def test_a_job_that_nobody_ever_read_is_cancelled_too(stack: Stack) -> None:
    generation = stack.submit({**SLOW, "tokens": 4000}, on_disconnect={"policy": "cancel", "grace_seconds": 1})
    stack.wait_status(generation, "cancelled")


def test_a_reader_who_comes_back_within_the_grace_changes_nothing(stack: Stack) -> None:
    """Away for longer than that in all, but never at once."""
    generation = stack.submit({**SLOW, "tokens": 600}, on_disconnect={"policy": "cancel", "grace_seconds": 4})
    cursor = None
    for _ in range(5):
        with open_stream(stack.urls[0], generation, cursor) as stream:
            frames = stream.frames()
            for _ in range(8):
                cursor = next(frames).id or cursor
        time.sleep(1)
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(600, 5)


def test_the_viewers_of_a_killed_api_disappear_by_themselves(redis_url: str, tmp_path: Path) -> None:
    with Stack.start(redis_url, tmp_path, apis=2, workers=1) as stack:
        generation = stack.submit({**SLOW, "tokens": 4000}, on_disconnect={"policy": "cancel", "grace_seconds": 1})
        with open_stream(stack.urls[1], generation) as stream:
            next(stream.frames())
            stack.apis[1].kill()
            stack.apis.pop()
            stack.wait_status(generation, "cancelled", seconds=40)


def test_a_worker_whose_claim_the_store_forgot_does_not_run_the_job_twice(stack: Stack) -> None:
    """The record is queued again and its hint ready, while the worker still writes: it must not fight itself, lease
    after lease, until no attempt is left."""
    generation = stack.submit({**SLOW, "tokens": 300})
    stack.wait_entries(generation, 20)
    keys = Keys(stack.prefix)
    with redis.Redis.from_url(stack.url, protocol=2) as client:
        old = {"epoch": 0, "owner": "", "lease": 0, "state": "queued", "attempt": 0, "charge": 1, "head": "0-0"}
        client.hset(keys.record(generation), mapping=old)
        client.delete(keys.log(generation))
        client.zadd(keys.ready("interactive"), {f"i:{generation}:dev": 0})
        client.rpush(keys.wake(), "1")
    reader, _ = follow(stack.urls, generation)
    assert reader.text == sim_text(300, 5)
    assert max(event.attempt for _, event in stack.log(generation) if isinstance(event, Started)) == 1


def test_a_retry_that_would_come_too_late_is_not_waited_for(redis_url: str, tmp_path: Path) -> None:
    """The provider asks to wait longer than the generation may take."""
    with WireProvider(lambda _: Reply.error(429, {"error": {"message": "later"}}, retry_after="600")) as provider:
        environment = {"LEGATO_PROVIDERS": "openai", "OPENAI_BASE_URL": provider.openai_url, "OPENAI_API_KEY": "none"}
        with Stack.start(redis_url, tmp_path, environment=environment) as stack:
            generation = stack.submit({}, provider="openai", timeout_seconds=60)
            reader, _ = follow(stack.urls, generation, seconds=40)
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "rate_limited")

"""What all workers together ask of a provider: its limits, its circuit breaker, the budgets of retries and tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from broker.embedded import EmbeddedServer
from broker.events import Started, Status
from broker.keys import Keys
from tests.support.elapsed import Elapsed
from tests.support.servers import free_port
from tests.support.sse_client import Reader, follow
from tests.support.stack import Stack, eventually
from tests.support.wire_provider import (
    ByModel,
    Pause,
    Received,
    Reply,
    Send,
    WireProvider,
    openai_chunk,
    openai_stream,
)
from worker.providers.sim import sim_text

TEXT = "All of it is here."
NOT_TODAY = Reply.error(500, {"error": {"message": "not today"}})
#: Longer than it takes to submit a few generations on a busy machine.
OPEN_SECONDS = 15
LIMITS = {
    "two": {"concurrency": 2},
    "one": {"concurrency": 1},
    "slow": {"requests_per_minute": 3},
    "frail": {},
    "same_key": {"shared_with": "two"},
}


def environment(url: str, limits: dict[str, Any], **more: str) -> dict[str, str]:
    """Providers of these names, all at the scripted server."""
    servers = {name: {"base_url": f"{url}/{name}", "api_key_env": None} for name in limits}
    return {
        "LEGATO_PROVIDERS": ",".join([*limits, "sim"]),
        "LEGATO_OPENAI_COMPATIBLE": orjson.dumps(servers).decode(),
        "LEGATO_PROVIDER_LIMITS": orjson.dumps(limits).decode(),
        "LEGATO_RETRY_BASE_SECONDS": "0.05",
        **more,
    }


class Models(ByModel):
    """Models that hold their answers back until they are let go, besides those that are scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: Counter[str] = Counter()

    def hold(self, model: str) -> asyncio.Event:
        """Answers of this model begin, and go on once the event is set."""
        gate = self.gates[model] = asyncio.Event()
        whole = openai_stream(TEXT)
        begun = openai_chunk({"role": "assistant", "content": ""})
        self.script(model, Reply(actions=(Send(begun), Pause(gate), *Reply.events(whole).actions)))
        return gate

    def __call__(self, request: Received) -> Reply:
        self.calls[request.body["model"]] += 1
        return super().__call__(request)


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def server(models: Models) -> Iterator[WireProvider]:
    with WireProvider(models) as server:
        yield server


@pytest.fixture
def stack(redis_url: str, tmp_path: Path, server: WireProvider) -> Iterator[Stack]:
    """Nobody dies here, so no worker that is merely slow shall lose a lease: calls and attempts are counted."""
    settings = environment(server.url, LIMITS, LEGATO_BREAKER_OPEN_SECONDS=f"{OPEN_SECONDS}", LEGATO_LEASE_SECONDS="30")
    with Stack.start(redis_url, tmp_path, workers=2, environment=settings) as stack:
        yield stack


@pytest.fixture
def mortal(redis_url: str, tmp_path: Path, server: WireProvider) -> Iterator[Stack]:
    """Workers that are killed are soon followed."""
    settings = environment(server.url, LIMITS, LEGATO_LEASE_SECONDS="3")
    with Stack.start(redis_url, tmp_path, workers=2, environment=settings) as stack:
        yield stack


def submit(stack: Stack, provider: str, model: str, **fields: Any) -> str:
    messages = [{"role": "user", "content": "Say something."}]
    body = {"provider": provider, "model": model, "messages": messages, **fields}
    answer = stack.post("/v1/generations", body)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def follow_all(stack: Stack, generations: list[str]) -> list[Reader]:
    with ThreadPoolExecutor(max(1, len(generations))) as pool:
        return [reader for reader, _ in pool.map(lambda it: follow(stack.urls, it), generations)]


def waits(stack: Stack, generation: str) -> list[str]:
    """Why it said that it waits, each time that it said so."""
    said = [event for _, event in stack.log(generation) if isinstance(event, Status)]
    return [status.detail["reason"] for status in said if status.phase == "waiting"]


def attempts(stack: Stack, generation: str) -> set[int]:
    return {event.attempt for _, event in stack.log(generation) if isinstance(event, Started)}


def later(stack: Stack) -> set[str]:
    """Generations whose lease a worker gave back to wait."""
    left = [line for worker in stack.workers for line in worker.events("generation_left")]
    return {line["generation"] for line in left if line["outcome"] == "later"}


def test_two_workers_together_never_ask_more_at_once_than_is_allowed(
    stack: Stack, models: Models, server: WireProvider
) -> None:
    """Six wait so long that their leases are given back; they say so once, and it costs no attempt."""
    gate = models.hold("m")
    generations = [submit(stack, "two", "m") for _ in range(8)]
    eventually(lambda: sum(waits(stack, it) == ["concurrency"] for it in generations) == 6, "six wait")
    waiting = {it for it in generations if waits(stack, it)}
    eventually(lambda: later(stack) == waiting, "the leases of those who wait are given back")
    eventually(lambda: server.open == 2, "the other two have asked")
    server.let_go(gate)
    for reader in follow_all(stack, generations):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert server.most_open == 2
    assert models.calls["m"] == 8
    assert {it: waits(stack, it) for it in waiting} == {it: ["concurrency"] for it in waiting}
    assert [attempts(stack, it) for it in generations] == [{1}] * 8


def test_two_providers_with_one_key_have_one_limit(stack: Stack, models: Models, server: WireProvider) -> None:
    gate = models.hold("m")
    generations = [submit(stack, provider, "m") for provider in ("two", "same_key") * 2]
    eventually(lambda: sum(waits(stack, it) == ["concurrency"] for it in generations) == 2, "two wait")
    eventually(lambda: server.open == 2, "the other two have asked")
    server.let_go(gate)
    for reader in follow_all(stack, generations):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert server.most_open == 2


def test_the_slots_of_a_killed_worker_come_back(mortal: Stack, models: Models, server: WireProvider) -> None:
    """Nobody goes on with what it held: it is cancelled before another worker could."""
    models.hold("lost")
    models.script("next", Reply.events(openai_stream(TEXT)))
    for worker in mortal.workers[1:]:
        mortal.remove(worker)
    lost = submit(mortal, "one", "lost")
    eventually(lambda: server.open == 1, "it is asked")
    mortal.workers[0].kill()
    assert mortal.post(f"/v1/generations/{lost}/cancel").status == 202
    mortal.wait_status(lost, "cancelled")
    mortal.add_worker()
    following = submit(mortal, "one", "next")
    reader, _ = follow(mortal.urls, following)
    assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert (models.calls["lost"], server.most_open) == (1, 1)
    assert waits(mortal, following) in ([], ["concurrency"])


def test_what_a_killed_worker_was_asking_is_asked_again_within_the_limit(
    mortal: Stack, models: Models, server: WireProvider
) -> None:
    gate = models.hold("m")
    generations = [submit(mortal, "two", "m") for _ in range(4)]
    eventually(lambda: server.open == 2, "two are asked")
    for worker in list(mortal.workers):
        worker.kill()
    mortal.add_worker()
    server.let_go(gate)
    for reader in follow_all(mortal, generations):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert server.most_open == 2
    assert models.calls["m"] == 6


def test_a_call_that_follows_a_lost_one_counts_as_one(mortal: Stack, models: Models) -> None:
    """The provider has counted both."""
    models.hold("m")
    mortal.remove(mortal.workers[1])
    lost = [submit(mortal, "slow", "m") for _ in range(2)]
    eventually(lambda: models.calls["m"] == 2, "both are asked")
    following = mortal.add_worker()
    eventually(lambda: following.events("worker_started"), "another worker is there")
    mortal.workers[0].kill()
    eventually(lambda: models.calls["m"] == 3, "one is asked again")
    eventually(lambda: [waits(mortal, it) for it in lost].count(["requests"]) == 1, "the other one waits")
    assert models.calls["m"] == 3


def test_a_lost_worker_is_no_failure_of_the_provider(
    redis_url: str, tmp_path: Path, models: Models, server: WireProvider
) -> None:
    """Neither what it was asking nor what waited for its turn needs the budget of retries."""
    gate = models.hold("m")
    settings = environment(
        server.url,
        {"one": {"concurrency": 1}},
        LEGATO_RETRY_RATIO="0",
        LEGATO_RETRY_FLOOR="0",
        LEGATO_LEASE_SECONDS="1",
    )
    with Stack.start(redis_url, tmp_path, environment=settings) as stack:
        asked = submit(stack, "one", "m")
        eventually(lambda: server.open == 1, "it is asked")
        waiting = submit(stack, "one", "m")
        eventually(lambda: waits(stack, waiting), "the other one waits")
        stack.workers.pop().kill()
        stack.add_worker()
        eventually(lambda: models.calls["m"] == 2, "somebody goes on")
        server.let_go(gate)
        for reader in follow_all(stack, [asked, waiting]):
            assert (reader.text, reader.events[-1]) == (TEXT, "completed")


def test_requests_a_minute_are_counted_over_all_workers(stack: Stack, models: Models) -> None:
    models.script("m", Reply.events(openai_stream(TEXT)))
    generations = [submit(stack, "slow", "m") for _ in range(5)]
    eventually(lambda: sum(waits(stack, it) == ["requests"] for it in generations) == 2, "two wait")
    follow_all(stack, [it for it in generations if not waits(stack, it)])
    assert models.calls["m"] == 3
    elapsed = Elapsed(Keys(stack.prefix), "slow", window_ms=30_000)
    with redis.Redis.from_url(stack.url, protocol=2) as client:
        client.eval(*elapsed.more(60_000))
    for reader in follow_all(stack, generations):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert models.calls["m"] == 5
    assert [attempts(stack, it) for it in generations] == [{1}] * 5


def test_a_provider_that_fails_ten_times_is_left_alone_and_then_asked_again(stack: Stack, models: Models) -> None:
    models.script("bad", NOT_TODAY)
    models.script("good", Reply.events(openai_stream(TEXT)))
    failing = [submit(stack, "frail", "bad", max_attempts=1) for _ in range(10)]
    for reader in follow_all(stack, failing):
        assert reader.events[-1] == "failed"
    assert models.calls["bad"] == 10
    fallback = {"provider": "sim", "model": "sim-1", "provider_options": {"tokens": 20, "seed": 3}}
    elsewhere = submit(stack, "frail", "never", fallbacks=[fallback])
    waiting = [submit(stack, "frail", "good") for _ in range(3)]
    [reader] = follow_all(stack, [elsewhere])
    assert (reader.text, reader.events[-1]) == (sim_text(20, 3), "completed")
    told = [event.detail["code"] for _, event in stack.log(elsewhere) if isinstance(event, Status)]
    assert told == ["circuit_open"]
    eventually(lambda: all(waits(stack, it) == ["circuit_open"] for it in waiting), "all three wait")
    assert models.calls["good"] == 0
    for reader in follow_all(stack, waiting):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert [waits(stack, it) for it in waiting] == [["circuit_open"]] * 3
    assert [attempts(stack, it) for it in waiting] == [{1}] * 3
    assert models.calls["good"] == 3
    opened = [line for worker in stack.workers for line in worker.events("circuit_opened")]
    assert [line["provider"] for line in opened] == ["frail"]


def test_a_cancel_ends_the_wait_for_a_turn(stack: Stack, models: Models, server: WireProvider) -> None:
    gate = models.hold("m")
    first = submit(stack, "one", "m")
    eventually(lambda: server.open == 1, "it is asked")
    second = submit(stack, "one", "m")
    eventually(lambda: waits(stack, second), "the second one waits")
    third = submit(stack, "one", "m")
    assert stack.post(f"/v1/generations/{second}/cancel").status == 202
    reader, _ = follow(stack.urls, second)
    assert reader.events[-1] == "cancelled"
    server.let_go(gate)
    for reader in follow_all(stack, [first, third]):
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
    assert models.calls["m"] == 2


def test_an_outage_is_not_multiplied_by_retries(
    redis_url: str, tmp_path: Path, models: Models, server: WireProvider
) -> None:
    """The breaker is out of the way here: only the budget of retries holds back."""
    generations, ratio, floor = 20, 0.2, 3
    models.script("m", NOT_TODAY)
    settings = environment(
        server.url,
        {"dead": {}},
        LEGATO_BREAKER_MIN_CALLS="1000000",
        LEGATO_RETRY_RATIO=f"{ratio}",
        LEGATO_RETRY_FLOOR=f"{floor}",
    )
    with Stack.start(redis_url, tmp_path, workers=2, environment=settings) as stack:
        readers = follow_all(stack, [submit(stack, "dead", "m", max_attempts=5) for _ in range(generations)])
    for reader in readers:
        assert reader.ended is not None
        end = reader.ended.data
        assert (reader.ended.event, end["code"], end["retryable"]) == ("failed", "upstream_error", True)
    assert generations < models.calls["m"] <= generations * (1 + ratio) + floor


def test_a_tenants_budget_stops_the_call_that_reaches_it_and_lets_no_other_begin(
    redis_url: str, tmp_path: Path, models: Models, server: WireProvider
) -> None:
    endless = b"".join(openai_chunk({"content": "word "}) for _ in range(120))
    models.script("m", Reply(actions=(Send(endless), Pause(asyncio.Event()))))
    settings = environment(server.url, {"any": {}}, LEGATO_TENANT_TOKENS_PER_DAY="100")
    with Stack.start(redis_url, tmp_path, environment=settings) as stack:
        reader, _ = follow(stack.urls, submit(stack, "any", "m"))
        assert reader.ended is not None
        end = reader.ended.data
        assert (reader.ended.event, end["code"], end["retryable"]) == ("failed", "budget_exceeded", False)
        assert (end["partial"], end["characters"]) == (True, len(reader.text))
        assert reader.text == "word " * 100
        eventually(server.requests[0].gone.is_set, "the provider's connection is closed")
        fallback = {"provider": "sim", "model": "sim-1"}
        reader, _ = follow(stack.urls, submit(stack, "any", "m", fallbacks=[fallback]))
        assert reader.ended is not None
        assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "budget_exceeded")
        assert (reader.text, models.calls["m"]) == ("", 1)


def test_a_store_that_is_away_while_a_budget_is_counted_is_no_silence_of_the_provider(tmp_path: Path) -> None:
    settings = {"LEGATO_TENANT_TOKENS_PER_DAY": "1000000", "LEGATO_LEASE_SECONDS": "30"}
    options = {"tokens": 400, "seed": 5, "tokens_per_second": 100}
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as store,
        Stack.start(store.url, tmp_path, environment=settings) as stack,
    ):
        generation = stack.submit(options, stall_seconds=3)
        stack.wait_entries(generation, 20)
        os.kill(store.pid, signal.SIGSTOP)
        try:
            time.sleep(6)  # the count that falls due meanwhile waits longer than a provider may be silent
        finally:
            os.kill(store.pid, signal.SIGCONT)
        [reader] = follow_all(stack, [generation])
        assert (reader.text, reader.events[-1]) == (sim_text(400, 5), "completed")
        assert "reset" not in reader.events
        assert attempts(stack, generation) == {1}


def test_a_tenants_budget_takes_the_providers_own_count(
    redis_url: str, tmp_path: Path, models: Models, server: WireProvider
) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 100}
    models.script("m", Reply.events(openai_stream(TEXT, usage=usage)))
    settings = environment(server.url, {"any": {}}, LEGATO_TENANT_TOKENS_PER_DAY="100")
    with Stack.start(redis_url, tmp_path, environment=settings) as stack:
        reader, _ = follow(stack.urls, submit(stack, "any", "m"))
        assert (reader.text, reader.events[-1]) == (TEXT, "completed")
        reader, _ = follow(stack.urls, submit(stack, "any", "m"))
        assert reader.ended is not None
        assert (reader.ended.event, reader.ended.data["code"]) == ("failed", "budget_exceeded")
        assert models.calls["m"] == 1

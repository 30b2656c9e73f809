"""The store forgets, and nobody notices: what a holder put in the log comes back under the same positions.

Every test reads with clients that only do the least (append, clear on reset, replace on snapshot, come back with the
last id) and compares with the text the simulated provider is known to generate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from broker.embedded import EmbeddedServer
from broker.events import Completed, Reset, Started
from broker.generation import new_id
from tests.support.servers import command, free_port, start_replica, wait_in_sync, wait_until
from tests.support.sse_client import Reader, follow, open_stream
from tests.support.stack import ONE_BY_ONE, Stack, eventually
from worker.providers.sim import sim_text

#: Long enough that the text is still being written when the fault comes, on a machine that is busy with other things.
TOKENS, RATE, SEED = 320, 40, 11

#: A lease that a worker renews in time however little of the machine it is given.
LONG_LEASE_SECONDS = 6
TEXT = sim_text(TOKENS, SEED)
JOB = {"tokens": TOKENS, "seed": SEED, "tokens_per_second": RATE}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(tmp_path / "store", port=free_port(), extra={"enable-debug-command": "local"}) as server:
        yield server


@pytest.fixture
def stack(server: EmbeddedServer, tmp_path: Path) -> Iterator[Stack]:
    with Stack.start(server.url, tmp_path, apis=2, workers=2) as stack:
        yield stack


@pytest.fixture
def patient(server: EmbeddedServer, tmp_path: Path) -> Iterator[Stack]:
    """For what is said of workers that live: that nobody takes over from them."""
    environment = {"LEGATO_LEASE_SECONDS": str(LONG_LEASE_SECONDS)}
    with Stack.start(server.url, tmp_path, apis=2, workers=2, environment=environment) as stack:
        yield stack


def read_through(stack: Stack, generation: str, fault: Callable[[], object], *, readers: int = 3) -> list[Reader]:
    """Attach readers, let the fault happen in mid-text, and read to the end."""
    found: list[Reader] = []

    def read_one(number: int) -> None:
        found.append(follow([*stack.urls[number % 2 :], *stack.urls[: number % 2]], generation)[0])

    threads = [threading.Thread(target=read_one, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    stack.wait_entries(generation, 30)
    fault()
    for thread in threads:
        thread.join(90)
    assert len(found) == readers
    return found


def raw(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket_path), protocol=2)


def dumped(server: EmbeddedServer) -> dict[bytes, bytes]:
    """Everything a server holds."""
    with raw(server) as client:
        return {key: value for key in client.keys("*") if (value := client.dump(key)) is not None}


def restore(server: EmbeddedServer, older: dict[bytes, bytes]) -> None:
    """The past, under another replication id: what a failover to a replica looks like from outside."""
    with raw(server) as client:
        for key, value in older.items():
            client.restore(key, 0, value, replace=True)
        client.execute_command("DEBUG", "CHANGE-REPL-ID")


def lose_the_file(server: EmbeddedServer) -> None:
    """kill -9, and come back with nothing."""
    server.kill()
    for file in server.data_dir.rglob("*"):
        if file.is_file() and "appendonly" in str(file):
            file.unlink()
    server.restart()


FAULTS: dict[str, Callable[[EmbeddedServer], object]] = {
    "flushall": lambda server: command(server, "FLUSHALL"),
    "script flush": lambda server: command(server, "SCRIPT", "FLUSH"),
    "client kill": lambda server: command(server, "CLIENT", "KILL", "SKIPME", "yes"),
    "killed and back with its file": lambda server: (server.kill(), server.restart()),
    "killed and back with nothing": lose_the_file,
    "away for longer than the lease": lambda server: (
        server.kill(),
        time.sleep(LONG_LEASE_SECONDS + 1),
        server.restart(),
    ),
    "hangs": lambda server: command(server, "DEBUG", "SLEEP", "3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_readers_get_the_exact_text_through_a_fault_of_the_store(
    patient: Stack, server: EmbeddedServer, fault: str
) -> None:
    stack = patient
    generation = stack.submit(JOB)
    readers = read_through(stack, generation, lambda: FAULTS[fault](server))
    assert [reader.text for reader in readers] == [TEXT] * len(readers)
    log = stack.log(generation)
    assert [position.partition("-")[0] for position, _ in log] == [str(seq) for seq in range(1, len(log) + 1)]
    assert [type(event) for _, event in log].count(Completed) == 1
    # The worker was alive all the time: nobody took its generation over.
    assert [type(event) for _, event in log].count(Started) == 1


def test_a_failover_to_a_replica_without_the_tail_is_healed(
    stack: Stack, server: EmbeddedServer, tmp_path: Path
) -> None:
    """The replica stops following, then becomes what the processes see: its log lacks what was written since."""
    with start_replica(server) as replica:
        wait_in_sync(replica, server)
        generation = stack.submit(JOB)
        stack.wait_entries(generation, 20)

        def fail_over() -> None:
            command(replica, "REPLICAOF", "NO", "ONE")
            held = len(stack.log(generation))
            stack.wait_entries(generation, held + 15)  # written to the primary alone
            older = dumped(replica)
            command(server, "FLUSHALL")
            restore(server, older)

        readers = read_through(stack, generation, fail_over)
    assert [reader.text for reader in readers] == [TEXT] * len(readers)


def test_an_end_that_the_store_forgets_is_put_back(stack: Stack, server: EmbeddedServer) -> None:
    generation = stack.submit({"tokens": 20, "seed": SEED})
    stack.wait_status(generation, "completed")
    before = stack.log(generation)
    command(server, "FLUSHALL")
    eventually(lambda: stack.get(f"/v1/generations/{generation}").status == 200, "the record is back")
    stack.wait_status(generation, "completed")
    assert stack.log(generation) == before
    assert stack.get(f"/v1/generations/{generation}").json()["text"] == sim_text(20, SEED)


def test_a_sealed_log_that_the_store_forgets_is_put_back_and_sealed_again(stack: Stack, server: EmbeddedServer) -> None:
    generation = stack.submit({"tokens": 200, "seed": SEED}, delivery=ONE_BY_ONE)
    stack.wait_sealed(generation)
    before = stack.log(generation)
    command(server, "FLUSHALL")
    eventually(lambda: stack.log(generation) == before, "the log is back")
    stack.wait_sealed(generation)
    assert stack.log(generation) == before
    assert follow(stack.urls, generation)[0].text == sim_text(200, SEED)


def test_a_deleted_generation_is_not_put_back(stack: Stack, server: EmbeddedServer) -> None:
    generation = stack.submit(JOB)
    stack.wait_entries(generation, 10)
    assert stack.delete(f"/v1/generations/{generation}").status == 204
    time.sleep(2)
    assert stack.get(f"/v1/generations/{generation}").status == 410
    assert stack.log(generation) == []


def test_a_worker_that_slept_does_not_put_back_what_it_may_have_missed(server: EmbeddedServer, tmp_path: Path) -> None:
    """Paused, and the store lost everything meanwhile: a cancel or delete may have been lost with it."""
    with Stack.start(server.url, tmp_path, apis=1, workers=1) as stack:
        generation = stack.submit(JOB)
        stack.wait_entries(generation, 10)
        stack.workers[0].pause()
        time.sleep(3.5)  # longer than the lease
        command(server, "FLUSHALL")
        stack.workers[0].resume()
        time.sleep(3)
        assert stack.log(generation) == []
        assert stack.get(f"/v1/generations/{generation}").status == 503  # somebody else might put it back, for 30 s


def test_what_is_about_to_come_back_is_no_404_to_anybody(server: EmbeddedServer, tmp_path: Path) -> None:
    """Everything is lost, and the worker is a moment late. Whoever asks for the generation now must ask again: a stop
    button that was told 404 would leave the job running, and a page that was opened just now would stay empty."""
    with Stack.start(server.url, tmp_path, apis=1, workers=1, environment={"LEGATO_LEASE_SECONDS": "30"}) as stack:
        generation = stack.submit({**JOB, "tokens": 4000})
        stack.wait_entries(generation, 10)
        holder = stack.holder(generation)
        holder.pause()
        command(server, "FLUSHALL")
        one = f"/v1/generations/{generation}"
        for answer in (stack.get(one), stack.post(one + "/cancel"), stack.delete(one)):
            assert (answer.status, answer.json()["code"]) == (503, "data_lost")
            assert "retry-after" in answer.headers
        response = f"/openai/v1/responses/{generation}"
        for answer in (stack.get(response), stack.post(response + "/cancel")):
            assert (answer.status, answer.json()["error"]["code"]) == (503, "data_lost")
        chat = f"/ai-sdk/chat/{generation}"
        for answer in (stack.get(chat + "/stream"), stack.post(chat + "/stop", {})):
            assert (answer.status, answer.headers["x-legato-code"]) == (503, "data_lost")
        with open_stream(stack.urls[0], generation) as stream:  # without a cursor
            assert [frame.event for frame in stream.frames()] == ["open", "error"]
        made_after_the_loss = new_id()
        assert stack.get(f"/v1/generations/{made_after_the_loss}").status == 404
        holder.resume()
        eventually(lambda: stack.post(one + "/cancel").status == 202, "the cancel is taken")
        stack.wait_status(generation, "cancelled")


def test_another_attempt_on_a_rolled_back_store_is_told_apart(stack: Stack, server: EmbeddedServer) -> None:
    """The store forgets the claim; before the holder writes again somebody else has claimed and written there."""
    generation = stack.submit(JOB)
    stack.wait_entries(generation, 5)
    first = stack.holder(generation)
    older = {key: value for key, value in dumped(server).items() if generation.encode() in key}
    stack.wait_entries(generation, 30)

    def roll_back() -> None:
        first.pause()
        restore(server, older)
        # The other worker takes over when the lease of the old record is over, and writes another attempt.
        eventually(lambda: any(isinstance(event, Reset) for _, event in stack.log(generation)), "another attempt")
        first.resume()

    readers = read_through(stack, generation, roll_back)
    assert [reader.text for reader in readers] == [TEXT] * len(readers)
    epochs = {int(position.partition("-")[2]) for position, _ in stack.log(generation)}
    assert max(epochs) > 1 << 20  # the claim after a lost one jumped


def test_a_full_store_holds_the_provider_back_and_loses_nothing(patient: Stack, server: EmbeddedServer) -> None:
    stack = patient
    generation = stack.submit(JOB)

    def fill() -> None:
        command(server, "CONFIG", "SET", "maxmemory", "1mb")
        body = {"provider": "sim", "model": "m", "messages": [{"role": "user", "content": "x"}]}
        refused = stack.post("/v1/generations", body)
        assert refused.status == 503
        assert "retry-after" in refused.headers
        time.sleep(1.5)
        command(server, "CONFIG", "SET", "maxmemory", "0")

    readers = read_through(stack, generation, fill)
    assert [reader.text for reader in readers] == [TEXT] * len(readers)
    assert [type(event) for _, event in stack.log(generation)].count(Started) == 1


def test_a_job_whose_hint_the_queue_lost_is_found_again(server: EmbeddedServer, tmp_path: Path) -> None:
    """The queue's keys vanish while a job waits; the sweep puts its hint back."""
    environment = {"LEGATO_SWEEP_SECONDS": "1"}
    with Stack.start(server.url, tmp_path, apis=1, workers=0, environment=environment) as stack:
        generation = stack.submit({"tokens": 5, "seed": SEED})
        with raw(server) as client:
            assert client.delete(*client.keys("*{queue}*"))
        stack.add_worker()
        wait_until(lambda: stack.status(generation) == "completed", "the lost job runs", seconds=30)

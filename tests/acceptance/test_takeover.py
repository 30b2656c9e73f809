"""Processes are killed, frozen and stopped; a generation ends once, with one attempt's text."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.embedded import EmbeddedServer
from broker.events import Cancelled, Completed, Delta, Event, Failed, Reset, Started
from tests.support.sse_client import (
    SSE,
    Ending,
    Frame,
    Reader,
    events_path,
    follow,
    open_stream,
    read,
    request,
)
from tests.support.stack import LEASE_SECONDS, ONE_BY_ONE, Process, Stack, eventually
from worker.providers.sim import sim_text

#: A take-over should take the lease and 2 s at most, which `bench.recovery` measures. Here it must happen, however
#: loaded the machine is.
TAKE_OVER_SECONDS = LEASE_SECONDS + 20

#: How long a cancel may take where it is not what a test measures; `bench.recovery` does.
CANCEL_SECONDS = 20.0

#: A lease that a worker which lives renews in time, however little of the machine it is given.
PATIENT_SECONDS = 6
PATIENT = {"LEGATO_LEASE_SECONDS": str(PATIENT_SECONDS)}

#: A cancel takes about a second, which `bench.recovery` measures; here it must come, and not by way of a time-out.
CANCEL_SECONDS = 15

Entries = list[tuple[str, Event]]


def stalls(at_token: int, *, attempt: int | None = 1) -> dict[str, object]:
    """A fault after which an attempt stands still: it cannot end before somebody has ended its worker."""
    return {"at_token": at_token, "kind": "stall"} | ({} if attempt is None else {"attempt": attempt})


@pytest.fixture(scope="module")
def deployment(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("takeover"), apis=2, workers=2) as running:
        yield running


@pytest.fixture
def stack(deployment: Stack) -> Iterator[Stack]:
    """Two APIs and two workers; what a test ended is replaced after it."""
    yield deployment
    for process in [*deployment.workers, *deployment.apis]:
        if not process.alive:
            deployment.remove(process)
        else:
            process.resume()
    while len(deployment.workers) < 2:
        deployment.add_worker()
    while len(deployment.apis) < 2:
        deployment.add_api()


class Viewer:
    """Reads one generation in a thread, over one connection, and notes when each frame came."""

    def __init__(self, url: str, generation: str) -> None:
        self.reader = Reader()
        self.frames: list[tuple[float, Frame]] = []
        self.ending: Ending | None = None
        self._stream = open_stream(url, generation)
        self._pool = ThreadPoolExecutor(1)
        self._reading: Future[None] = self._pool.submit(self._read)

    def result(self, seconds: float = 60.0) -> Reader:
        """Its reader, once the body is over."""
        self._reading.result(seconds)
        return self.reader

    def close(self) -> None:
        self._pool.shutdown()
        self._stream.close()

    def _read(self) -> None:
        for frame in self._stream.frames():
            self.reader.take(frame)
            self.frames.append((time.monotonic(), frame))
        self.ending = self._stream.ending


@contextmanager
def viewing(stack: Stack, generation: str) -> Iterator[list[Viewer]]:
    """A viewer at each API."""
    viewers = [Viewer(url, generation) for url in stack.urls]
    try:
        yield viewers
    finally:
        for viewer in viewers:
            viewer.close()


def seq_of(reader: Reader) -> int:
    """How far it has read. A frame may stand for many events, so neither frames nor ids count that."""
    return int((reader.cursor or "0-0").split("-")[0])


def text_of(entries: Entries) -> str:
    """What the log shows: the text since the last reset."""
    text = ""
    for _, event in entries:
        if isinstance(event, Reset):
            text = ""
        elif isinstance(event, Delta):
            text += event.text
    return text


def check_log(entries: Entries) -> list[int]:
    """Dense, epochs never fall, each begins with `started`, `reset` or the end, one terminal at the end. Its epochs."""
    seqs, epochs = zip(*((int(part) for part in place.split("-")) for place, _ in entries), strict=True)
    assert list(seqs) == list(range(1, len(entries) + 1))
    assert list(epochs) == sorted(epochs)
    ends = [number for number, (_, event) in enumerate(entries) if isinstance(event, Completed | Failed | Cancelled)]
    assert ends == [len(entries) - 1]
    for number, (_, event) in enumerate(entries):
        if number == 0 or epochs[number] != epochs[number - 1]:
            assert isinstance(event, Started | Reset | Completed | Failed | Cancelled), (number, event)
    return sorted(set(epochs))


def end_of(stack: Stack, generation: str) -> Event:
    return stack.log(generation)[-1][1]


def test_a_killed_worker_s_generation_starts_over_elsewhere(stack: Stack) -> None:
    """SIGKILL in mid-text: another worker takes over, says `reset`, and the readers that stayed end with one text."""
    tokens = 400
    options = {"tokens": tokens, "seed": 31, "tokens_per_second": 200, "faults": [stalls(150)]}
    generation = stack.submit(options, delivery=ONE_BY_ONE)
    with viewing(stack, generation) as viewers:
        stack.wait_entries(generation, 100)
        stack.holder(generation).kill()
        killed = time.monotonic()
        for viewer in viewers:
            reader = viewer.result()
            assert reader.text == sim_text(tokens, 31)
            assert viewer.ending is Ending.CLEAN
            assert len(reader.opens) == 1, "a reader that stayed attached need not be told anything but the reset"
            assert [name for name in reader.events if name != "usage"] == ["started", "reset", "started", "completed"]
            reset = next(at for at, frame in viewer.frames if frame.event == "reset")
            print(f"taken over after {reset - killed:.2f} s (lease {LEASE_SECONDS:g} s)")
            assert reset - killed < TAKE_OVER_SECONDS
    entries = stack.log(generation)
    assert len(check_log(entries)) == 2
    assert text_of(entries) == sim_text(tokens, 31)
    reset_event = next(event for _, event in entries if isinstance(event, Reset))
    assert (reset_event.attempt, reset_event.reason) == (2, "worker_lost")
    assert stack.get(f"/v1/generations/{generation}").json()["attempt"] == 2


def test_a_reader_that_was_away_over_a_take_over_ends_with_one_text(stack: Stack) -> None:
    """Its cursor is of the lost attempt and the log still holds it: the reset is behind it."""
    options = {"tokens": 300, "seed": 32, "tokens_per_second": 200, "faults": [stalls(150)]}
    generation = stack.submit(options, delivery=ONE_BY_ONE)
    reader = Reader()
    with open_stream(stack.urls[0], generation) as stream:
        for frame in stream.frames():
            reader.take(frame)
            if seq_of(reader) >= 60:
                break
    stack.holder(generation).kill()
    stack.wait_status(generation, "completed")
    with open_stream(stack.urls[1], generation, reader.cursor) as stream:
        for frame in stream.frames():
            reader.take(frame)
    assert reader.opens[-1]["verdict"] == "resumed"
    assert reader.text == sim_text(300, 32)


def test_a_worker_that_wakes_after_its_lease_writes_nothing(stack: Stack) -> None:
    """SIGSTOP past the lease, SIGCONT while the new owner writes: not one more event of the old epoch, and one text."""
    generation = stack.submit({"tokens": 9_000, "seed": 33, "tokens_per_second": 150})
    stack.wait_entries(generation, 80)
    sleeper = stack.holder(generation)
    sleeper.pause()
    paused_at = time.monotonic()
    old = stack.log(generation)
    old_epoch = int(old[-1][0].split("-")[1])
    eventually(
        lambda: int(stack.log(generation)[-1][0].split("-")[1]) > old_epoch, "another epoch", seconds=TAKE_OVER_SECONDS
    )
    print(f"taken over {time.monotonic() - paused_at:.2f} s after SIGSTOP")
    inherited = [entry for entry in stack.log(generation) if entry[0].endswith(f"-{old_epoch}")]
    stack.wait_entries(generation, len(inherited) + 50)
    sleeper.resume()
    eventually(lambda: any(e["generation"] == generation for e in sleeper.events("generation_left")), "it lets go")
    left = [line for line in sleeper.events("generation_left") if line["generation"] == generation]
    assert left[-1]["outcome"] == "lost"
    stack.wait_entries(generation, len(stack.log(generation)) + 50)
    stack.post(f"/v1/generations/{generation}/cancel")
    stack.wait_status(generation, "cancelled")
    entries = stack.log(generation)
    assert len(check_log(entries)) == 2
    assert [entry for entry in entries if entry[0].endswith(f"-{old_epoch}")] == inherited
    assert inherited[: len(old)] == old
    assert sim_text(9_000, 33).startswith(text_of(entries))
    assert len(text_of(entries)) > 500


def test_a_worker_that_wakes_after_the_end_writes_nothing(stack: Stack) -> None:
    """It sleeps until the new owner has completed the generation."""
    options = {"tokens": 450, "seed": 34, "tokens_per_second": 150, "faults": [stalls(200)]}
    generation = stack.submit(options, delivery=ONE_BY_ONE)
    stack.wait_entries(generation, 30)
    sleeper = stack.holder(generation)
    sleeper.pause()
    stack.wait_status(generation, "completed")
    entries = stack.log(generation)
    sleeper.resume()
    eventually(lambda: any(e["generation"] == generation for e in sleeper.events("generation_left")), "it lets go")
    assert stack.log(generation) == entries
    assert text_of(entries) == sim_text(450, 34)
    assert len(check_log(entries)) == 2, "it was not taken over"


def test_a_worker_that_wakes_within_its_lease_goes_on(redis_url: str, tmp_path: Path) -> None:
    """A pause shorter than the lease costs nothing."""
    with Stack.start(redis_url, tmp_path, workers=2, environment=PATIENT) as stack:
        generation = stack.submit({"tokens": 150, "seed": 35, "tokens_per_second": 100}, delivery=ONE_BY_ONE)
        stack.wait_entries(generation, 30)
        sleeper = stack.holder(generation)
        sleeper.pause()
        time.sleep(PATIENT_SECONDS / 4)
        sleeper.resume()
        stack.wait_status(generation, "completed")
        entries = stack.log(generation)
        assert len(check_log(entries)) == 1
        assert text_of(entries) == sim_text(150, 35)


def test_recovery_fail_ends_instead_of_starting_over(stack: Stack) -> None:
    """Text was shown and the job asked not to start over: `failed`, `worker_lost`; what was shown stays."""
    options = {"tokens": 400, "seed": 36, "tokens_per_second": 150, "faults": [stalls(200)]}
    generation = stack.submit(options, recovery="fail", delivery=ONE_BY_ONE)
    stack.wait_entries(generation, 50)
    stack.holder(generation).kill()
    stack.wait_status(generation, "failed")
    entries = stack.log(generation)
    check_log(entries)
    end = entries[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial) == ("worker_lost", True)
    assert sim_text(400, 36).startswith(text_of(entries))
    assert len(text_of(entries)) > 100
    shown = stack.get(f"/v1/generations/{generation}").json()
    assert shown["error"]["code"] == "worker_lost"
    assert shown["text"] == text_of(entries)


def test_recovery_fail_starts_over_where_nothing_was_shown(stack: Stack) -> None:
    """The worker was lost before the first delta: nobody saw anything that would have to be taken back."""
    generation = stack.submit({"tokens": 20, "seed": 37, "faults": [stalls(0)]}, recovery="fail")
    stack.wait_entries(generation, 1)
    stack.holder(generation).kill()
    stack.wait_status(generation, "completed")
    entries = stack.log(generation)
    assert not any(isinstance(event, Reset) for _, event in entries)
    assert text_of(entries) == sim_text(20, 37)


def test_a_generation_that_loses_every_worker_fails(stack: Stack) -> None:
    """`max_attempts` workers killed: `failed`, `worker_lost`, not a loop for ever."""
    options = {"tokens": 2_000, "seed": 38, "tokens_per_second": 100, "faults": [stalls(60, attempt=None)]}
    generation = stack.submit(options, max_attempts=2, delivery=ONE_BY_ONE)
    entries = 0
    for attempt in (1, 2):
        stack.wait_entries(generation, entries + 20)
        holder = stack.holder(generation)
        stack.add_worker()
        holder.kill()
        entries = len(stack.log(generation))
        print(f"attempt {attempt} was lost at {entries} entries")
        stack.remove(holder)
    stack.wait_status(generation, "failed")
    log = stack.log(generation)
    check_log(log)
    end = log[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial) == ("worker_lost", True)
    assert sum(isinstance(event, Started) for _, event in log) == 2


@pytest.mark.parametrize("accept", ["*/*", SSE])
def test_a_queued_job_that_is_cancelled_never_starts(redis_url: str, tmp_path: Path, accept: str) -> None:
    """With no worker it ends at once, on the cancel's own answer; a worker that comes later leaves it alone."""
    with Stack.start(redis_url, tmp_path, apis=1, workers=0) as stack:
        generation = stack.submit({"tokens": 5})
        with open_stream(stack.urls[0], generation, accept=accept) as stream:
            frames = stream.frames()
            assert next(frames).data["status"] == "queued"
            answer = stack.post(f"/v1/generations/{generation}/cancel")
            assert (answer.status, answer.json()["status"]) == (202, "cancelled")
            assert [(frame.event, frame.data) for frame in frames] == [("cancelled", {"reason": "user"})]
            assert stream.ending is Ending.CLEAN
        assert stack.status(generation) == "cancelled"
        assert stack.post(f"/v1/generations/{generation}/cancel").status == 200
        stack.add_worker()
        other = stack.submit({"tokens": 5})
        stack.wait_status(other, "completed")
        assert [type(event) for _, event in stack.log(generation)] == [Cancelled]


def test_cancel_stops_a_running_generation_and_keeps_its_text(stack: Stack) -> None:
    """202, then `cancelled` within about a second; the text so far stays; asked again it is 200."""
    generation = stack.submit({"tokens": 3_000, "seed": 41, "tokens_per_second": 100})
    with viewing(stack, generation) as viewers:
        stack.wait_entries(generation, 40)
        asked = time.monotonic()
        answer = stack.post(f"/v1/generations/{generation}/cancel")
        assert answer.status == 202
        assert answer.json()["status"] in ("cancelling", "cancelled")
        again = request(stack.urls[1], "POST", f"/v1/generations/{generation}/cancel", body=b"")
        assert again.status == 200
        readers = [viewer.result() for viewer in viewers]
        told = max(viewer.frames[-1][0] for viewer in viewers) - asked
        print(f"cancelled after {told:.2f} s")
        assert told < CANCEL_SECONDS
        for viewer, reader in zip(viewers, readers, strict=True):
            assert viewer.ending is Ending.CLEAN
            assert reader.ended is not None
            assert (reader.ended.event, reader.ended.data["reason"]) == ("cancelled", "user")
            assert sim_text(3_000, 41).startswith(reader.text)
            assert len(reader.text) > 100
    assert stack.post(f"/v1/generations/{generation}/cancel").status == 200
    entries = stack.log(generation)
    check_log(entries)
    assert stack.status(generation) == "cancelled"
    time.sleep(0.5)
    assert stack.log(generation) == entries


def test_a_cancel_that_was_accepted_is_how_it_ends(stack: Stack) -> None:
    """Cancels that race with the end, from both APIs at once: after a 202 it is `cancelled`, whatever the worker wrote
    last; a 200 that met the end has changed nothing."""
    draw = random.Random(42)

    def race(number: int) -> tuple[str, set[int], str]:
        tokens = draw.randint(1, 60)
        pace = draw.choice([200, 20])  # some are long enough on any machine, and some short enough
        generation = stack.submit({"tokens": tokens, "seed": number, "tokens_per_second": pace})
        time.sleep(draw.uniform(0, 0.4))
        path = f"/v1/generations/{generation}/cancel"
        with ThreadPoolExecutor(2) as pair:
            statuses = set(pair.map(lambda url: request(url, "POST", path, body=b"").status, stack.urls))
        ended = stack.wait_status(generation, "completed", "cancelled")
        return generation, statuses, ended

    with ThreadPoolExecutor(6) as pool:
        races = list(pool.map(race, range(60)))
    for number, (generation, statuses, ended) in enumerate(races):
        assert statuses <= {200, 202}
        assert ended == ("cancelled" if 202 in statuses else "completed"), (generation, statuses)
        entries = stack.log(generation)
        check_log(entries)
        text = sim_text(60, number)
        assert text.startswith(text_of(entries))
    print(f"{sum(ended == 'cancelled' for _, _, ended in races)} of {len(races)} were cancelled in time")
    assert {ended for _, _, ended in races} == {"completed", "cancelled"}, "the race was never close"


def test_many_jobs_outlive_the_worker_they_ran_on(redis_url: str, tmp_path: Path) -> None:
    """Forty jobs for two workers with room for ten each; one is killed with its hands full: every job ends once, with
    its own text, those that waited too."""
    environment = {"LEGATO_WORKER_CONCURRENCY": "10"}
    with Stack.start(redis_url, tmp_path, workers=2, environment=environment) as stack:
        generations = [
            stack.submit(
                {"tokens": 240, "seed": seed, "tokens_per_second": 80}, priority=("batch", "interactive")[seed % 2]
            )
            for seed in range(40)
        ]
        stack.wait_entries(generations[0], 20)
        stack.holder(generations[0]).kill()
        killed = time.monotonic()
        for generation in generations:
            stack.wait_status(generation, "completed", seconds=60)
        print(f"all forty had ended {time.monotonic() - killed:.1f} s after the kill")
        resets = 0
        for seed, generation in enumerate(generations):
            entries = stack.log(generation)
            check_log(entries)
            assert text_of(entries) == sim_text(240, seed)
            resets += any(isinstance(event, Reset) for _, event in entries)
        assert 1 <= resets <= 10


def test_cancel_reaches_a_provider_that_is_silent(stack: Stack) -> None:
    """No append brings the news: the worker has to ask."""
    generation = stack.submit({"tokens": 50, "first_token_ms": 60_000})
    stack.wait_entries(generation, 1)
    asked = time.monotonic()
    assert stack.post(f"/v1/generations/{generation}/cancel").status == 202
    stack.wait_status(generation, "cancelled")
    print(f"cancelled after {time.monotonic() - asked:.2f} s of a silent provider")
    assert time.monotonic() - asked < CANCEL_SECONDS
    check_log(stack.log(generation))


def test_cancel_between_two_attempts_ends_at_once(stack: Stack) -> None:
    """No lease is live while a retry waits: the cancel itself writes the end."""
    faults = [{"at_token": 3, "kind": "rate_limit"}]
    generation = stack.submit({"tokens": 9, "faults": faults}, max_attempts=20)
    stack.wait_status(generation, "retrying")
    answer = stack.post(f"/v1/generations/{generation}/cancel")
    assert answer.status == 202
    stack.wait_status(generation, "cancelled")
    entries = stack.log(generation)
    check_log(entries)
    time.sleep(1.5)
    assert stack.log(generation) == entries


def test_cancel_ends_a_generation_whose_worker_is_frozen(redis_url: str, tmp_path: Path) -> None:
    """The worker does not answer, and its lease lives for long yet: the API that took the cancel writes the end; the
    worker adds nothing when it wakes."""
    with Stack.start(redis_url, tmp_path, workers=1, environment={"LEGATO_LEASE_SECONDS": "60"}) as stack:
        generation = stack.submit({"tokens": 3_000, "seed": 43, "tokens_per_second": 100})
        stack.wait_entries(generation, 40)
        sleeper = stack.holder(generation)
        sleeper.pause()
        asked = time.monotonic()
        with viewing(stack, generation) as viewers:
            assert stack.post(f"/v1/generations/{generation}/cancel").status == 202
            assert stack.status(generation) == "cancelling"
            assert stack.post(f"/v1/generations/{generation}/cancel").status == 200
            reader = viewers[0].result()
            print(f"cancelled after {time.monotonic() - asked:.2f} s for a frozen worker")
            assert time.monotonic() - asked < CANCEL_SECONDS
            assert reader.ended is not None
            assert reader.ended.event == "cancelled"
        entries = stack.log(generation)
        assert len(check_log(entries)) == 2, "an end that is written without a lease has an epoch of its own"
        sleeper.resume()
        eventually(lambda: any(e["generation"] == generation for e in sleeper.events("generation_left")), "it lets go")
        assert stack.log(generation) == entries


def test_a_cancel_outlives_the_worker_and_the_api_that_took_it(stack: Stack) -> None:
    """202 means that `cancelled` will be the end, whoever dies."""
    generation = stack.submit({"tokens": 3_000, "seed": 44, "tokens_per_second": 100})
    stack.wait_entries(generation, 40)
    holder = stack.holder(generation)
    holder.pause()
    api = stack.apis[0]
    assert request(api.url, "POST", f"/v1/generations/{generation}/cancel", body=b"").status == 202
    api.kill()
    holder.kill()
    stack.remove(api)
    stack.wait_status(generation, "cancelled")
    check_log(stack.log(generation))


def test_delete_while_running_ends_every_view_and_erases_everything(stack: Stack) -> None:
    """Attached readers get `cancelled`, `deleted`, without an id, and a clean end; then the id is gone for good."""
    generation = stack.submit({"tokens": 3_000, "seed": 45, "tokens_per_second": 100})
    with viewing(stack, generation) as viewers:
        stack.wait_entries(generation, 40)
        holder = stack.holder(generation)
        assert request(stack.urls[1], "DELETE", f"/v1/generations/{generation}").status == 204
        for viewer in viewers:
            reader = viewer.result()
            assert viewer.ending is Ending.CLEAN
            assert reader.ended is not None
            assert (reader.ended.event, reader.ended.data) == ("cancelled", {"reason": "deleted"})
            assert reader.ended.id is None
    eventually(lambda: any(e["generation"] == generation for e in holder.events("generation_left")), "the worker stops")
    assert stack.log(generation) == []
    one = f"/v1/generations/{generation}"
    for url in stack.urls:
        for method, path, headers in (
            ("GET", one, {}),
            ("GET", one + "/events", {"Accept": SSE}),
            ("GET", one + "/events", {"Accept": SSE, "Last-Event-ID": "3-1"}),
            ("POST", one + "/cancel", {}),
            ("DELETE", one, {}),
        ):
            answer = request(url, method, path, headers=headers, body=b"" if method == "POST" else None)
            assert answer.status == 410, (method, path)
            assert answer.headers["content-type"] == "application/problem+json"
        listed = json.loads(request(url, "GET", "/v1/generations?limit=100").body)["data"]
        assert generation not in {item["id"] for item in listed}


def test_delete_of_an_ended_generation_erases_it(stack: Stack) -> None:
    generation = stack.submit({"tokens": 5})
    stack.wait_status(generation, "completed")
    assert request(stack.urls[0], "DELETE", f"/v1/generations/{generation}").status == 204
    assert request(stack.urls[1], "GET", events_path(generation), headers={"Accept": SSE}).status == 410
    assert stack.log(generation) == []


def test_a_worker_that_is_told_to_stop_hands_over(stack: Stack) -> None:
    """SIGTERM: it lets go of what it cannot finish, ends with status 0, and the next one starts over at once. A
    hand-over is not an attempt."""
    generation = stack.submit({"tokens": 900, "seed": 46, "tokens_per_second": 120})
    with viewing(stack, generation) as viewers:
        stack.wait_entries(generation, 60)
        holder = stack.holder(generation)
        holder.terminate()
        told = time.monotonic()
        assert holder.wait() == 0
        print(f"the worker was gone {time.monotonic() - told:.2f} s after SIGTERM")
        for viewer in viewers:
            reader = viewer.result()
            assert reader.text == sim_text(900, 46)
            reset = next(at for at, frame in viewer.frames if frame.event == "reset")
            assert reset - told < TAKE_OVER_SECONDS
    entries = stack.log(generation)
    assert len(check_log(entries)) == 2
    assert stack.get(f"/v1/generations/{generation}").json()["attempt"] == 1


def test_a_worker_that_is_told_to_stop_finishes_what_is_nearly_done(redis_url: str, tmp_path: Path) -> None:
    """Within the time to drain a generation ends where it is, without a reset."""
    with Stack.start(redis_url, tmp_path, workers=1, environment={"LEGATO_DRAIN_SECONDS": "60"}) as stack:
        generation = stack.submit({"tokens": 300, "seed": 47, "tokens_per_second": 100})
        stack.wait_entries(generation, 10)
        stack.workers[0].terminate()
        assert stack.workers[0].wait() == 0
        entries = stack.log(generation)
        assert len(check_log(entries)) == 1
        assert text_of(entries) == sim_text(300, 47)


def test_an_api_that_is_told_to_stop_loses_no_reader_anything(stack: Stack) -> None:
    """SIGTERM in mid-stream: bodies end incompletely at a frame, so every client comes back; the other process goes on
    from the cursor."""
    tokens = 1_000
    generation = stack.submit({"tokens": tokens, "seed": 48, "tokens_per_second": 150})
    leaving, staying = stack.apis
    readers = [Reader() for _ in range(8)]
    first = threading.Barrier(len(readers) + 1)

    def view(reader: Reader) -> None:
        with open_stream(leaving.url, generation) as stream:
            frames = stream.frames()
            reader.take(next(frames))
            first.wait(30)
            for frame in frames:
                reader.take(frame)
            assert stream.ending is Ending.INCOMPLETE
            assert not stream.parser.mid_frame
        assert reader.ended is None
        with open_stream(staying.url, generation, reader.cursor) as stream:
            for frame in stream.frames():
                reader.take(frame)
            assert stream.ending is Ending.CLEAN

    with ThreadPoolExecutor(len(readers)) as pool:
        viewing_ = [pool.submit(view, reader) for reader in readers]
        first.wait(30)
        stack.wait_entries(generation, 60)
        leaving.terminate()
        told = time.monotonic()
        assert leaving.wait() == 0
        print(f"the API was gone {time.monotonic() - told:.2f} s after SIGTERM")
        for each in viewing_:
            each.result(60)
    for reader in readers:
        assert reader.text == sim_text(tokens, 48)
        assert [each["verdict"] for each in reader.opens] == ["start", "resumed"]


def test_an_api_that_is_told_to_stop_does_not_wait_for_a_reader_that_takes_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    """It ends in good order, in time, and without an error in its log."""
    with Stack.start(redis_url, tmp_path) as stack:
        generation = stack.submit({"tokens": 1_000_000, "chunk_chars": 16_000})
        stack.wait_status(generation, "completed", seconds=60)
        with open_stream(stack.urls[0], generation, receive_bytes=4_096):
            time.sleep(0.5)
            stack.apis[0].terminate()
            told = time.monotonic()
            assert stack.apis[0].wait() == 0
            print(f"the API was gone {time.monotonic() - told:.2f} s after SIGTERM")


def test_a_killed_api_loses_nothing(stack: Stack) -> None:
    """SIGKILL: nothing of a generation is in an API process."""
    generation = stack.submit({"tokens": 800, "seed": 49, "tokens_per_second": 150})
    victim = stack.apis[0]
    with ThreadPoolExecutor(4) as pool:
        urls = stack.urls
        following = [pool.submit(follow, urls, generation) for _ in range(4)]
        stack.wait_entries(generation, 80)
        victim.kill()
        stack.remove(victim)
        for each in following:
            reader, connections = each.result(60)
            assert reader.text == sim_text(800, 49)
            assert connections > 1
    assert len(check_log(stack.log(generation))) == 1


def _crash(server: EmbeddedServer, away_seconds: float) -> None:
    server.kill()
    time.sleep(away_seconds)
    server.restart()


@pytest.mark.timeout(180)
def test_streams_outlive_a_crash_of_the_store(tmp_path: Path) -> None:
    """The store is killed and comes back with its data: worker and readers wait, and go on where they were."""
    with (
        EmbeddedServer.start(tmp_path / "data") as server,
        Stack.start(server.url, tmp_path, apis=2, workers=2, environment=PATIENT) as stack,
    ):
        generations = [stack.submit({"tokens": 900, "seed": seed, "tokens_per_second": 150}) for seed in (51, 52, 53)]
        with ThreadPoolExecutor(6) as pool:
            stack.wait_entries(generations[0], 60)
            following = [
                (seed, pool.submit(follow, urls, generation, seconds=60))
                for seed, generation in zip((51, 52, 53), generations, strict=True)
                for urls in (stack.urls, stack.urls[::-1])
            ]
            time.sleep(0.5)
            _crash(server, 0.3)
            time.sleep(1)
            _crash(server, PATIENT_SECONDS + 1)
            for seed, each in following:
                reader, connections = each.result(90)
                print(f"seed {seed}: {connections} connections, {reader.events}")
                assert reader.text == sim_text(900, seed)
        for generation, seed in zip(generations, (51, 52, 53), strict=True):
            entries = stack.log(generation)
            check_log(entries)
            assert text_of(entries) == sim_text(900, seed)
            assert not any(isinstance(event, Reset) for _, event in entries), "nobody lost a living worker's work"


@pytest.mark.timeout(180)
def test_a_worker_that_is_replaced_while_the_store_is_away_loses_nothing(tmp_path: Path) -> None:
    """Store and worker both die; the store comes back on the same data, another worker comes up: a reset, one text."""
    with (
        EmbeddedServer.start(tmp_path / "data") as server,
        Stack.start(server.url, tmp_path, apis=2, workers=1) as stack,
    ):
        generation = stack.submit({"tokens": 300, "seed": 54, "tokens_per_second": 150}, delivery=ONE_BY_ONE)
        queued = stack.submit({"tokens": 50, "seed": 55, "first_token_ms": 2_000})
        with ThreadPoolExecutor(2) as pool:
            following = [pool.submit(follow, stack.urls, each, seconds=90) for each in (generation, queued)]
            stack.wait_entries(generation, 60)
            server.kill()
            stack.remove(_killed(stack.workers[0]))
            time.sleep(1)
            stack.add_worker()  # it finds no store at first
            time.sleep(1)
            server.restart()
            back = time.monotonic()
            texts = [each.result(90)[0].text for each in following]
            print(f"whole {time.monotonic() - back:.1f} s after the store was back")
        assert texts == [sim_text(300, 54), sim_text(50, 55)]
        check_log(stack.log(generation))
        assert text_of(stack.log(generation)) == sim_text(300, 54)


def _killed(process: Process) -> Process:
    process.kill()
    return process


def test_one_process_may_be_all(tmp_path: Path) -> None:
    """`legato dev`: API, worker and its own store; stopped and started on the same data it still has the text."""
    with Stack.start("", tmp_path, apis=0, workers=0) as stack:
        stack.add_dev(tmp_path / "data")
        generation = stack.submit({"tokens": 30, "seed": 61})
        for _ in range(2):
            reader, stream = read(stack.urls[0], generation)
            assert reader.text == sim_text(30, 61)
            assert stream.ending is Ending.CLEAN
            assert stack.apis[0].stop() == 0
            stack.remove(stack.apis[0])
            stack.add_dev(tmp_path / "data")


def test_one_process_that_is_killed_goes_on_where_it_was_started_again(tmp_path: Path) -> None:
    """`legato dev` killed in mid-text, its store with it or not: started on the same data, it starts the text over."""
    with Stack.start("", tmp_path, apis=0, workers=0) as stack:
        stack.add_dev(tmp_path / "data")
        options = {"tokens": 200, "seed": 62, "tokens_per_second": 100, "faults": [stalls(120)]}
        generation = stack.submit(options)
        reader = Reader()
        with open_stream(stack.urls[0], generation) as stream:
            for frame in stream.frames():
                reader.take(frame)
                if seq_of(reader) >= 40 and stack.apis[0].alive:
                    stack.apis[0].kill()
            assert stream.ending is not Ending.CLEAN
        stack.remove(stack.apis[0])
        stack.add_dev(tmp_path / "data")
        with open_stream(stack.urls[0], generation, reader.cursor) as stream:
            for frame in stream.frames():
                reader.take(frame)
        assert reader.text == sim_text(200, 62)
        assert "reset" in reader.events

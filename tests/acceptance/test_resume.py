"""Whoever comes back with a cursor gets exactly the rest: at every position, over every kind of cut, on any API
process, in a log that grows and in one that has ended."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis

from broker.events import Delta
from broker.keys import Keys
from tests.support.raw_reader import read_whole
from tests.support.sse_client import (
    NDJSON,
    SSE,
    Ending,
    NdjsonParser,
    Reader,
    SseParser,
    events_path,
    follow,
    open_stream,
    read,
    request,
)
from tests.support.stack import ONE_BY_ONE, Stack, eventually
from worker.providers.sim import sim_text

DELTAS = 2_000
#: Text of one to four bytes a character, so that a cut is often within one.
MIXED = "".join(
    random.Random(7).choice(["a", "e", " ", "ü", "é", "東", "京", "λ", "🚀", "👩‍💻", "\n", '"', "\\", "</"])
    for _ in range(900)
)

Text = str
#: Positions in order, and the text that a reader at each has seen.
Seen = dict[str, str]


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("resume"), apis=2, workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def finished(stack: Stack) -> str:
    """A generation of 2,000 deltas that has ended, and is sealed."""
    generation = stack.submit({"tokens": DELTAS, "seed": 3}, delivery=ONE_BY_ONE)
    stack.wait_sealed(generation)
    return generation


def seen_at(stack: Stack, generation: str) -> Seen:
    """What a reader at each position of the log has seen, `0-0` included."""
    seen, text = {"0-0": ""}, ""
    for position, event in stack.log(generation):
        text += event.text if isinstance(event, Delta) else ""
        seen[position] = text
    return seen


def test_the_log_is_dense(stack: Stack, finished: str) -> None:
    """Sequence numbers count from 1 without holes, one epoch for one claim, and the text is the provider's."""
    seen = seen_at(stack, finished)
    assert list(seen) == ["0-0", *(f"{seq}-1" for seq in range(1, len(seen)))]
    assert len(seen) > DELTAS
    assert list(seen.values())[-1] == sim_text(DELTAS, 3)


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_resume_from_every_position_of_an_ended_log_gives_exactly_the_rest(
    stack: Stack, finished: str, accept: str
) -> None:
    """At each of more than 2,000 positions: the events behind it, joined at most, then the end; at the end 204."""
    seen = seen_at(stack, finished)
    positions = list(seen)
    whole = seen[positions[-1]]
    chosen = positions if accept == SSE else positions[:: len(positions) // 200] + positions[-5:]

    def resume(number: int, position: str) -> None:
        reader, stream = read(stack.urls[number % 2], finished, position, accept=accept)
        if position == positions[-1]:
            assert (stream.status, stream.ending, reader.events) == (204, Ending.CLEAN, [])
            assert stream.headers["content-type"].startswith(accept)
            return
        assert stream.status == 200
        assert reader.opens[0]["verdict"] == ("start" if position == "0-0" else "resumed")
        assert reader.opens[0]["from"] == position
        assert seen[position] + reader.text == whole, position
        assert reader.cursor == positions[-1]
        assert reader.ended is not None
        assert stream.ending is Ending.CLEAN
        # Every id names an entry, and the text up to it is the text of the entries up to it.
        assert set(reader.ids) <= set(positions[positions.index(position) + 1 :])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(resume, range(len(chosen)), chosen))


def test_every_id_on_the_way_stands_for_the_text_up_to_it(stack: Stack, finished: str) -> None:
    """A joined frame carries the id of its last delta: whoever stops there has neither hole nor double."""
    seen = seen_at(stack, finished)
    for cursor in ("0-0", "2-1", "77-1", f"{DELTAS // 2}-1"):
        reader = Reader()
        with open_stream(stack.urls[0], finished, cursor) as stream:
            for frame in stream.frames():
                reader.take(frame)
                if frame.id is not None:
                    assert seen[cursor] + reader.text == seen[frame.id], frame.id


@pytest.mark.timeout(600)
def test_resume_from_every_position_of_a_running_log_gives_exactly_the_rest(redis_url: str, tmp_path: Path) -> None:
    """At each of 2,000 positions, over both processes, while more is still to come. The worker stands still until
    everybody of a batch is attached, so that each reads a replay and then what comes; batches, for a process may not
    have thousands of connections everywhere."""
    tokens, batch = DELTAS + 150, 500
    whole = sim_text(tokens, 12)
    with Stack.start(redis_url, tmp_path, apis=2, environment={"LEGATO_LEASE_SECONDS": "120"}) as stack:
        for start in range(0, DELTAS, batch):
            generation = stopped_behind(stack, DELTAS, {"tokens": tokens, "seed": 12, "tokens_per_second": 500})
            seen = seen_at(stack, generation)
            positions = list(seen)[start : start + batch]
            texts = asyncio.run(resume_all(stack, generation, positions, stack.workers[0].resume))
            for position, text in zip(positions, texts, strict=True):
                assert seen[position] + text == whole, position


def stopped_behind(stack: Stack, entries: int, options: Mapping[str, object]) -> str:
    """A generation whose log has more than so many entries and no end; its worker stands still."""
    worker = stack.workers[0]
    with redis.Redis.from_url(stack.url, protocol=2) as client:
        while True:  # a machine that is busy may see it end first
            generation = stack.submit(options, delivery=ONE_BY_ONE)
            log = Keys(stack.prefix).log(generation)
            while client.xlen(log) <= entries:
                time.sleep(0.001)
            worker.pause()
            if stack.status(generation) == "running":
                return generation
            worker.resume()


async def resume_all(
    stack: Stack, generation: str, positions: list[str], everybody_is_there: Callable[[], None]
) -> list[str]:
    """The rest of the text behind each position, read at once."""
    attached = 0

    def attach() -> None:
        nonlocal attached
        attached += 1

    async def resume(number: int, position: str) -> str:
        port = stack.apis[number % 2].port
        seen = await read_whole("127.0.0.1", port, generation, cursor=position, attached=attach)
        assert [each["verdict"] for each in seen.opens] == ["start" if position == "0-0" else "resumed"]
        return seen.text

    reading = [asyncio.create_task(resume(number, position)) for number, position in enumerate(positions)]
    while attached < len(positions):
        await asyncio.sleep(0.02)
    everybody_is_there()
    return await asyncio.gather(*reading)


@pytest.mark.timeout(180)
def test_resume_from_every_stage_of_a_running_log_gives_exactly_the_rest(stack: Stack) -> None:
    """Readers attach at positions all along a growing log, those of this very moment too, and read to the end."""
    rate, tokens = 250, 2_500
    generation = stack.submit({"tokens": tokens, "seed": 11, "tokens_per_second": rate})
    leader_ids: list[str] = []
    over = threading.Event()

    def lead() -> Reader:
        leader = Reader()
        with open_stream(stack.urls[0], generation) as stream:
            for frame in stream.frames():
                leader.take(frame)
                if frame.id is not None:
                    leader_ids.append(frame.id)
        over.set()
        return leader

    def join(number: int, position: str) -> tuple[str, Reader, Ending | None]:
        reader, stream = read(stack.urls[number % 2], generation, position)
        return position, reader, stream.ending

    with ThreadPoolExecutor(200) as pool:
        leading = pool.submit(lead)
        joining = []
        eventually(lambda: len(leader_ids) > 2, "the first deltas")
        draw = random.Random(1)
        while not over.is_set() and len(joining) < 190:
            known = list(leader_ids)
            # The newest position, one not long ago and any: the border between log and live is at the first two.
            for position in {known[-1], known[-min(len(known), 5)], draw.choice(known)}:
                joining.append(pool.submit(join, len(joining), position))
            time.sleep(0.07)
        results = [each.result() for each in joining]
        leader = leading.result()

    seen = seen_at(stack, generation)
    whole = sim_text(tokens, 11)
    assert leader.text == whole
    assert len(results) > 100
    for position, reader, ending in results:
        if position == list(seen)[-1]:
            continue
        assert seen[position] + reader.text == whole, position
        assert (reader.opens[0]["verdict"], ending) == ("resumed", Ending.CLEAN)


@pytest.mark.timeout(240)
def test_two_hundred_readings_with_random_cuts_all_end_with_the_same_text(stack: Stack) -> None:
    """Cut anywhere (in the head, in a frame, in a character), by FIN or RST, coming back to the other API process each
    time, over both transports: nothing twice (the reader fails on an id that does not rise), nothing missing."""
    runs = 200
    shapes = [
        {"text": MIXED, "chunk_chars": 1, "tokens_per_second": 400},
        {"text": MIXED, "chunk_chars": 7, "tokens_per_second": 60},
        {"text": MIXED, "chunk_chars": 3},
        {"text": MIXED, "chunk_chars": 2, "tokens_per_second": 300, "first_token_ms": 300},
    ]
    connections = [0]

    def run(seed: int) -> None:
        draw = random.Random(seed)
        generation = generations[seed % len(generations)]
        urls = stack.urls if seed % 2 else stack.urls[::-1]
        # Mostly short ones; the last connections are left alone, so that every reading ends.
        cuts: Iterator[int | None] = iter(
            [draw.choice([draw.randint(1, 700), draw.randint(500, 3_000), draw.randint(1, 5_000)]) for _ in range(12)]
        )
        accept = NDJSON if seed % 5 == 0 else SSE
        reader, count = follow(urls, generation, cuts=cuts, accept=accept, reset=bool(seed % 3), pause_seconds=0)
        assert reader.text == MIXED, f"seed {seed}"
        assert reader.ended is not None
        assert reader.ended.event == "completed"
        assert reader.ended.data["characters"] == len(MIXED)
        connections[0] += count

    since = time.monotonic()
    for batch in range(0, runs, 50):
        generations = [stack.submit(dict(shape)) for shape in shapes]
        with ThreadPoolExecutor(25) as pool:
            list(pool.map(run, range(batch, batch + 50)))
    print(f"{runs} readings over {connections[0]} connections in {time.monotonic() - since:.1f} s")
    assert connections[0] > runs * 5


def test_one_connection_serves_one_reading_after_the_other(stack: Stack, finished: str) -> None:
    """A clean end leaves the connection usable: no reading is cut by the one before it."""
    whole = sim_text(DELTAS, 3)
    seen = seen_at(stack, finished)
    draw = random.Random(8)
    with httpx.Client(base_url=stack.urls[0], timeout=30) as client:
        for number in range(150):
            position = draw.choice(list(seen)[:-1])
            accept = (SSE, NDJSON)[number % 2]
            answer = client.get(events_path(finished), headers={"Accept": accept, "Last-Event-ID": position})
            assert answer.status_code == 200
            parser = SseParser() if accept == SSE else NdjsonParser()
            reader = Reader()
            for frame in parser.feed(answer.content):
                reader.take(frame)
            assert seen[position] + reader.text == whole
            assert reader.ended is not None


def test_a_delta_larger_than_an_append_may_be_arrives_whole(stack: Stack) -> None:
    """One delta of a megabyte, between small ones of nobody's."""
    generation = stack.submit({"tokens": 150_000, "seed": 9, "chunk_chars": 10**7})
    for accept in (SSE, NDJSON):
        reader, stream = read(stack.urls[0], generation, accept=accept)
        assert reader.text == sim_text(150_000, 9)
        assert stream.ending is Ending.CLEAN
    assert len([event for _, event in stack.log(generation) if isinstance(event, Delta)]) == 1


def test_a_long_replay_is_a_few_frames(stack: Stack) -> None:
    """Ten thousand deltas are joined for a reader that comes late."""
    tokens = 10_000
    generation = stack.submit({"tokens": tokens, "seed": 5})
    stack.wait_status(generation, "completed")
    reader, _ = read(stack.urls[1], generation)
    deltas = len(reader.ids) - len(reader.events)
    print(f"{tokens} deltas in {deltas} frames")
    assert reader.text == sim_text(tokens, 5)
    assert reader.cursor == stack.log(generation)[-1][0]
    assert deltas <= 40


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("tokens", "chunk_chars"), [(300_000, 40), (1_000_000, 16_000)])
def test_slow_readers_get_everything_and_cost_the_server_little(
    redis_url: str, tmp_path: Path, tokens: int, chunk_chars: int
) -> None:
    """Twelve readers that take a little at a time read megabytes, as many small deltas and as few large ones. What the
    server holds for each must not grow with the length of the log, nor with the size of a delta."""
    readers, allowed_bytes = 12, 3 * 1024 * 1024
    with Stack.start(redis_url, tmp_path, apis=1, workers=1) as stack:
        url = stack.urls[0]
        generation = stack.submit({"tokens": tokens, "seed": 2, "chunk_chars": chunk_chars})
        stack.wait_status(generation, "completed")
        read(url, generation)
        before = stack.apis[0].resident_bytes()
        peak = [before]
        go_on = threading.Event()
        attached = threading.Barrier(readers + 1)

        def crawl(number: int) -> str:
            reader = Reader()
            with open_stream(url, generation, receive_bytes=8_192) as stream:
                stream.read_bytes = 200
                frames = stream.frames()
                reader.take(next(frames))
                attached.wait(60)
                go_on.wait(60)
                for count, frame in enumerate(frames):
                    reader.take(frame)
                    if count == 10 + number:
                        stream.read_bytes = 16_384
                assert stream.ending is Ending.CLEAN
            return reader.text

        with ThreadPoolExecutor(readers) as pool:
            reading = [pool.submit(crawl, number) for number in range(readers)]
            attached.wait(60)
            for _ in range(20):
                time.sleep(0.1)
                peak.append(stack.apis[0].resident_bytes())
            go_on.set()
            while not all(each.done() for each in reading):
                time.sleep(0.05)
                peak.append(stack.apis[0].resident_bytes())
            whole = sim_text(tokens, 2)
            for each in reading:
                assert each.result() == whole
        grown = max(peak) - before
        print(
            f"{len(whole.encode()):,} bytes of text; {readers} slow readers cost {grown / readers / 1024:,.0f} KiB each"
        )
        assert grown < readers * allowed_bytes


@pytest.mark.parametrize("accept", [SSE, NDJSON])
@pytest.mark.parametrize("cursor", ["3-2", "3-7", f"{DELTAS * 9}-1", "1-9999999999999999", "9999999999999999-1"])
def test_a_position_the_log_never_held_is_rewound_to_a_snapshot(
    stack: Stack, finished: str, cursor: str, accept: str
) -> None:
    """Another epoch's, or one beyond the head: the reader replaces what it has, and the terminal event follows."""
    reader = Reader()  # without the cursor: the ids it will see start over
    with open_stream(stack.urls[0], finished, cursor, accept=accept) as stream:
        frames = list(stream.frames())
    for frame in frames:
        reader.take(frame)
    assert [frame.event for frame in frames] == ["open", "snapshot", "completed"]
    assert reader.opens[0]["verdict"] == "rewound"
    assert reader.opens[0]["from"] == cursor
    assert reader.text == sim_text(DELTAS, 3)
    snapshot = frames[1]
    assert {"text", "tool_calls", "attempt", "status"} <= set(snapshot.data)
    positions = list(seen_at(stack, finished))
    assert snapshot.id == positions[-2]
    assert frames[2].id == positions[-1]


def test_a_snapshot_of_a_running_generation_goes_on_live(stack: Stack) -> None:
    """A second device joins with `?from=snapshot`: what was said so far as one frame, then every delta behind it."""
    options = {"tokens": 600, "seed": 21, "tokens_per_second": 100}
    generation = stack.submit(options, delivery=ONE_BY_ONE)
    stack.wait_entries(generation, 50)
    reader, stream = read(stack.urls[1], generation, query="from=snapshot")
    assert reader.opens[0]["verdict"] == "start"
    assert reader.events[0] == "snapshot"
    assert len(reader.ids) > 50
    assert reader.text == sim_text(600, 21)
    assert stream.ending is Ending.CLEAN


def test_a_snapshot_before_anything_was_said_is_empty_and_at_the_beginning(stack: Stack) -> None:
    """Nothing folded yet: position `0-0` and empty text, for a reader must be able to give that id back."""
    generation = stack.submit({"tokens": 5, "seed": 22, "first_token_ms": 5_000})
    with open_stream(stack.urls[0], generation, query="from=snapshot") as stream:
        frames = list(stream.frames())
    snapshot = frames[1]
    assert snapshot.event == "snapshot"
    assert snapshot.data["text"] == ""
    assert snapshot.id in ("0-0", "1-1")
    assert frames[-1].event == "completed"


def test_cursors_are_taken_from_header_then_query_then_snapshot(stack: Stack, finished: str) -> None:
    """The header wins over the query, both win over `from=snapshot`; an empty one is none."""
    url = stack.urls[0]

    def opened(cursor: str | None, query: str) -> tuple[str, str]:
        with open_stream(url, finished, cursor, query=query) as stream:
            frames = stream.frames()
            verdict = next(frames).data
            return verdict["verdict"], verdict["from"] if next(frames).event != "snapshot" else "snapshot"

    assert opened(None, "") == ("start", "0-0")
    assert opened("", "") == ("start", "0-0")
    assert opened("0-0", "") == ("start", "0-0")
    assert opened("7-1", "") == ("resumed", "7-1")
    assert opened(None, "last_event_id=8-1") == ("resumed", "8-1")
    assert opened("7-1", "last_event_id=8-1") == ("resumed", "7-1")
    assert opened("", "last_event_id=8-1") == ("resumed", "8-1")
    assert opened("7-1", "from=snapshot") == ("resumed", "7-1")
    assert opened(None, "last_event_id=8-1&from=snapshot") == ("resumed", "8-1")
    assert opened(None, "last_event_id=&from=snapshot") == ("start", "snapshot")


def test_a_reader_that_has_seen_the_end_is_sent_home(stack: Stack, finished: str) -> None:
    """204, named as an event stream (some clients take any other type for an error and retry for ever), on both
    processes, by header and by query."""
    end = stack.log(finished)[-1][0]
    for url in stack.urls:
        for headers, path in (
            ({"Accept": SSE, "Last-Event-ID": end}, events_path(finished)),
            ({"Accept": SSE}, events_path(finished, f"last_event_id={end}")),
            ({"Accept": "*/*"}, events_path(finished, f"last_event_id={end}&from=snapshot")),
        ):
            answer = request(url, "GET", path, headers=headers)
            assert (answer.status, answer.body, answer.ending) == (204, b"", Ending.CLEAN)
            assert answer.headers["content-type"].startswith(SSE)
            assert answer.headers["access-control-allow-origin"] == "*"


def test_the_state_as_json_is_what_the_readers_saw(stack: Stack, finished: str) -> None:
    """`GET /v1/generations/{id}`: the folded text, status, usage and times."""
    shown = stack.get(f"/v1/generations/{finished}").json()
    assert shown["text"] == sim_text(DELTAS, 3)
    assert shown["status"] == "completed"
    assert shown["finish_reason"] == "stop"
    assert shown["characters"] == len(shown["text"])
    assert shown["usage"]["output_tokens"] == DELTAS
    assert shown["error"] is None
    assert shown["position"] == stack.log(finished)[-1][0]
    assert shown["created_at"] <= shown["started_at"] <= shown["ended_at"]

"""How bodies begin, stay alive and end: cleanly behind a terminal event, and visibly cut in every other case."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse, connect_sse

from broker.embedded import EmbeddedServer
from tests.support.sse_client import (
    NDJSON,
    SSE,
    Answer,
    Ending,
    Frame,
    Reader,
    SseParser,
    Stream,
    events_path,
    follow,
    open_stream,
    read,
    request,
)
from tests.support.stack import ONE_BY_ONE, Api, Stack, eventually, job
from worker.providers.sim import sim_text

GENERATIONS = "/v1/generations"
JSON = {"Content-Type": "application/json"}
MAX_AGE_SECONDS = 2
SLOW_BYTES_PER_SECOND = 200_000
#: The provider says no more: it does not end by itself.
STALLS = {"at_token": 100, "kind": "stall"}


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API with short pings."""
    directory = tmp_path_factory.mktemp("endings")
    with Stack.start(redis_url, directory, environment={"LEGATO_PING_SECONDS": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def short_lived(stack: Stack) -> Iterator[Api]:
    """An API that lets no stream grow old."""
    api = stack.add_api({"LEGATO_STREAM_MAX_AGE_SECONDS": str(MAX_AGE_SECONDS)})
    stack.apis.remove(api)
    yield api
    api.stop()


@pytest.fixture(scope="module")
def finished(stack: Stack) -> str:
    generation = stack.submit({"tokens": 200, "seed": 71})
    stack.wait_status(generation, "completed")
    return generation


def post(url: str, body: object, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(url, "POST", GENERATIONS, headers=JSON | named, body=json.dumps(body).encode())


def post_stream(url: str, body: object, **headers: str) -> Stream:
    named = {"Accept": SSE} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Stream(url, GENERATIONS, method="POST", headers=JSON | named, body=json.dumps(body).encode())


# --- a clean end, and every other one ---


@pytest.mark.parametrize("accept", [SSE, NDJSON])
@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"tokens": 30}, "completed"),
        ({"tokens": 30, "tokens_per_second": 60}, "completed"),
        ({"tokens": 0}, "completed"),
        ({"text": ""}, "completed"),
        ({"tokens": 30, "faults": [{"at_token": 9, "kind": "error"}]}, "failed"),
        ({"tokens": 30, "faults": [{"at_token": 30, "kind": "truncate"}]}, "failed"),
    ],
)
def test_a_body_with_the_terminal_event_ends_cleanly(
    stack: Stack, options: dict[str, object], end: str, accept: str
) -> None:
    """Watched live, and read again afterwards. A provider's stream without its end marker is never `completed`."""
    generation = stack.submit(options, max_attempts=1)
    for _ in range(2):
        reader, stream = read(stack.urls[0], generation, accept=accept)
        assert stream.ending is Ending.CLEAN
        assert reader.ended is not None
        assert reader.ended.event == end
        assert reader.ended.id is not None


def test_a_retried_attempt_is_announced_and_taken_back(stack: Stack) -> None:
    """`status` says that it is tried again, `reset` takes the text back, and the second attempt is the text."""
    faults = [{"at_token": 9, "kind": "error", "attempt": 1}]
    generation = stack.submit({"tokens": 30, "seed": 72, "faults": faults})
    reader, _ = read(stack.urls[0], generation)
    names = [name for name in reader.events if name != "usage"]
    assert names == ["started", "status", "reset", "started", "completed"]
    assert reader.text == sim_text(30, 72)


@pytest.mark.parametrize(
    ("options", "fields", "code"),
    [
        ({"tokens": 9, "faults": [{"at_token": 3, "kind": "error"}]}, {}, "upstream_error"),
        ({"tokens": 9, "faults": [{"at_token": 3, "kind": "rate_limit"}]}, {}, "rate_limited"),
        ({"tokens": 9, "faults": [{"at_token": 3, "kind": "truncate"}]}, {}, "upstream_incomplete"),
        ({"tokens": 9, "faults": [{"at_token": 3, "kind": "stall"}]}, {"stall_seconds": 0.5}, "stalled"),
        ({"tokens": 900, "tokens_per_second": 50}, {"timeout_seconds": 8}, "timeout"),
        ({"turns": [{"colour": "red"}]}, {}, "invalid_request"),
    ],
)
def test_a_failure_says_why_and_what_was_shown(
    stack: Stack, options: dict[str, object], fields: dict[str, object], code: str
) -> None:
    generation = stack.submit(options, max_attempts=1, **fields)
    reader, stream = read(stack.urls[0], generation)
    assert stream.ending is Ending.CLEAN
    assert reader.ended is not None
    assert reader.ended.event == "failed"
    assert set(reader.ended.data) == {"code", "message", "retryable", "partial", "characters"}
    assert reader.ended.data["code"] == code
    assert reader.ended.data["partial"] is bool(reader.text)
    assert reader.ended.data["characters"] == len(reader.text)
    assert bool(reader.text) is (code != "invalid_request")
    assert stack.get(f"{GENERATIONS}/{generation}").json()["error"] == reader.ended.data


def test_a_stream_says_how_it_is_to_be_kept(stack: Stack, finished: str) -> None:
    """`open` comes first, without an id, with a time to come back after; nothing on the way may store or change it."""
    with open_stream(stack.urls[0], finished) as stream:
        frames = list(stream.frames())
    opened = frames[0]
    assert (opened.event, opened.id) == ("open", None)
    assert opened.retry is not None
    assert 1_000 <= opened.retry <= 3_000
    assert set(opened.data) == {"generation", "verdict", "from", "head", "status", "attempt"}
    assert opened.data["generation"] == finished
    assert [frame.retry for frame in frames[1:]] == [None] * (len(frames) - 1)
    assert all(frame.id for frame in frames[1:])
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert {"no-cache", "no-store", "no-transform"} <= set(stream.headers["cache-control"].split(", "))
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["vary"] == "Accept, Origin"
    retries = {read_open(stack, finished).retry for _ in range(12)}
    assert len(retries) > 3, "a thousand readers must not come back in one moment"


def read_open(stack: Stack, generation: str) -> Frame:
    with open_stream(stack.urls[0], generation) as stream:
        return next(stream.frames())


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_an_old_stream_is_cut_between_frames_and_goes_on_elsewhere(stack: Stack, short_lived: Api, accept: str) -> None:
    """Every body but the last ends incompletely; the text is whole."""
    generation = stack.submit({"tokens": 800, "seed": 73, "tokens_per_second": 100})
    reader = Reader()
    endings = []
    while reader.ended is None:
        with open_stream(short_lived.url, generation, reader.cursor, accept=accept) as stream:
            for frame in stream.frames():
                reader.take(frame)
            assert stream.ending is not None
            endings.append(stream.ending)
            assert not stream.parser.mid_frame
    assert reader.text == sim_text(800, 73)
    assert len(endings) >= 3
    assert endings[:-1] == [Ending.INCOMPLETE] * (len(endings) - 1)
    assert endings[-1] is Ending.CLEAN


def test_a_reader_of_http_1_0_can_tell_a_cut_from_an_end(stack: Stack, short_lived: Api, finished: str) -> None:
    """It knows no chunks: where the body is not over the connection is reset, where it is, closed."""
    generation = stack.submit({"tokens": 400, "faults": [STALLS]})
    with open_stream(short_lived.url, generation, version="1.0") as stream:
        shown = stream.rest()
    assert stream.ending is Ending.RESET
    assert b"event: delta" in shown
    assert b"event: completed" not in shown
    stack.delete(f"{GENERATIONS}/{generation}")
    with open_stream(short_lived.url, finished, version="1.0") as stream:
        shown = stream.rest()
    assert stream.ending is Ending.CLEAN
    assert b"event: completed" in shown


def test_a_drain_resets_readers_of_http_1_0(stack: Stack) -> None:
    api = stack.add_api()
    generation = stack.submit({"tokens": 300, "faults": [STALLS]})
    with open_stream(api.url, generation, version="1.0") as stream:
        pieces = stream.pieces()
        assert b"event: open" in next(pieces)
        api.terminate()
        for _ in pieces:
            pass
        assert stream.ending is Ending.RESET
    assert api.wait() == 0
    stack.remove(api)
    stack.delete(f"{GENERATIONS}/{generation}")


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_a_reader_of_http_1_0_gets_no_chunks(stack: Stack, finished: str, accept: str) -> None:
    """Chunk sizes would stand in its text."""
    with open_stream(stack.urls[0], finished, accept=accept, version="1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        reader = Reader()
        for frame in stream.frames():
            reader.take(frame)
    assert reader.text == sim_text(200, 71)


# --- silence ---


def test_pings_stand_between_frames_and_are_one_line(stack: Stack) -> None:
    """`: ping` and a line end, no blank line behind it: some parsers make an empty event of one."""
    generation = stack.submit({"tokens": 6, "seed": 76, "first_token_ms": 3_500, "tokens_per_second": 2})
    with open_stream(stack.urls[0], generation) as stream:
        raw = stream.rest().decode()
    assert raw.count(": ping\n") >= 2
    frames = re.fullmatch(r"(?:event: [a-z_]+\n(?:[a-z]+: [^\n]*\n)+\n|: ping\n)+", raw)
    assert frames, raw
    parser = SseParser()
    names = [frame.event for frame in parser.feed(raw.encode())]
    assert parser.blank_blocks == 0
    assert names[0] == "open"
    assert names[-1] == "completed"


def test_pings_of_the_other_transport_are_lines_too(stack: Stack) -> None:
    generation = stack.submit({"tokens": 6, "seed": 77, "first_token_ms": 4_000})
    with open_stream(stack.urls[0], generation, accept=NDJSON) as stream:
        frames = list(stream.frames())
        assert stream.parser.pings >= 1
        assert stream.parser.blank_blocks == 0
    assert frames[-1].event == "completed"


# --- readers that take little, or nothing ---


@pytest.mark.timeout(180)
def test_a_reader_is_not_cut_for_being_slow(redis_url: str, tmp_path: Path) -> None:
    """It takes a little all the time, though less within the time to send than the server hands over at once: only who
    takes nothing at all is cut."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_SEND_TIMEOUT_SECONDS": "3"}) as stack:
        generation = stack.submit({"tokens": 600_000, "seed": 78, "chunk_chars": 2_600})
        stack.wait_status(generation, "completed")
        whole = sim_text(600_000, 78)
        reader = Reader()
        with open_stream(stack.urls[0], generation, receive_bytes=4_096) as stream:
            stream.read_bytes = 20_000
            since = time.monotonic()
            for frame in stream.frames():
                reader.take(frame)
                due = since + stream.raw_bytes / SLOW_BYTES_PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
            assert stream.ending is Ending.CLEAN, f"cut after {stream.raw_bytes:,} bytes of {len(whole.encode()):,}"
        assert reader.text == whole


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_reader_that_takes_nothing_is_let_go(redis_url: str, tmp_path: Path, version: str) -> None:
    """Its connection is closed after the time to send, with what was meant for it: dead phones must not hold memory and
    descriptors for ever. Over either version of HTTP."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_SEND_TIMEOUT_SECONDS": "1"}) as stack:
        generation = stack.submit({"tokens": 1_000_000, "seed": 79, "chunk_chars": 8_000})
        stack.wait_status(generation, "completed")
        read(stack.urls[0], generation)
        api = stack.apis[0]
        stalled = [open_stream(stack.urls[0], generation, receive_bytes=4_096, version=version) for _ in range(12)]
        try:
            assert {stream.status for stream in stalled} == {200}
            ports = [stream.socket.getsockname()[1] for stream in stalled]
            metrics = stack.urls[0], "GET", "/metrics"
            eventually(lambda: b"\nlegato_viewers 0\n" in request(*metrics).body, "the server lets them go")
            for stream in stalled:
                stream.rest()
                assert stream.ending is Ending.RESET
            eventually(lambda: not any(api.holds(port) for port in ports), "their descriptors are free")
        finally:
            for stream in stalled:
                stream.close()


@pytest.mark.parametrize("path", ["", "/events"], ids=["answer", "stream"])
def test_a_reader_that_takes_nothing_of_a_whole_answer_is_let_go(redis_url: str, tmp_path: Path, path: str) -> None:
    """The server waits for nothing any more: all of it is in the buffers. The connection is closed all the same."""
    with Stack.start(redis_url, tmp_path, environment={"LEGATO_SEND_TIMEOUT_SECONDS": "1"}) as stack:
        generation = stack.submit({"text": "x" * 110_000, "chunk_chars": 1_000})
        stack.wait_status(generation, "completed", seconds=60)
        api = stack.apis[0]
        stalled = [Stream(stack.urls[0], f"/v1/generations/{generation}{path}", receive_bytes=4_096) for _ in range(12)]
        try:
            ports = [stream.socket.getsockname()[1] for stream in stalled]
            eventually(lambda: not any(api.holds(port) for port in ports), "the server lets them go")
        finally:
            for stream in stalled:
                stream.close()


# --- the store is away ---


@contextmanager
def _killed(server: EmbeddedServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.restart()


@contextmanager
def _frozen(server: EmbeddedServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


OUTAGES = pytest.mark.parametrize("away", [_killed, _frozen], ids=["killed", "frozen"])
Outage = Callable[[EmbeddedServer], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedServer, Stack]]:
    """A stack over a store of its own, which may be taken away."""
    directory = tmp_path_factory.mktemp("fragile")
    environment = {"LEGATO_STORE_TIMEOUT_SECONDS": "1", "LEGATO_PING_SECONDS": "1"}
    with (
        EmbeddedServer.start(directory / "data") as server,
        Stack.start(server.url, directory, environment=environment) as running,
    ):
        yield server, running


def back(stack: Stack) -> None:
    """Wait until the store is there again."""
    eventually(lambda: stack.get("/readyz").status == 200, "the API is ready again")


@OUTAGES
def test_an_eventsource_is_kept_while_the_store_is_away(fragile: tuple[EmbeddedServer, Stack], away: Outage) -> None:
    """A 5xx would end it for ever: 200, `open` with a later `retry`, `error` without an id, a body that is cut. Its
    cursor stays, and gets the rest when the store is back."""
    server, stack = fragile
    url = stack.urls[0]
    generation = stack.submit({"tokens": 50, "seed": 81}, delivery=ONE_BY_ONE)
    stack.wait_status(generation, "completed")
    with away(server):
        for version, ending in (("1.1", Ending.INCOMPLETE), ("1.0", Ending.RESET)):
            for cursor in (None, "9-1"):
                with open_stream(url, generation, cursor, version=version) as stream:
                    shown = stream.rest()
                assert (stream.status, stream.ending) == (200, ending)
                if version == "1.0":
                    continue
                opened, error = SseParser().feed(shown)
                assert (opened.event, opened.id, error.event, error.id) == ("open", None, "error", None)
                assert opened.retry is not None
                assert 2_000 <= opened.retry <= 10_000
                assert set(opened.data) == {"generation", "verdict", "from", "head", "status", "attempt"}
                assert error.data["code"] == "store_unavailable"
    back(stack)
    reader, stream = read(url, generation, "9-1")
    assert reader.opens[0]["verdict"] == "resumed"
    assert stream.ending is Ending.CLEAN
    assert sim_text(50, 81).endswith(reader.text)


@OUTAGES
def test_everybody_else_is_told_503_while_the_store_is_away(
    fragile: tuple[EmbeddedServer, Stack], away: Outage
) -> None:
    """A problem with `Retry-After`, on every route, within a few seconds; never a 404 or an empty log."""
    server, stack = fragile
    url = stack.urls[0]
    generation = stack.submit({"tokens": 5, "seed": 82})
    stack.wait_status(generation, "completed")
    one = f"{GENERATIONS}/{generation}"
    with away(server):
        for method, path, accept in (
            ("GET", one + "/events", "*/*"),
            ("GET", one + "/events", NDJSON),
            ("GET", one, "application/json"),
            ("GET", one, SSE),
            ("GET", GENERATIONS, "*/*"),
            ("POST", one + "/cancel", "*/*"),
            ("DELETE", one, "*/*"),
            ("GET", "/readyz", "*/*"),
            ("HEAD", one + "/events", "*/*"),
        ):
            since = time.monotonic()
            body = b"" if method == "POST" else None
            answer = request(url, method, path, headers={"Accept": accept}, body=body)
            assert answer.status == 503, (method, path, accept, answer.body)
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() - since < 30
            if path != "/readyz":
                assert answer.headers["content-type"] == "application/problem+json"
            if method != "HEAD" and path != "/readyz":
                assert answer.json()["code"] == "store_unavailable"
                assert server.url not in answer.body.decode()
        assert request(url, "GET", "/livez").status == 200
    back(stack)
    assert stack.status(generation) == "completed", "a cancel or delete that was refused has not happened"


@OUTAGES
def test_a_submit_while_the_store_is_away_is_refused_whole(fragile: tuple[EmbeddedServer, Stack], away: Outage) -> None:
    """503; afterwards no half of it is there, and the same key starts one generation."""
    server, stack = fragile
    thread, key = uuid4().hex, uuid4().hex
    body = job({"tokens": 7, "seed": 83}, thread=thread)
    with away(server):
        for headers in ({}, {"Idempotency_Key": key}, {"Idempotency_Key": key}):
            answer = post(stack.urls[0], body, **headers)
            assert answer.status == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
    back(stack)
    listing = f"{GENERATIONS}?limit=100&thread={thread}"
    time.sleep(1)
    assert stack.get(listing).json()["data"] == []
    answer = post(stack.urls[0], body, Idempotency_Key=key)
    assert answer.status == 202
    reader, _ = read(stack.urls[0], answer.json()["id"])
    assert reader.text == sim_text(7, 83)
    assert [item["id"] for item in stack.get(listing).json()["data"]] == [answer.json()["id"]]


@OUTAGES
def test_a_reader_that_is_attached_waits_for_the_store(fragile: tuple[EmbeddedServer, Stack], away: Outage) -> None:
    """Its stream neither ends nor is silent: pings, then the rest, in the same body."""
    server, stack = fragile
    generation = stack.submit({"tokens": 300, "seed": 84, "tokens_per_second": 50}, delivery=ONE_BY_ONE)
    reader = Reader()
    begun = threading.Event()

    def view() -> tuple[Ending | None, int]:
        with open_stream(stack.urls[0], generation) as stream:
            for frame in stream.frames():
                reader.take(frame)
                if len(reader.ids) > 10:
                    begun.set()
            return stream.ending, stream.parser.pings

    with ThreadPoolExecutor(1) as pool:
        viewing = pool.submit(view)
        assert begun.wait(30)
        with away(server):
            time.sleep(3.5)
        ending, pings = viewing.result(60)
    assert reader.text == sim_text(300, 84)
    assert ending is Ending.CLEAN
    assert pings >= 1
    assert len(reader.opens) == 1
    back(stack)


@OUTAGES
def test_a_reader_that_posts_again_while_the_store_is_away_is_kept(
    fragile: tuple[EmbeddedServer, Stack], away: Outage
) -> None:
    """The same POST with its key and cursor is a stream's reader coming back, and is treated as one."""
    server, stack = fragile
    body, key = job({"tokens": 200, "seed": 85, "tokens_per_second": 200}), uuid4().hex
    reader = Reader()
    with post_stream(stack.urls[0], body, Idempotency_Key=key) as stream:
        for frame in stream.frames():
            reader.take(frame)
            if len(reader.ids) == 20:
                break
    cursor = reader.cursor
    assert cursor is not None
    with away(server):
        with post_stream(stack.urls[0], body, Idempotency_Key=key, Last_Event_ID=cursor) as stream:
            shown = stream.rest()
        assert (stream.status, stream.ending) == (200, Ending.INCOMPLETE)
        assert [frame.event for frame in SseParser().feed(shown)] == ["open", "error"]
    back(stack)
    with post_stream(stack.urls[0], body, Idempotency_Key=key, Last_Event_ID=cursor) as stream:
        for frame in stream.frames():
            reader.take(frame)
    assert reader.text == sim_text(200, 85)


# --- POST that streams ---


def test_a_post_that_asks_for_events_is_answered_with_them(stack: Stack) -> None:
    """200, the stream from its start, and the place where it may be read on."""
    with post_stream(stack.urls[0], job({"tokens": 40, "seed": 86})) as stream:
        assert stream.status == 200
        location = stream.headers["location"]
        reader = Reader()
        for frame in stream.frames():
            reader.take(frame)
        assert stream.ending is Ending.CLEAN
    assert reader.opens[0]["verdict"] == "start"
    assert location == f"{GENERATIONS}/{reader.opens[0]['generation']}"
    assert reader.text == sim_text(40, 86)
    again, _ = read(stack.urls[0], reader.opens[0]["generation"])
    assert again.text == reader.text


def test_the_same_post_with_its_key_and_cursor_goes_on(stack: Stack, short_lived: Api) -> None:
    """Over a dozen cuts, on two processes: one generation, one text; with the end as cursor 204, without a cursor all
    of it again."""
    body, key = job({"tokens": 300, "seed": 87, "tokens_per_second": 60}, delivery=ONE_BY_ONE), uuid4().hex
    urls = [stack.urls[0], short_lived.url]
    reader = Reader()
    generations = set()
    for number in range(200):
        headers = {"Idempotency_Key": key} | ({"Last_Event_ID": reader.cursor} if reader.cursor else {})
        with post_stream(urls[number % 2], body, **headers) as stream:
            assert stream.status == 200
            assert stream.headers.get("idempotent-replayed") == ("true" if number else None)
            generations.add(stream.headers["location"])
            for count, frame in enumerate(stream.frames()):
                reader.take(frame)
                if count == 12:
                    break
        if reader.ended is not None:
            break
    assert reader.text == sim_text(300, 87)
    assert len(generations) == 1
    assert len(reader.opens) > 5
    assert {each["verdict"] for each in reader.opens[1:]} == {"resumed"}
    assert reader.cursor is not None
    with post_stream(urls[0], body, Idempotency_Key=key, Last_Event_ID=reader.cursor) as stream:
        assert (stream.status, stream.rest(), stream.ending) == (204, b"", Ending.CLEAN)
        assert stream.headers["content-type"].startswith(SSE)
    with post_stream(urls[1], body, Idempotency_Key=key) as stream:
        replay = Reader()
        for frame in stream.frames():
            replay.take(frame)
    assert replay.text == reader.text


# --- clients in use ---


def feed(reader: Reader, event: ServerSentEvent) -> None:
    """Give a library's event to the minimal client. The library repeats the last id on frames without one."""
    logged = event.event not in ("open", "error")
    reader.take(Frame(event.id if logged else None, event.event, event.json()))


def test_httpx_sse_reads_a_stream_to_its_end(stack: Stack) -> None:
    """A client library in use, which must not be confused by pings, `open` or `retry`."""
    generation = stack.submit({"tokens": 60, "seed": 91, "first_token_ms": 1_500, "tokens_per_second": 60})
    reader = Reader()
    with (
        httpx.Client(timeout=30) as client,
        connect_sse(client, "GET", stack.urls[0] + events_path(generation)) as source,
    ):
        for event in source.iter_sse():
            feed(reader, event)
    assert reader.text == sim_text(60, 91)
    assert reader.ended is not None


async def test_httpx_sse_comes_back_after_every_cut(stack: Stack, short_lived: Api) -> None:
    """An old stream's end is an error to it, so it can know that there is more; with its last id it gets the rest."""
    generation = stack.submit({"tokens": 600, "seed": 92, "tokens_per_second": 100})
    reader = Reader()
    breaks = 0
    async with httpx.AsyncClient(timeout=30) as client:
        while reader.ended is None:
            headers = {"Last-Event-ID": reader.cursor} if reader.cursor else {}
            url = short_lived.url + events_path(generation)
            try:
                async with aconnect_sse(client, "GET", url, headers=headers) as source:
                    async for event in source.aiter_sse():
                        feed(reader, event)
            except httpx.RemoteProtocolError:
                breaks += 1
    assert reader.text == sim_text(600, 92)
    assert breaks >= 1


@pytest.fixture(scope="module")
def curl() -> str:
    found = shutil.which("curl")
    assert found, "these tests need curl on PATH"
    return found


def run(curl: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([curl, "-sSN", *arguments], capture_output=True, timeout=60, check=False)


def test_curl_reads_a_stream_to_its_end(stack: Stack, curl: str) -> None:
    """Exit status 0, and exactly the events, over HTTP/1.1 and 1.0."""
    generation = stack.submit({"tokens": 60, "seed": 93, "tokens_per_second": 60})
    url = stack.urls[0] + events_path(generation)
    for options in ((), ("--http1.0",)):
        done = run(curl, *options, "-H", f"Accept: {SSE}", url)
        assert (done.returncode, done.stderr) == (0, b"")
        reader = Reader()
        for frame in SseParser().feed(done.stdout):
            reader.take(frame)
        assert reader.text == sim_text(60, 93)
        assert reader.ended is not None


@pytest.mark.parametrize(("option", "status"), [("--http1.1", 18), ("--http1.0", 56)])
def test_curl_can_tell_a_stream_that_was_cut(
    stack: Stack, short_lived: Api, curl: str, option: str, status: int
) -> None:
    """18 is a partial body, 56 a connection that was reset; scripts go on from the last id."""
    generation = stack.submit({"tokens": 400, "faults": [STALLS]})
    url = short_lived.url + events_path(generation)
    done = run(curl, option, "-H", f"Accept: {SSE}", url)
    assert done.returncode == status, done.stderr
    assert b"event: delta" in done.stdout
    assert b"event: completed" not in done.stdout
    stack.delete(f"{GENERATIONS}/{generation}")


def test_curl_that_retries_a_submit_starts_one_generation(stack: Stack, curl: str) -> None:
    """Two identical commands, as a script that was run twice."""
    thread = uuid4().hex
    body = json.dumps(job({"tokens": 20, "seed": 95}, thread=thread))
    headers = [f"Accept: {SSE}", "Content-Type: application/json", f"Idempotency-Key: {uuid4()}"]
    options = [word for header in headers for word in ("-H", header)]
    for _ in range(2):
        done = run(curl, "-X", "POST", *options, "-d", body, stack.urls[0] + GENERATIONS)
        assert done.returncode == 0, done.stderr
        reader = Reader()
        for frame in SseParser().feed(done.stdout):
            reader.take(frame)
        assert reader.text == sim_text(20, 95)
    assert len(stack.get(f"{GENERATIONS}?thread={thread}").json()["data"]) == 1


def test_many_clients_of_one_generation_see_one_text(stack: Stack, short_lived: Api) -> None:
    """Sixty readers at once on two processes, half of them cut by age."""
    generation = stack.submit({"tokens": 400, "seed": 96, "tokens_per_second": 100})
    urls = [stack.urls[0], short_lived.url]
    with ThreadPoolExecutor(60) as pool:
        following = [
            pool.submit(follow, urls[:: 1 if number % 2 else -1], generation, accept=(SSE, NDJSON)[number % 3 == 0])
            for number in range(60)
        ]
        for each in following:
            reader, _ = each.result(90)
            assert reader.text == sim_text(400, 96)

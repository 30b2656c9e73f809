"""WebSocket, with a client library and real processes: resume, credit, cancel, endings."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, SHUT_RDWR, SO_RCVBUF, SOCK_STREAM, SOL_SOCKET
from socket import socket as Socket
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from broker.embedded import EmbeddedServer
from tests.support.servers import free_port
from tests.support.sse_client import Frame, Reader, request
from tests.support.stack import Stack, eventually
from worker.providers.sim import sim_text

#: How long a message may take. A test that waits longer has failed.
SECONDS = 60.0


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {"LEGATO_PING_SECONDS": "1", "LEGATO_SEND_TIMEOUT_SECONDS": "4"}
    with Stack.start(redis_url, tmp_path_factory.mktemp("ws"), apis=2, environment=environment) as running:
        yield running


def dial(url: str, generation: str, query: str = "", **options: Any) -> ClientConnection:
    path = f"/v1/generations/{generation}/ws" + (f"?{query}" if query else "")
    return connect(url.replace("http://", "ws://") + path, compression=None, max_size=None, **options)


def say(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def hear(socket: ClientConnection) -> Frame | None:
    """The next event, or None for a keepalive."""
    message = socket.recv(SECONDS)
    assert isinstance(message, str)
    said = json.loads(message)
    return None if said["event"] == "ping" else Frame(said.get("id"), said["event"], said["data"])


def read(socket: ClientConnection, reader: Reader, *, ack: bool = True, most: int | None = None) -> int:
    """Take events until the connection ends, or `most` with an id; the close code, 0 if it goes on."""
    while most is None or most > 0:
        try:
            frame = hear(socket)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd is not None else 1006
        if frame is not None:
            reader.take(frame)
            if frame.id is not None:
                most = None if most is None else most - 1
                with suppress(ConnectionClosed):  # it may have said all, and more may be here to read
                    if ack:
                        say(socket, type="ack", position=frame.id)
    return 0


def refusal(url: str, generation: str, query: str = "", **options: Any) -> tuple[int, str, dict[str, str]]:
    with pytest.raises(InvalidStatus) as caught:
        dial(url, generation, query, **options)
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    body = json.loads(response.body)
    assert body["status"] == response.status_code
    return response.status_code, body["code"], dict(response.headers.raw_items())


def test_a_running_text_arrives_whole_and_ends_with_1000(stack: Stack) -> None:
    generation = stack.submit({"tokens": 60, "seed": 3, "tokens_per_second": 60})
    reader = Reader()
    with dial(stack.urls[0], generation) as socket:
        assert read(socket, reader) == 1000
    assert reader.opens[0]["verdict"] == "start"
    assert reader.text == sim_text(60, 3)
    with dial(stack.urls[1], generation, f"last_event_id={reader.cursor}") as socket:
        assert read(socket, Reader(cursor=reader.cursor)) == 1000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cuts_anywhere_leave_the_same_text(stack: Stack, seed: int) -> None:
    """Connections that are dropped after a random number of events, with windows of all sizes; nothing twice (the
    reader fails on it), nothing missing."""
    rng = random.Random(seed)
    generation = stack.submit({"tokens": 250, "seed": seed, "tokens_per_second": 80})
    reader, connections = Reader(), 0
    while reader.ended is None:
        cursor = f"last_event_id={reader.cursor}&" if reader.cursor else ""
        query = f"{cursor}window={rng.choice([1, 2, 7, 1024])}"
        with dial(stack.urls[connections % 2], generation, query) as socket:
            connections += 1
            read(socket, reader, most=rng.randint(1, 12))
            if reader.ended is None and rng.random() < 0.5:
                socket.socket.shutdown(SHUT_RDWR)  # without a word
    assert connections > 3
    assert reader.text == sim_text(250, seed)


def test_no_more_than_a_window_is_ever_on_the_way(stack: Stack) -> None:
    """A page that stops acknowledging gets exactly the window; what has piled up comes merged, the text is whole."""
    api = stack.add_api({"LEGATO_SEND_TIMEOUT_SECONDS": "60"})  # nothing is acknowledged for a while
    stack.apis.remove(api)
    generation = stack.submit({"tokens": 2000, "seed": 4, "tokens_per_second": 400})
    reader = Reader()
    with dial(api.url, generation, "window=5") as socket:
        read(socket, reader, ack=False, most=5)
        stack.wait_status(generation, "completed")
        assert_nothing_comes(socket)
        assert len(reader.ids) == 5
        say(socket, type="ack", position=reader.ids[2])
        read(socket, reader, ack=False, most=3)
        assert_nothing_comes(socket)
        say(socket, type="ack", position=reader.ids[1])  # older: tells nothing
        say(socket, type="ack", position=reader.ids[-1])
        assert read(socket, reader) == 1000
    assert reader.text == sim_text(2000, 4)
    assert len(reader.ids) < 200, "it was not merged"
    assert api.stop() == 0


def assert_nothing_comes(socket: ClientConnection) -> None:
    """No event for a second. Keepalives may come."""
    deadline = time.monotonic() + 1
    with suppress(TimeoutError):
        while (left := deadline - time.monotonic()) > 0:
            assert json.loads(socket.recv(left)) == {"event": "ping"}


def test_a_window_that_stays_full_is_cut_and_may_come_back(stack: Stack) -> None:
    generation = stack.submit({"tokens": 200, "seed": 5, "tokens_per_second": 400})
    stack.wait_status(generation, "completed")
    reader = Reader()
    with dial(stack.urls[0], generation, "window=1") as socket:
        assert read(socket, reader, ack=False) == 4408
    assert reader.errors[-1]["code"] == "acknowledgement_missing"
    assert len(reader.ids) == 1
    with dial(stack.urls[0], generation, f"last_event_id={reader.cursor}") as socket:
        assert read(socket, reader) == 1000
    assert reader.text == sim_text(200, 5)


def test_a_reader_that_acknowledges_slowly_is_not_cut(stack: Stack) -> None:
    """Longer than the time-out in all, never so long between two."""
    generation = stack.submit({"tokens": 12, "seed": 5, "tokens_per_second": 1000})
    stack.wait_status(generation, "completed")
    reader = Reader(cursor="1-1")
    with dial(stack.urls[0], generation, "window=1&last_event_id=1-1") as socket:
        for _ in range(2):
            read(socket, reader, ack=False, most=1)
            time.sleep(2)
            say(socket, type="ack", position=reader.ids[-1])
        assert read(socket, reader) == 1000
    assert reader.text == sim_text(12, 5)


def test_a_reader_that_takes_no_bytes_is_dropped(stack: Stack) -> None:
    """It holds a connection and reads nothing at all, with a window that never fills."""
    generation = stack.submit({"text": "x" * 900_000, "chunk_chars": 9_000})
    stack.wait_status(generation, "completed")
    api = stack.apis[0]
    small = socket_with_small_buffer(api.port)
    port = small.getsockname()[1]
    with dial(api.url, generation, "window=1024", sock=small, max_queue=1) as socket:
        assert api.holds(port)
        eventually(lambda: not api.holds(port), "the connection is dropped", seconds=60)
        socket.socket.close()


def socket_with_small_buffer(port: int) -> Socket:
    small = Socket(AF_INET, SOCK_STREAM)
    small.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
    small.connect(("127.0.0.1", port))
    return small


def test_cancel_by_message_ends_with_cancelled(stack: Stack) -> None:
    generation = stack.submit({"tokens": 5000, "tokens_per_second": 50})
    reader = Reader()
    with dial(stack.urls[0], generation) as socket:
        read(socket, reader, most=5)
        say(socket, type="cancel")
        say(socket, type="cancel")
        assert read(socket, reader) == 1000
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["reason"]) == ("cancelled", "user")
    assert stack.status(generation) == "cancelled"


def test_a_lost_position_gets_a_snapshot(stack: Stack) -> None:
    generation = stack.submit({"tokens": 30, "seed": 6})
    stack.wait_status(generation, "completed")
    for query in ("last_event_id=5-99", "from=snapshot"):
        reader = Reader()
        with dial(stack.urls[0], generation, query) as socket:
            assert read(socket, reader) == 1000
        assert reader.events[0] == "snapshot"
        assert reader.text == sim_text(30, 6)


def test_one_that_is_erased_ends_with_cancelled(stack: Stack) -> None:
    generation = stack.submit({"tokens": 5000, "tokens_per_second": 50})
    reader = Reader()
    with dial(stack.urls[0], generation) as socket:
        read(socket, reader, most=5)
        stack.delete(f"/v1/generations/{generation}")
        assert read(socket, reader) == 1000
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data) == ("cancelled", {"reason": "deleted"})


def test_silence_has_keepalives_of_both_kinds(stack: Stack) -> None:
    generation = stack.submit({"tokens": 2, "seed": 1, "first_token_ms": 6000})
    with dial(stack.urls[0], generation) as socket:
        heard = [json.loads(socket.recv(SECONDS)) for _ in range(4)]
    assert heard.count({"event": "ping"}) >= 2


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", 1007),
        ("[1]", 1007),
        ('"ack"', 1007),
        (b'{"type":"cancel"}', 1007),
        ("{}", 1008),
        ('{"type":"hello"}', 1008),
        ('{"type":"ack"}', 1008),
        ('{"type":"ack","position":5}', 1008),
        ('{"type":"ack","position":"05-1"}', 1008),
        ('{"type":"ack","position":"99999-1"}', 1008),
        ('{"type":"ack","position":"1-1","more":1}', 1008),
        ('{"type":"cancel","reason":"x"}', 1008),
    ],
)
def test_a_message_that_is_none_is_said_and_closed(stack: Stack, message: str | bytes, code: int) -> None:
    generation = stack.submit({"tokens": 2, "first_token_ms": 30_000})
    stack.wait_entries(generation, 1)
    reader = Reader()
    with dial(stack.urls[0], generation) as socket:
        read(socket, reader, ack=False, most=1)
        socket.send(message)
        assert read(socket, reader) == code
    assert reader.errors[-1]["code"] == "invalid_message"
    assert reader.errors[-1]["retryable"] is False
    assert stack.status(generation) == "running"
    stack.post(f"/v1/generations/{generation}/cancel")


def test_what_is_no_text_or_too_long_is_closed_by_the_protocol(stack: Stack) -> None:
    generation = stack.submit({"tokens": 2, "first_token_ms": 30_000})
    for message, code in (("x" * 5000, 1009), (b"\xff\xfe", 1007)):
        with dial(stack.urls[0], generation) as socket:
            if isinstance(message, bytes):
                socket.send(message, text=True)
            else:
                socket.send(message)
            assert read(socket, Reader()) == code
    stack.post(f"/v1/generations/{generation}/cancel")


def test_refusals_come_before_the_upgrade(stack: Stack) -> None:
    generation, url = stack.submit({"tokens": 1}), stack.urls[0]
    unknown = "gen_" + "0" * 32
    assert refusal(url, unknown)[:2] == (404, "not_found")
    assert refusal(url, "gen_x")[:2] == (404, "not_found")
    assert refusal(url, generation, "last_event_id=5")[:2] == (400, "invalid_position")
    assert refusal(url, generation, "from=there")[:2] == (400, "invalid_query")
    for window in ("0", "1025", "-1", "many", "1e3", "٣", ""):
        assert refusal(url, generation, f"window={window}")[:2] == (400, "invalid_query"), window
    stack.wait_status(generation, "completed")
    stack.delete(f"/v1/generations/{generation}")
    assert refusal(url, generation)[:2] == (410, "gone")
    with pytest.raises(InvalidStatus) as caught:
        connect(url.replace("http://", "ws://") + "/v1/generations")
    assert caught.value.response.status_code == 404
    answer = request(url, "GET", f"/v1/generations/{unknown}/ws")
    assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


def test_pages_of_other_origins_are_refused(redis_url: str, tmp_path: Path) -> None:
    environment = {"LEGATO_CORS_ORIGINS": "https://good.example"}
    with Stack.start(redis_url, tmp_path, environment=environment) as stack:
        generation = stack.submit({"tokens": 2, "seed": 1})
        assert refusal(stack.urls[0], generation, origin="https://evil.example")[:2] == (403, "origin_not_allowed")
        for origin in ("https://good.example", None):
            reader = Reader()
            with dial(stack.urls[0], generation, origin=origin) as socket:
                assert read(socket, reader) == 1000
            assert reader.text == sim_text(2, 1), reader


def test_a_drain_closes_with_1012_and_another_process_goes_on(redis_url: str, tmp_path: Path) -> None:
    with Stack.start(redis_url, tmp_path, apis=2) as stack:
        generation = stack.submit({"tokens": 150, "seed": 8, "tokens_per_second": 40})
        leaving, staying = stack.apis
        readers = [Reader(), Reader()]
        with dial(leaving.url, generation) as quick, dial(leaving.url, generation, "window=2") as stalled:
            read(quick, readers[0], most=10)
            read(stalled, readers[1], ack=False, most=2)
            leaving.terminate()
            assert read(quick, readers[0]) == 1012
            assert read(stalled, readers[1], ack=False) == 1012
        leaving.wait()
        for reader in readers:
            with dial(staying.url, generation, f"last_event_id={reader.cursor}") as socket:
                assert read(socket, reader) == 1000
            assert reader.text == sim_text(150, 8)


def test_a_websocket_is_a_viewer(stack: Stack) -> None:
    options = {"tokens": 60, "seed": 2, "tokens_per_second": 10}
    generation = stack.submit(options, on_disconnect={"policy": "cancel", "grace_seconds": 1})
    reader = Reader()
    with dial(stack.urls[0], generation) as socket:
        assert read(socket, reader) == 1000
    assert reader.text == sim_text(60, 2)
    left = stack.submit(
        {"tokens": 5000, "tokens_per_second": 20}, on_disconnect={"policy": "cancel", "grace_seconds": 1}
    )
    with dial(stack.urls[0], left) as socket:
        read(socket, Reader(), most=5)
    stack.wait_status(left, "cancelled")


def test_a_store_that_is_away_refuses_with_503_and_is_waited_out_by_who_is_connected(tmp_path: Path) -> None:
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path, tolerated=["store"]) as stack,
    ):
        generation = stack.submit({"tokens": 120, "seed": 4, "tokens_per_second": 40})
        reader = Reader()
        with dial(stack.urls[0], generation) as socket:
            read(socket, reader, most=20)
            server.kill()
            status, code, headers = refusal(stack.urls[0], generation)
            assert (status, code) == (503, "store_unavailable")
            assert int(headers["retry-after"]) > 0
            server.restart()
            ended = read(socket, reader)
        while ended != 1000:  # the connection may have had to go; the text may not
            with dial(stack.urls[0], generation, f"last_event_id={reader.cursor}") as socket:
                ended = read(socket, reader)
        assert reader.text == sim_text(120, 4)

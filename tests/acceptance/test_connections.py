"""What else a client may send on the connection of a stream, and what is no HTTP at all."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.sse_client import NDJSON, SSE, NdjsonParser, Reader, SseParser, events_path
from tests.support.stack import Stack, eventually, job
from worker.providers.sim import sim_text


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack.start(redis_url, tmp_path_factory.mktemp("connections")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(stack: Stack) -> Iterator[None]:
    yield
    assert stack.new_faults() == []


def connect(stack: Stack) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stack.apis[0].port), timeout=60)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def chunks(body: bytes) -> tuple[bytes, bytes]:
    """A body in chunks, joined, and what stands behind it. Raises `ValueError` for what is no size of a chunk."""
    out = b""
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            return out, body.removeprefix(b"\r\n")
        assert body[size : size + 2] == b"\r\n", body[size : size + 20]
        out, body = out + body[:size], body[size + 2 :]


@pytest.mark.parametrize("accept", [SSE, NDJSON])
@pytest.mark.parametrize("late", [False, True])
def test_a_request_sent_behind_a_stream_waits_and_changes_nothing_of_it(stack: Stack, accept: str, late: bool) -> None:
    """Sent with the stream's own request, or while it runs: the body stays in chunks, and is whole."""
    generation = stack.submit({"tokens": 40, "seed": 5, "tokens_per_second": 40})
    behind = get("/livez", "Connection: close")
    received = b""
    with connect(stack) as connection:
        connection.sendall(get(events_path(generation), f"Accept: {accept}") + (b"" if late else behind))
        if late:
            while b"delta" not in received:
                received += connection.recv(65_536)
            connection.sendall(behind)
        while data := connection.recv(65_536):
            received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body, rest = chunks(rest)
    reader = Reader()
    for frame in (SseParser() if accept == SSE else NdjsonParser()).feed(body):
        reader.take(frame)
    assert reader.text == sim_text(40, 5)
    assert reader.ended is not None
    assert rest.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(rest.partition(b"\r\n\r\n")[2]) == {"status": "alive"}


def viewers(stack: Stack) -> int:
    lines = stack.get("/metrics").body.decode().splitlines()
    return int(next(line for line in lines if line.startswith("legato_viewers ")).split()[1])


def test_a_reader_that_left_with_a_request_behind_its_stream_is_gone(stack: Stack) -> None:
    generation = stack.submit({"tokens": 100_000, "tokens_per_second": 20})
    with connect(stack) as connection:
        connection.sendall(get(events_path(generation), f"Accept: {SSE}") + get("/livez"))
        received = b""
        while b"delta" not in received:
            received += connection.recv(65_536)
        assert viewers(stack) == 1
    eventually(lambda: viewers(stack) == 0, "the viewer is gone", seconds=60)
    assert stack.status(generation) == "running"
    stack.post(f"/v1/generations/{generation}/cancel")


@pytest.mark.parametrize("pace", [0, 40])
def test_a_reader_that_wants_no_other_request_sees_the_connection_closed(stack: Stack, pace: int) -> None:
    """`Connection: close`, which the answer repeats: behind a log that had ended, and behind one that was watched."""
    generation = stack.submit({"tokens": 40, "seed": 5, "tokens_per_second": pace})
    received = b""
    with connect(stack) as connection:
        connection.settimeout(30)
        connection.sendall(get(events_path(generation), f"Accept: {SSE}", "Connection: close"))
        while data := connection.recv(65_536):
            received += data
    assert b"\r\nconnection: close\r\n" in received
    assert b"event: completed" in chunks(received.partition(b"\r\n\r\n")[2])[0]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1-1\x00\r\n\r\n",
        b"GET /v1/generations/\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_problem_too(stack: Stack, sent: bytes) -> None:
    received = b""
    with connect(stack) as connection:
        connection.sendall(sent)
        while data := connection.recv(65_536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\ncontent-type: application/problem+json" in head
    assert json.loads(body)["code"] == "malformed_http"


@pytest.mark.parametrize("line", [b"X-Long: ", b"X-%d: some\r\n"], ids=["one", "many"])
def test_a_head_without_an_end_is_refused(stack: Stack, line: bytes) -> None:
    """It would be kept in memory for as long as anybody sends."""
    piece = b"x" * 1000 if b"%d" not in line else b"".join(line % number for number in range(70))
    sent, received = 0, b""
    with connect(stack) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + (line if b"%d" not in line else b""))
        with suppress(ConnectionError):  # closed, and some of it not read
            while sent < 10_000_000:
                connection.sendall(piece)
                sent += len(piece)
        with suppress(ConnectionError):
            while data := connection.recv(65_536):
                received += data
    assert sent < 10_000_000
    if received:  # a reset may overtake it
        assert received.startswith(b"HTTP/1.1 431 ")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["code"] == "head_too_large"


def test_a_long_head_is_read_however_it_comes(stack: Stack) -> None:
    """And a body before it does not count."""
    body = json.dumps(job({"tokens": 5}, metadata={"long": "x" * 15_000}, stop=["y" * 900_000])).encode()
    post = f"POST /v1/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    whole = post + get("/livez", "X-Long: " + "x" * 60_000) + post + get("/livez", "Connection: close")
    received = b""
    with connect(stack) as connection:
        for at in range(0, len(whole), 30_011):
            connection.sendall(whole[at : at + 30_011])
        while data := connection.recv(65_536):
            received += data
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == [202, 200, 202, 200]


def test_garbage_right_behind_a_request_is_not_what_that_is_answered_with(stack: Stack) -> None:
    """As one byte too many of a body, say: the job is stored, so its client must not be told that it was malformed."""
    body = json.dumps(job({"tokens": 5})).encode()
    head = f"POST /v1/generations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    received = b""
    with connect(stack) as connection:
        connection.sendall(get("/livez") + head + body + b"}\r\n\r\n")
        while data := connection.recv(65_536):
            received += data
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == [200, 202]
    assert b"\r\nconnection: close\r\n" in received


def test_garbage_behind_a_streams_request_cuts_it_without_a_word(stack: Stack) -> None:
    """Whatever stood in the body then, a reader would take for events."""
    generation = stack.submit({"tokens": 100_000, "tokens_per_second": 20})
    received = b""
    with connect(stack) as connection:
        connection.sendall(get(events_path(generation), f"Accept: {SSE}"))
        while b"delta" not in received:
            received += connection.recv(65_536)
        connection.sendall(b"\x00\x01 what?\r\n\r\n")
        while data := connection.recv(65_536):
            received += data
    with pytest.raises(ValueError, match="invalid literal"):  # no last chunk
        chunks(received.partition(b"\r\n\r\n")[2])
    assert received.count(b"HTTP/1.1 ") == 1
    stack.post(f"/v1/generations/{generation}/cancel")


#: What Java's HTTP client says by default with its first request to a server, whatever that asks for.
TO_HTTP_2 = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAA")


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("accept", ["application/json", SSE])
def test_a_post_that_asks_for_another_protocol_is_answered_in_this_one(
    stack: Stack, accept: str, late: bool, in_chunks: bool
) -> None:
    """With its body, wherever the network cuts it; and so is what is sent behind it."""
    body = json.dumps(job({"tokens": 5})).encode()
    length = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}"
    lines = ["POST /v1/generations HTTP/1.1", "Host: x", *TO_HTTP_2, "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Accept: {accept}", length, "", ""]).encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if in_chunks else body
    received = b""
    with connect(stack) as connection:
        if late:
            connection.sendall(head)
            time.sleep(0.2)  # let it be two reads of the server
            head = b""
        connection.sendall(head + framed + get("/livez", *TO_HTTP_2) + get("/livez", "Connection: close"))
        while data := connection.recv(65_536):
            received += data
    answers = [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]
    assert answers == [200 if accept == SSE else 202, 200, 200]


@pytest.mark.parametrize("late", [False, True])
def test_requests_that_ask_for_another_protocol_behind_a_stream_wait_as_others(stack: Stack, late: bool) -> None:
    generation = stack.submit({"tokens": 40, "seed": 5, "tokens_per_second": 40})
    body = json.dumps(job({"tokens": 5})).encode()
    lines = ["POST /v1/generations HTTP/1.1", "Host: x", *TO_HTTP_2, f"Content-Length: {len(body)}", "", ""]
    head = "\r\n".join(lines).encode()
    received = b""
    with connect(stack) as connection:
        connection.sendall(get(events_path(generation), f"Accept: {SSE}", *TO_HTTP_2) + (b"" if late else head))
        while b"delta" not in received:
            received += connection.recv(65_536)
        if late:
            connection.sendall(head)
        connection.sendall(body)
        connection.sendall(get("/livez", "Connection: close"))
        while data := connection.recv(65_536):
            received += data
    whole, behind = chunks(received.partition(b"\r\n\r\n")[2])
    assert b"event: completed" in whole
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", behind)] == [202, 200]


def test_a_websocket_asked_for_right_behind_a_stream_does_not_speak_into_it(stack: Stack) -> None:
    """There would be no telling the two apart: the connection is closed."""
    generation = stack.submit({"tokens": 20, "seed": 5, "tokens_per_second": 40})
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    received = b""
    with connect(stack) as connection:
        path = events_path(generation)
        connection.sendall(get(path, f"Accept: {SSE}") + get(path.replace("/events", "/ws"), *upgrade))
        while data := connection.recv(65_536):
            received += data
    assert b"HTTP/1.1 101" not in received

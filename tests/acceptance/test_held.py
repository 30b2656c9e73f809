"""Connections of streams that wait are out of the server's hands, and come back into them: nobody outside can tell."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from tests.support.sse_client import SSE, events_path
from tests.support.stack import Stack, eventually
from worker.providers.sim import sim_text

#: The generation is paused behind these, by pausing its worker: everything shown is read, and the stream waits.
SHOWN = 5
TOKENS = 40
READ_SECONDS = 30.0


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # No keepalive comes within a test: that a reader has left is not to be learnt by writing to it.
    environment = {"LEGATO_LEASE_SECONDS": "30", "LEGATO_PING_SECONDS": "300"}
    with Stack.start(redis_url, tmp_path_factory.mktemp("held"), environment=environment) as running:
        yield running


class Connection:
    """One connection, with every byte that came."""

    def __init__(self, stack: Stack) -> None:
        address = urlsplit(stack.urls[0])
        assert address.hostname is not None
        assert address.port is not None
        self.socket = socket.create_connection((address.hostname, address.port), timeout=READ_SECONDS)
        self.socket.settimeout(READ_SECONDS)
        self.taken = b""

    def ask(self, path: str, accept: str = SSE) -> None:
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nAccept: {accept}\r\n\r\n".encode())

    def until(self, pattern: bytes) -> bytes:
        """Read until the pattern came; what stands up to its end is taken."""
        while (found := re.search(pattern, self.taken, re.DOTALL)) is None:
            more = self.socket.recv(65536)
            assert more, f"the connection ended behind {self.taken[-300:]!r}"
            self.taken += more
        text, self.taken = self.taken[: found.end()], self.taken[found.end() :]
        return text


@contextmanager
def waiting(stack: Stack) -> Iterator[tuple[str, Connection]]:
    """A stream that has been sent everything, and is held. The worker goes on when the block says so."""
    generation = stack.submit({"tokens": TOKENS, "seed": 7, "tokens_per_second": 10})
    stack.wait_entries(generation, SHOWN)
    stack.workers[0].pause()
    connection = Connection(stack)
    try:
        connection.ask(events_path(generation))
        connection.until(rb"event: delta\nid: \d+-1\n")
        yield generation, connection
    finally:
        connection.socket.close()
        stack.workers[0].resume()


def viewers(stack: Stack) -> int:
    found = re.search(r"^legato_viewers (\d+)$", stack.get("/metrics").body.decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def text_of(body: bytes) -> str:
    """The text of a body that was not cut."""
    return "".join(json.loads(data)["text"] for data in re.findall(rb"data: (\{\"text\":.*?\})\n", body))


def test_the_connection_serves_its_next_request_when_the_stream_has_ended(stack: Stack) -> None:
    with waiting(stack) as (generation, connection):
        stack.workers[0].resume()
        connection.until(rb"event: completed\n.*?\r\n0\r\n\r\n")
        connection.ask(f"/v1/generations/{generation}", "application/json")
        assert connection.until(rb"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        assert sim_text(TOKENS, 7).split()[-1].encode() in connection.until(rb"\}$")
        connection.ask(events_path(generation))
        body = connection.until(rb"event: completed\n.*?\r\n0\r\n\r\n")
        assert text_of(body) == sim_text(TOKENS, 7)


def test_a_request_that_was_sent_ahead_is_answered_behind_the_stream(stack: Stack) -> None:
    with waiting(stack) as (generation, connection):
        eventually(lambda: viewers(stack) == 1, "the stream is held")
        connection.ask("/livez", "*/*")
        connection.ask(f"/v1/generations/{generation}", "application/json")
        stack.workers[0].resume()
        connection.until(rb"event: completed\n.*?\r\n0\r\n\r\n")
        assert connection.until(rb"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        assert b'"status":"completed"' in connection.until(rb'"status":"completed"')


def test_a_reader_that_leaves_is_counted_no_more(stack: Stack) -> None:
    with waiting(stack) as (_, connection):
        eventually(lambda: viewers(stack) == 1, "it is counted")
        connection.socket.close()
        eventually(lambda: viewers(stack) == 0, "it is not")
        topics = stack.get("/metrics").body.decode()
        assert "legato_topics 0\n" in topics


def test_a_stream_of_a_deleted_generation_ends_and_says_so(stack: Stack) -> None:
    with waiting(stack) as (generation, connection):
        eventually(lambda: viewers(stack) == 1, "it is held")
        assert stack.delete(f"/v1/generations/{generation}").status == 204
        body = connection.until(rb"event: cancelled\n.*?\r\n0\r\n\r\n")
        assert b'{"reason":"deleted"}' in body


@pytest.mark.parametrize("sent", ["with the request", "once the answer has begun"])
def test_a_reader_that_sends_a_body_is_read_on_and_missed_when_it_leaves(stack: Stack, sent: str) -> None:
    """A body means nothing here. It is more than the server takes unread."""
    body = b"x" * 300_000
    with waiting(stack) as (generation, first):
        first.socket.close()
        eventually(lambda: viewers(stack) == 0, "nobody is there")
        connection = Connection(stack)
        head = (
            f"GET {events_path(generation)} HTTP/1.1\r\nHost: h\r\nAccept: {SSE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.socket.sendall(head.encode() + (body if sent == "with the request" else b""))
        connection.until(rb"event: delta\n")
        if sent == "once the answer has begun":
            connection.socket.sendall(body)
        eventually(lambda: viewers(stack) == 1, "it is counted")
        connection.socket.close()
        eventually(lambda: viewers(stack) == 0, "it is not")

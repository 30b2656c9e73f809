"""An HTTP client on a bare socket, for what libraries hide: how a body ended, and where a connection broke.

`request` is for whole answers. `Stream` reads a body as it comes, may cut the connection at any byte, and tells a clean
end from an incomplete one and from a reset. `Reader` is the least client the protocol allows, fed with frames; `follow`
puts both together: it reads a generation to its end, coming back with its cursor as often as it must.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
TERMINAL = frozenset({"completed", "failed", "cancelled"})
#: How long one read may wait. A test that waits longer for a byte has failed.
READ_SECONDS = 120.0
#: Bytes of one read.
READ_BYTES = 65_536


class Ending(Enum):
    """How a body ended."""

    CLEAN = "clean"  # as its framing says a whole body ends
    INCOMPLETE = "incomplete"  # the connection was closed before that
    RESET = "reset"  # the connection was reset
    CUT = "cut"  # by this client


class BadHttp(AssertionError):
    """The server sent something that is not HTTP."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as a client sees it. `id` is None where the frame had none."""

    id: str | None
    event: str
    data: Any
    retry: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    ending: Ending
    version: str

    def json(self) -> Any:
        return json.loads(self.body)


class _Body:
    """Takes the framing of a body off, incrementally. `done` once the framing says that the body is whole.

    `version` is what the client speaks: one of HTTP/1.0 knows no chunks, and takes their sizes for text.
    """

    def __init__(self, method: str, status: int, headers: Mapping[str, str], version: str) -> None:
        self.done = False
        self.until_close = False
        self._buffer = b""
        self._left = 0
        self._chunked = False
        self._trailer = False
        if method == "HEAD" or status in (204, 304):
            self.done = True
        elif version != "1.0" and "chunked" in headers.get("transfer-encoding", ""):
            self._chunked = True
        elif "content-length" in headers:
            self._left = int(headers["content-length"])
            self.done = self._left == 0
        else:
            self.until_close = True

    def feed(self, data: bytes) -> bytes:
        if self.until_close:
            return data
        if not self._chunked:
            taken, self._left = data[: self._left], max(0, self._left - len(data))
            self.done = self._left == 0
            return taken
        self._buffer += data
        out = []
        while self._buffer and not self.done:
            if self._left:  # of this chunk, its CRLF included
                text = max(0, self._left - 2)
                piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
                out.append(piece[:text])
                self._left -= len(piece)
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                break
            self._buffer = rest
            if self._trailer:
                self.done = not line
                continue
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError as exc:
                raise BadHttp(f"no chunk size: {line[:60]!r}") from exc
            self._left = size + 2 if size else 0
            self._trailer = size == 0
        return b"".join(out)


class SseParser:
    """Bytes in, frames out. Keeps the raw pings apart, and takes no block that is not whole."""

    def __init__(self) -> None:
        self.pings = 0
        self.blank_blocks = 0  # blank lines that ended no block: an empty event to some parsers
        self._partial = b""
        self._fields: dict[str, str] = {}

    @property
    def mid_frame(self) -> bool:
        """Whether the bytes so far stop within a frame."""
        return bool(self._partial or self._fields)

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            text = line.decode()
            if text.startswith(":"):
                assert text == ": ping", text
                assert not self._fields, f"a ping within a frame: {self._fields}"
                self.pings += 1
            elif text:
                name, _, value = text.partition(": ")
                assert name in ("event", "id", "retry", "data"), text
                assert name not in self._fields, f"{name} twice in a frame"
                self._fields[name] = value
            elif not self._fields:
                self.blank_blocks += 1
            else:
                fields, self._fields = self._fields, {}
                order = [name for name in ("event", "id", "retry", "data") if name in fields]
                assert list(fields) == order, f"the order of the fields is {list(fields)}"
                retry = int(fields["retry"]) if "retry" in fields else None
                yield Frame(fields.get("id"), fields["event"], json.loads(fields["data"]), retry)


class NdjsonParser:
    """One object a line."""

    def __init__(self) -> None:
        self.pings = 0
        self.blank_blocks = 0
        self._partial = b""

    @property
    def mid_frame(self) -> bool:
        return bool(self._partial)

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            read = json.loads(line)
            if read["event"] == "ping":
                assert read == {"event": "ping"}
                self.pings += 1
            else:
                yield Frame(read.get("id"), read["event"], read.get("data"))


class Stream:
    """One request whose answer is read as it comes. `ending` is set when its body is over.

    `cut_at` closes the connection as soon as that many bytes of the answer, its head included, have been read: what
    arrived before is still given out, as a client would have it. `receive_bytes` bounds the socket's own buffer.
    """

    def __init__(
        self,
        url: str,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        version: str = "1.1",
        cut_at: int | None = None,
        cut_by_reset: bool = False,
        receive_bytes: int | None = None,
        seconds: float = READ_SECONDS,
        raw_head: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.version = ""
        self.ending: Ending | None = None
        self.raw_bytes = 0
        self.read_bytes = READ_BYTES  # most bytes of one read; may be changed on the way
        self.parser: SseParser | NdjsonParser = SseParser()
        self._method = method
        self._spoken = version
        self._cut_at = cut_at
        self._cut_by_reset = cut_by_reset
        self._early = b""
        parts = urlsplit(url)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if receive_bytes is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self.socket.settimeout(seconds)
            self.socket.connect((parts.hostname, parts.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(_head(parts.netloc, method, path, headers or {}, raw_head, body, version))
            if body:
                self._send_body(body)
            self._read_head()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def cut(self, *, reset: bool = False) -> None:
        """Close the connection now, with a reset if asked."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.ending = Ending.CUT

    def pieces(self) -> Iterator[bytes]:
        """The body, as it comes; `ending` tells afterwards how it ended."""
        while self.ending is None:
            data, self._early = (self._early, b"") if self._early else (self._receive(self.read_bytes), b"")
            piece = self._body.feed(data) if data else b""
            if self._body.done:
                self.ending = Ending.CLEAN
            if piece:
                yield piece

    def frames(self) -> Iterator[Frame]:
        """The body's events, as they come. Ask once: who drops the iterator loses what it has read."""
        for piece in self.pieces():
            yield from self.parser.feed(piece)

    def rest(self) -> bytes:
        """The body to its end."""
        return b"".join(self.pieces())

    def _send_body(self, body: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # a body may be refused before it is read to its end
            self.socket.sendall(body)

    def _receive(self, most: int) -> bytes:
        """The next bytes, or b"" with `ending` set."""
        if self._cut_at is not None:
            most = min(most, self._cut_at - self.raw_bytes)
            if most <= 0:
                self.cut(reset=self._cut_by_reset)
                return b""
        try:
            data = self.socket.recv(most)
        except ConnectionResetError:
            self.ending = Ending.RESET
            return b""
        self.raw_bytes += len(data)
        if not data:
            whole = self.status and self._body.until_close
            self.ending = Ending.CLEAN if whole else Ending.INCOMPLETE
        return data

    def _read_head(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = self._receive(READ_BYTES)
            if not more:
                if self.ending is Ending.CUT:
                    return
                raise ConnectionError(f"no answer, but {data!r} ({self.ending})")
            data += more
            while data.startswith(b"HTTP/1.1 100 ") and b"\r\n\r\n" in data:
                data = data.partition(b"\r\n\r\n")[2]
        head, _, self._early = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.version, status, *_ = first.split(" ")
        self.status = int(status)
        for line in lines:
            name, _, value = line.partition(":")
            known = self.headers.get(name.lower())
            self.headers[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"
        if NDJSON in self.headers.get("content-type", ""):
            self.parser = NdjsonParser()
        self._body = _Body(self._method, self.status, self.headers, self._spoken)
        if self._body.done:
            self.ending = Ending.CLEAN


def request(
    url: str,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    version: str = "1.1",
    seconds: float = READ_SECONDS,
    raw_head: Sequence[tuple[str, str]] = (),
) -> Answer:
    """Ask, and read the whole answer. `raw_head` are further header lines, which may repeat."""
    with Stream(
        url,
        path,
        method=method,
        headers={"Connection": "close", **(headers or {})},
        body=body,
        version=version,
        seconds=seconds,
        raw_head=raw_head,
    ) as stream:
        whole = stream.rest()
        assert stream.ending is not None
        return Answer(stream.status, stream.headers, whole, stream.ending, stream.version)


@dataclass(slots=True)
class Reader:
    """The least a client must do, and a record of what it was shown.

    Appends `delta.text`, clears on `reset`, replaces on `snapshot`, takes `open` anywhere, stops at a terminal event.
    Fails on an id it has seen, on one that goes back, and on a frame after the terminal one.
    """

    cursor: str | None = None
    text: str = ""
    ended: Frame | None = None
    opens: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)  # names, of all but `delta` and `open`
    errors: list[dict[str, Any]] = field(default_factory=list)

    def take(self, frame: Frame) -> None:
        """Take in the next frame."""
        assert self.ended is None, f"{frame} after the end"
        if frame.id is not None:
            if frame.event != "snapshot":
                assert self.cursor is None or _seq(frame.id) > _seq(self.cursor), f"{frame.id} after {self.cursor}"
                self.ids.append(frame.id)
            self.cursor = frame.id
        match frame.event:
            case "open":
                self.opens.append(frame.data)
                return
            case "delta":
                if "kind" not in frame.data:
                    self.text += frame.data["text"]
                return
            case "reset":
                self.text = ""
            case "snapshot":
                self.text = frame.data["text"]
            case "error":
                self.errors.append(frame.data)
            case name if name in TERMINAL:
                self.ended = frame
        self.events.append(frame.event)


def events_path(generation: str, query: str = "") -> str:
    return f"/v1/generations/{generation}/events" + (f"?{query}" if query else "")


def open_stream(
    url: str, generation: str, cursor: str | None = None, *, accept: str = SSE, query: str = "", **options: Any
) -> Stream:
    """Attach a viewer behind `cursor`."""
    headers = {"Accept": accept} | ({"Last-Event-ID": cursor} if cursor is not None else {})
    return Stream(url, events_path(generation, query), headers=headers, **options)


def read(
    url: str, generation: str, cursor: str | None = None, *, accept: str = SSE, query: str = "", **options: Any
) -> tuple[Reader, Stream]:
    """Read one body to its end, with one connection."""
    reader = Reader(cursor)
    with open_stream(url, generation, cursor, accept=accept, query=query, **options) as stream:
        for frame in stream.frames():
            reader.take(frame)
    return reader, stream


def follow(
    urls: Sequence[str],
    generation: str,
    *,
    cuts: Iterator[int | None] | None = None,
    accept: str = SSE,
    reset: bool = False,
    seconds: float = 90.0,
    pause_seconds: float = 0.05,
) -> tuple[Reader, int]:
    """Read a generation to its terminal event, from another URL after every break; the reader, and how many connections
    it took. `cuts` are bytes after which this client breaks each connection itself, None for never."""
    reader = Reader()
    deadline = time.monotonic() + seconds
    connections = 0
    while reader.ended is None:
        assert time.monotonic() < deadline, f"no end after {seconds:g} s and {connections} connections: {reader.events}"
        cut_at = next(cuts, None) if cuts is not None else None
        url = urls[connections % len(urls)]
        connections += 1
        try:
            with open_stream(
                url, generation, reader.cursor, accept=accept, cut_at=cut_at, cut_by_reset=reset
            ) as stream:
                if stream.ending is Ending.CUT:
                    continue
                assert stream.status == 200, (stream.status, stream.rest())
                for frame in stream.frames():
                    reader.take(frame)
        except ConnectionError:
            pass
        if reader.ended is None and cut_at is None:
            time.sleep(pause_seconds)
    return reader, connections


def _seq(position: str) -> int:
    return int(position.partition("-")[0])


def _head(
    host: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    more: Sequence[tuple[str, str]],
    body: bytes | None,
    version: str,
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in [*headers.items(), *more]]
    named = {name.lower() for name in headers}
    if body is not None and not named & {"content-length", "transfer-encoding"}:
        lines += [f"Content-Length: {len(body)}"]
        if body and "content-type" not in named:
            lines += ["Content-Type: application/json"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "surrogateescape")

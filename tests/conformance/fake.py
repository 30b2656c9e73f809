"""The scripted server: each request gets the next part of the script, and is written down."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.conformance.script import End, Entry, Pause, Reply, reply

#: How long a silence lasts at most: a client that has not left by then will not.
SILENCE_SECONDS: Final = 8.0


@dataclass(slots=True)
class Asked:
    """One request. Times are of a monotonic clock."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float
    answered_at: float = field(default=0.0)  # when the last of the answer began to be sent
    left: bool = False  # the client closed the connection while it was silent

    @property
    def cursor(self) -> str | None:
        return self.headers.get("last-event-id")


class Fake:
    """Listens on a loopback port while it is entered. `start_after_ms` refuses connections until then; None, for
    ever."""

    def __init__(
        self,
        connections: Sequence[Mapping[str, Any]],
        logs: Sequence[Sequence[Entry]],
        *,
        start_after_ms: int | None = 0,
    ) -> None:
        self._script = connections
        self._logs = logs
        self._start_after_ms = start_after_ms
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._faults: list[str] = []
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def faults(self) -> list[str]:
        """What went wrong here, and not at the client."""
        return list(self._faults)

    def __enter__(self) -> Self:
        if self._start_after_ms is not None:
            if not self._start_after_ms:
                self._socket.listen(64)  # now: a client that gives up at once asks once, however late the thread is
            self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(SILENCE_SECONDS)

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(work, *arguments), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as exc:  # noqa: BLE001 - a defect of the suite must not look like one of the client
            self._faults.append(f"the scripted server: {exc!r}")

    def _accept(self) -> None:
        if self._start_after_ms:
            if self._closing.wait(self._start_after_ms / 1000):
                return
            self._socket.listen(64)
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(SILENCE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                asked = _read_request(connection)
            except OSError:
                return
            if asked is None:  # a connection that was opened in advance, and not used
                return
            with self._lock:
                number = len(self.asked)
                self.asked.append(asked)
            if number >= len(self._script):
                # Nobody expected it. What ends every client: there is nothing here any more.
                answer = reply({"status": 410, "problem": "gone"}, [], cursor=None, snapshot=False, host="")
            else:
                answer = reply(
                    self._script[number],
                    self._logs[number],
                    cursor=asked.cursor or asked.query.get("last_event_id"),
                    snapshot=asked.query.get("from") == "snapshot",
                    host=self.url,
                )
            with suppress(OSError):
                self._send(connection, answer, asked)

    def _send(self, connection: socket.socket, answer: Reply, asked: Asked) -> None:
        asked.answered_at = time.monotonic()  # before, and not behind: a client may have it while this stands still
        if answer.head is not None:
            status, headers = answer.head
            whole = not headers.get("Content-Type", "").startswith("text/event-stream") and answer.end is End.CLEAN
            body = b"".join(piece for piece in answer.pieces if isinstance(piece, bytes))
            framing = {"Content-Length": str(len(body))} if whole else {"Transfer-Encoding": "chunked"}
            if status == 204:
                framing = {}
            lines = [f"HTTP/1.1 {status} Scripted"]
            lines += [f"{name}: {value}" for name, value in {**headers, **framing, "Connection": "close"}.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            if whole or status == 204:
                connection.sendall(body)
            else:
                self._send_chunks(connection, answer, asked)
        if answer.end is End.RESET:
            time.sleep(0.02)  # a reset destroys what has not been read yet; this is about what has
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send_chunks(self, connection: socket.socket, answer: Reply, asked: Asked) -> None:
        for piece in answer.pieces:
            if isinstance(piece, Pause):
                self._closing.wait(piece.seconds)
            elif piece:
                asked.answered_at = time.monotonic()
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        if answer.end is End.CLEAN:
            connection.sendall(b"0\r\n\r\n")
        elif answer.end is End.SILENCE:
            asked.left = self._left(connection)

    def _left(self, connection: socket.socket) -> bool:
        """Wait until the client has closed its end; False if it does not."""
        deadline = time.monotonic() + SILENCE_SECONDS
        while time.monotonic() < deadline and not self._closing.is_set():
            if select.select([connection], [], [], 0.05)[0]:
                try:
                    return not connection.recv(4096)
                except OSError:
                    return True
        return False


def _read_request(connection: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65_536)
        if not more:
            return None
        data += more
    at = time.monotonic()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65_536)
    parts = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return Asked(method, parts.path, query, headers, body, at)

"""Reads server-sent events as a client that comes back has to: with their ids, and the server's `retry:`. Pure.

`worker.sse` reads providers' streams, which are never resumed: it drops ids, and it limits a block to 1 MiB, which a
snapshot of a long text may pass. Hence a second reader, for the client's side. Bytes may be cut anywhere; a block that
its stream never finished is discarded, and its id with it, so the cursor names whole events only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

#: Events after which nothing comes.
TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Frame:
    """One event; `id` is None where its block had none."""

    id: str | None
    event: str
    raw: bytes

    @property
    def data(self) -> dict[str, Any]:
        """Raises `orjson.JSONDecodeError` for what is not JSON; JSON that is no object is an empty one."""
        value = orjson.loads(self.raw)
        return value if isinstance(value, dict) else {}


class EventReader:
    """Incremental; one a response. `retry_ms` is the last `retry:` seen."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._partial = bytearray()
        self._after_cr = False
        self._event = ""
        self._id: str | None = None
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """The events that `chunk` completes, in order."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            self._partial += chunk
            return []
        *lines, rest = (bytes(self._partial) + chunk).split(b"\n")
        self._partial = bytearray(rest)
        return [frame for line in lines if (frame := self._line(line)) is not None]

    def _line(self, line: bytes) -> Frame | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._event = value.decode(errors="replace")
            case b"id" if b"\0" not in value:
                self._id = value.decode(errors="replace")
            case b"retry" if value.isdigit():
                self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Frame | None:
        event, place, data = self._event or "message", self._id, self._data
        self._event, self._id, self._data = "", None, []
        return Frame(place, event, b"\n".join(data)) if data else None

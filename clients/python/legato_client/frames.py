"""Server-sent events: bytes in, frames out. Pure.

By the rules of WHATWG, but for one: an id belongs to its own block. A browser keeps the last id for blocks that have
none; the protocol gives no id to what is not in the log, and a cursor must not seem to be theirs. Bytes may be cut
anywhere, within a character too. A block that its body never finished is not given out, so an id names a whole event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from legato_client.errors import Garbled

#: Longest block that is taken. A snapshot holds a whole text; this is some hundred times the longest answer of a model.
MAX_BLOCK_BYTES: Final = 64 * 1024 * 1024

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Frame:
    """One block. `id` is None where it had none, `retry_ms` is its `retry:`, if it had one. Without `data` there was
    only that."""

    event: str
    id: str | None
    data: bytes
    retry_ms: int | None = None


class FrameParser:
    """Incremental; one for each body."""

    def __init__(self, *, max_block_bytes: int = MAX_BLOCK_BYTES) -> None:
        self._max_block_bytes = max_block_bytes
        self._partial: list[bytes] = []  # pieces of a line that has not ended
        self._held_bytes = 0  # of the block that has not ended
        self._first = True
        self._after_cr = False
        self._event = ""
        self._id: str | None = None
        self._retry_ms: int | None = None
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes, in order. Raises `Garbled` for a block that is too long."""
        if self._first:
            chunk = self._without_bom(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._held_bytes += len(chunk)
        head, *rest = chunk.split(b"\n")
        self._partial.append(head)
        found: list[Frame] = []
        if rest:
            lines = [b"".join(self._partial), *rest[:-1]]
            self._partial = [rest[-1]]
            for line in lines:
                if line:
                    self._line(line)
                elif (frame := self._dispatch()) is not None:
                    found.append(frame)
            self._held_bytes = len(rest[-1]) + sum(map(len, self._data))
        if self._held_bytes > self._max_block_bytes:
            raise Garbled(f"a block of more than {self._max_block_bytes} bytes")
        return found

    def _without_bom(self, chunk: bytes) -> bytes:
        """A byte order mark may come first, and may itself come in pieces."""
        chunk = b"".join(self._partial) + chunk
        self._partial = []
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._partial = [chunk]
            return b""
        self._first = False
        return chunk.removeprefix(_BOM)

    def _line(self, line: bytes) -> None:
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
                self._retry_ms = int(value[:12])

    def _dispatch(self) -> Frame | None:
        frame = Frame(self._event or "message", self._id or None, b"\n".join(self._data), self._retry_ms)
        self._event, self._id, self._retry_ms, self._data = "", None, None, []
        return frame if frame.data or frame.retry_ms is not None else None

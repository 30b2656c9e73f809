"""A minimal HTTP/1.1 reader that knows at every byte where in the answer it is, so that the demo can cut there. Pure.

It reads what our server sends (a status line, headers, chunks) and nothing else.
"""

from __future__ import annotations

from enum import Enum


class Place(Enum):
    """What the last byte was part of."""

    HEADER = "in the HTTP header"
    CHUNK = "in a chunk's size"
    EVENT = "in an event's name"
    ID = "in an id"
    DATA = "in the data"
    CHARACTER = "inside a character"
    LINES = "between two lines of a frame"
    FRAMES = "between two frames"


class NotHttp(ValueError):
    """The answer is not what our server sends."""


class Wire:
    """One response. `feed` it byte by byte."""

    def __init__(self) -> None:
        self.place = Place.HEADER
        self.ended = False  # the last chunk was there: nothing is missing
        self.status = 0
        self.headers: dict[str, str] = {}
        self.line_bytes = 0  # of the body, since the last line end
        self._head = bytearray()
        self._size = bytearray()
        self._left = 0  # of the chunk
        self._line = bytearray()  # of the body: what stands since the last line end
        self._continuation = 0  # bytes that the character still needs

    def feed(self, byte: bytes) -> bytes:
        """One byte in, the byte of the body out, or nothing. Raises `NotHttp`."""
        if self.ended:
            return b""
        if not self.status:
            self._head += byte
            if self._head.endswith(b"\r\n\r\n"):
                self._read_head()
            return b""
        if self._left:
            self._left -= 1
            self._note(byte[0])
            return byte
        self.place = Place.CHUNK
        self._size += byte
        if self._size != b"\r\n" and self._size.endswith(b"\r\n"):  # a lone line end is that of the chunk before
            try:
                self._left = int(self._size, 16)
            except ValueError:
                raise NotHttp(f"{bytes(self._size)!r} is no size of a chunk") from None
            self.ended = self._left == 0
            self._size.clear()
        return b""

    def _read_head(self) -> None:
        status, *lines = self._head.decode("latin-1").split("\r\n")
        self.headers = {
            name.lower(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon
        }
        try:
            self.status = int(status.split()[1])
        except (IndexError, ValueError):
            raise NotHttp(f"{status!r} is no status line") from None

    def _note(self, byte: int) -> None:
        """Where in the event stream this byte is."""
        if byte == 0x0A:
            self.place = Place.LINES if self._line else Place.FRAMES
            self._line.clear()
            self.line_bytes = 0
            return
        self.line_bytes += 1
        if byte & 0xC0 == 0x80:
            self._continuation -= 1
        else:
            self._continuation = (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
        if len(self._line) < 5:
            self._line.append(byte)
        if self._continuation:
            self.place = Place.CHARACTER
        elif self._line.startswith(b"data"):
            self.place = Place.DATA
        elif self._line.startswith(b"id"):
            self.place = Place.ID
        else:
            self.place = Place.EVENT

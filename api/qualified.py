"""Frames that say which generation they are about. Pure."""

from __future__ import annotations

import re
from typing import Final

from api.cursors import Composite, tag_of
from api.frames import Framing


class QualifiedFraming(Framing):
    """The frames of one generation in another framing, under ids `<generation>/<position>`."""

    def __init__(self, inner: Framing, generation: str) -> None:
        self.media_type = inner.media_type
        self.ping = inner.ping
        self._inner = inner
        self._generation = generation

    def frame(self, event: bytes, data: bytes, position: str | None = None, *, retry_ms: int | None = None) -> bytes:
        """See `Framing`."""
        place = None if position is None else f"{self._generation}/{position}"
        return self._inner.frame(event, data, place, retry_ms=retry_ms)


#: A place in a frame that waits for its composite id. JSON as we write it holds no NUL, and nothing else here does.
_MARK: Final = re.compile(rb"\0([^/\0]+)/([^\0]+)\0")


class MarkedFraming(Framing):
    """The frames of one of many generations in another framing: the data says whose they are, and the id is a mark that
    `composed` replaces when they are sent. Only then is known which frames of the others the reader has before."""

    ping = b""  # one for all is sent by who puts them together

    def __init__(self, inner: Framing, generation: str) -> None:
        self.media_type = inner.media_type
        self._inner = inner
        self._tag = tag_of(generation)
        self._name = b'{"generation":"' + generation.encode() + b'"'

    def frame(self, event: bytes, data: bytes, position: str | None = None, *, retry_ms: int | None = None) -> bytes:
        """See `Framing`."""
        if event != b"open":  # which says it by itself
            data = self._name + (b"," if data != b"{}" else b"") + data[1:]
        place = None if position is None else f"\0{self._tag}/{position}\0"
        return self._inner.frame(event, data, place, retry_ms=retry_ms)


def composed(frames: bytes, cursor: Composite) -> bytes:
    """Frames of marked framings in the order in which they are sent; `cursor` moves with them."""
    return _MARK.sub(lambda mark: cursor.move(mark[1].decode(), mark[2].decode()).encode(), frames)

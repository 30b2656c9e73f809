"""Frames whose ids say which generation they are about. Pure."""

from __future__ import annotations

from api.frames import Framing, as_chunk
from broker.events import Entry, wire


class QualifiedFraming:
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

    def entry(self, entry: Entry) -> bytes:
        """See `Framing`."""
        event, data = wire(entry)
        return self.frame(event, data, entry.position)

    def chunk(self, entry: Entry) -> bytes:
        """See `Framing`."""
        return as_chunk(self.entry(entry))

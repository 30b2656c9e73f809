"""Frames of the native dialect: what the log says, as bytes on a wire. Pure.

A `Framing` is one way to write the same events; every transport has one. Frames of the log's own entries carry their
position, the others (`open`, `error`, pings) never do, so a client's cursor moves with logged events only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import Final, Protocol

import orjson

from broker.events import DELTA_FIELDS, TEXT_FIELD, DeltaKind, Entry, Json, delta_data, wire
from broker.joined import JOINED_BYTES, Row

#: Text joined into one frame at most, in bytes: a reader whose connection is cut gets on by whole frames.
MERGED_BYTES: Final = JOINED_BYTES

#: A frame of a delta, without its position and its data.
_DELTA_BYTES: Final = len(b"event: delta\nid: \ndata: \n\n")


class Framing(Protocol):
    """One way to write events. Derive from it: what is needed is `frame`."""

    media_type: bytes
    ping: bytes

    def frame(self, event: bytes, data: bytes, position: str | None = None, *, retry_ms: int | None = None) -> bytes:
        """One event. `data` is one line of JSON; without a `position` the reader's cursor stays."""
        ...

    def entry(self, entry: Entry) -> bytes:
        """One logged event. The same function object for all viewers, so that it is encoded once for all."""
        event, data = wire(entry)
        return self.frame(event, data, entry.position)

    def chunk(self, entry: Entry) -> bytes:
        """The same, as one chunk of an HTTP/1.1 body."""
        return as_chunk(self.entry(entry))


class _Sse(Framing):
    """Server-sent events. The ping is one line with no blank line after it: some parsers make an empty event of a
    comment block that follows an id."""

    media_type = b"text/event-stream"
    ping = b": ping\n"

    def frame(self, event: bytes, data: bytes, position: str | None = None, *, retry_ms: int | None = None) -> bytes:
        place = b"" if position is None else b"\nid: " + position.encode()
        retry = b"" if retry_ms is None else b"\nretry: %d" % retry_ms
        return b"event: %b%b%b\ndata: %b\n\n" % (event, place, retry, data)

    def entry(self, entry: Entry) -> bytes:
        event, data = wire(entry)
        return b"event: %b\nid: %b\ndata: %b\n\n" % (event, entry.position.encode(), data)

    def chunk(self, entry: Entry) -> bytes:
        if entry.field != TEXT_FIELD:
            return as_chunk(self.entry(entry))
        place, data = entry.position.encode(), delta_data(DeltaKind.TEXT, entry.payload.decode())
        size = _DELTA_BYTES + len(place) + len(data)
        return b"%x\r\nevent: delta\nid: %b\ndata: %b\n\n\r\n" % (size, place, data)


class _Ndjson(Framing):
    """One `{"id", "event", "data"}` a line."""

    media_type = b"application/x-ndjson"
    ping = b'{"event":"ping"}\n'

    def frame(self, event: bytes, data: bytes, position: str | None = None, *, retry_ms: int | None = None) -> bytes:
        place = b"" if position is None else b'"id":"%b",' % position.encode()
        return b'{%b"event":"%b","data":%b}\n' % (place, event, data)


def as_chunk(body: bytes) -> bytes:
    """A piece of body as HTTP/1.1 frames it where there is no length (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


SSE: Final[Framing] = _Sse()
NDJSON: Final[Framing] = _Ndjson()


def merged(rows: Sequence[Row]) -> list[tuple[str, bytes, bytes]]:
    """The rows as `(position, event, data)`, consecutive deltas of one kind joined under the last one's position.

    Nothing else is merged, and nothing is reordered. The first event of each epoch is never a delta, so a joined frame
    stands for one attempt's text only.
    """
    out: list[tuple[str, bytes, bytes]] = []
    at = 0
    for field, same in groupby([stored[0] for _, stored in rows]):
        first, at = at, at + len(list(same))
        kind = DELTA_FIELDS.get(field)
        if kind is None:
            out += [(place.decode(), field, stored[1]) for place, stored in rows[first:at]]
            continue
        payloads = [stored[1] for _, stored in rows[first:at]]
        for text, count in _joined(payloads):
            first += count
            out.append((rows[first - 1][0].decode(), b"delta", delta_data(kind, text.decode())))
    return out


def _joined(payloads: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """The payloads, at most `MERGED_BYTES` put together, one at least; each time with their number."""
    text = b"".join(payloads)
    if len(text) <= MERGED_BYTES:
        yield text, len(payloads)
        return
    ends = [0, *accumulate(map(len, payloads))]
    at = 0
    while at < len(payloads):
        stop = max(at + 1, bisect_right(ends, ends[at] + MERGED_BYTES) - 1)
        yield text[ends[at] : ends[stop]], stop - at
        at = stop


def open_data(
    *,
    generation: str | None,
    verdict: str | None,
    cursor: str,
    head: str | None,
    status: str | None,
    attempt: int | None,
) -> bytes:
    """The data of `open`: what the reader gets, and why."""
    data: Json = {
        "generation": generation,
        "verdict": verdict,
        "from": cursor,
        "head": head,
        "status": status,
        "attempt": attempt,
    }
    return orjson.dumps(data)

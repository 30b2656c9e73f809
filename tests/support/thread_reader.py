"""A device that follows a thread: the least client for routes whose ids say which generation they are about."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from tests.support.sse_client import SSE, Ending, Frame, Reader, Stream


def thread_path(thread: str, rest: str = "/events") -> str:
    return f"/v1/threads/{quote(thread, safe='')}{rest}"


def open_thread(url: str, thread: str, cursor: str | None = None, *, accept: str = SSE, **options: object) -> Stream:
    """Attach to a thread behind `cursor`."""
    headers = {"Accept": accept} | ({"Last-Event-ID": cursor} if cursor is not None else {})
    return Stream(url, thread_path(thread), headers=headers, **options)  # type: ignore[arg-type]


@dataclass(slots=True)
class Device:
    """What it has shown: a reader for each generation, in the order in which they came."""

    cursor: str | None = None
    readers: dict[str, Reader] = field(default_factory=dict)

    def take(self, frame: Frame) -> None:
        """Take in the next frame of a body."""
        generation = next(reversed(self.readers), "")
        if frame.event == "open":
            generation = frame.data["generation"]
            self.readers.setdefault(generation, Reader())
        elif frame.id is not None:
            generation, _, position = frame.id.partition("/")
            self.cursor, frame = frame.id, replace(frame, id=position)
        self.readers[generation].take(frame)

    def read(self, url: str, thread: str, **options: object) -> Stream:
        """One body, from the cursor to its end."""
        with open_thread(url, thread, self.cursor, **options) as stream:
            for frame in stream.frames():
                self.take(frame)
        return stream

    @property
    def texts(self) -> dict[str, tuple[str, str]]:
        """Generation to text and name of the end, of those that ended."""
        return {name: (reader.text, reader.ended.event) for name, reader in self.readers.items() if reader.ended}

    def follow(
        self, urls: Sequence[str], thread: str, until: Callable[[], bool], *, cuts: Iterator[int | None] | None = None
    ) -> None:
        """Read on and on, also behind 204, until `until` holds."""
        deadline, turn = time.monotonic() + 90, 0
        while not until():
            assert time.monotonic() < deadline, self.texts
            turn += 1
            try:
                cut_at = next(cuts, None) if cuts else None
                stream = self.read(urls[turn % len(urls)], thread, cut_at=cut_at)
                assert stream.ending is Ending.CUT or stream.status in (200, 204), stream.status
            except ConnectionError:
                pass
            time.sleep(0.02)

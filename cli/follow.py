"""Follows one generation over as many connections as it takes.

The cursor is the last id of a whole event; every connection but the first carries it. The end is a terminal event or a
204, never the end of a body. After a cut it waits as long as the server's `retry:` asked, longer after each connection
that brought nothing, and gives up when `--timeout` has passed since the cut without a good one.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Final
from urllib.parse import quote

import httpx
import orjson

from cli.client import TRANSIENT, Client, backoff, retry_after
from cli.eventsource import TERMINAL, EventReader, Frame
from cli.exits import Exit, Failure, note

#: How long to wait after a cut where no server has said.
_DEFAULT_RETRY_SECONDS: Final = 1.0


class Follower:
    """Iterate over `batches()` once. `cursor` is the last event that was taken, to come back with."""

    def __init__(self, client: Client, generation: str, *, cursor: str | None = None, snapshot: bool = False) -> None:
        self.cursor = cursor
        self._client = client
        self._path = f"/v1/generations/{quote(generation, safe='')}/events"
        self._snapshot = snapshot
        self._retry_seconds = _DEFAULT_RETRY_SECONDS
        self._cut_at: float | None = None  # since then there is no good connection
        self._failures = 0

    def batches(self) -> Generator[list[Frame], None, None]:
        """Events as they come, those of one read together. Ends behind the terminal event, or without one where the
        cursor had seen it already. Raises `Failure` when it gives up or is refused."""
        while True:
            asked: float | None = None
            try:
                with self._client.stream(self._target(), headers=self._headers()) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        answer.read()
                        problem, asked = self._refused(answer), retry_after(answer)
                    else:
                        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                            raise Failure(Exit.UNAVAILABLE, f"{self._client.url} answers, but not as Legato does")
                        for frames in self._frames(answer):
                            yield frames
                            self.cursor = next((f.id for f in reversed(frames) if f.id is not None), self.cursor)
                            if frames[-1].event in TERMINAL:
                                return
                        problem = f"{self._client.url} ended the stream before its end"
            except httpx.RequestError as exc:
                problem = self._client.unreachable(exc)
            except orjson.JSONDecodeError as exc:
                raise Failure(Exit.UNAVAILABLE, f"{self._client.url} sent an event that is not JSON") from exc
            self._pause(problem, asked)

    def _frames(self, answer: httpx.Response) -> Iterator[list[Frame]]:
        reader = EventReader()
        for chunk in answer.iter_bytes():
            frames = reader.feed(chunk)
            if reader.retry_ms is not None:
                self._retry_seconds = reader.retry_ms / 1000
            end = next((at for at, frame in enumerate(frames) if frame.event in TERMINAL), len(frames))
            del frames[end + 1 :]
            if any(_is_good(frame) for frame in frames):
                self._cut_at, self._failures = None, 0
            if frames:
                yield frames

    def _target(self) -> str:
        return self._path + ("?from=snapshot" if self._snapshot and self.cursor is None else "")

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        return headers if self.cursor is None else {**headers, "Last-Event-ID": self.cursor}

    def _refused(self, answer: httpx.Response) -> str:
        failure = self._client.failure_of(answer)
        if answer.status_code < 500 and answer.status_code not in TRANSIENT:
            raise failure
        return failure.message

    def _pause(self, problem: str, asked: float | None) -> None:
        now = time.monotonic()
        if self._cut_at is None:
            self._cut_at = now
        left = self._cut_at + self._client.timeout_seconds - now
        if left <= 0:
            raise Failure(Exit.UNAVAILABLE, problem)
        if self._failures == 1:  # an ordinary cut is healed by the next connection, and not worth a word
            note(f"{problem}; trying for {self._client.timeout_seconds:g} s")
        pause = max(backoff(self._failures, first_seconds=self._retry_seconds), asked or 0.0)
        self._failures += 1
        time.sleep(min(pause, left))


def _is_good(frame: Frame) -> bool:
    """Whether an event proves that the server can serve; `error`, and an `open` without a verdict, say it cannot."""
    return frame.event not in ("open", "error") or (frame.event == "open" and frame.data.get("verdict") is not None)

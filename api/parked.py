"""A viewer that was sent everything: what comes is written to its connection by the call that brings the news.

No task waits here. Whatever is out of the ordinary (a gap, a reader that does not take what it is sent, much at once,
leaving) makes it a pulling viewer again, which decides (`api.viewer`), and parks anew when that is done.
"""

from __future__ import annotations

import asyncio

from api.frames import as_chunk
from api.held import Held, Hold
from api.services import Services
from api.viewer import Viewer
from broker.events import TERMINAL_FIELDS, Entry
from broker.window import Encoder


class Parked:
    """A `broker.tail.Sink` over one connection. `hold` takes the connection out of its request; the viewer must have
    said that it is to be parked (`Viewer.parks`), in the same turn of the loop."""

    __slots__ = (
        "_cursor",
        "_finished",
        "_held",
        "_pulling",
        "_quiet_since",
        "_services",
        "_spoke",
        "_viewer",
        "encoder",
    )

    encoder: Encoder

    def __init__(self, services: Services, viewer: Viewer, hold: Hold) -> None:
        self._services = services
        self._viewer = viewer
        self.encoder = viewer.framing.chunk
        self._pulling: asyncio.Task[None] | None = None
        self._held: Held = hold(self)
        services.viewers += 1
        self._park()

    def _park(self) -> None:
        viewer = self._viewer
        viewer.parks = False
        self._pulling = None
        self._finished = False
        self._cursor = viewer.cursor
        self._spoke, self._quiet_since = False, viewer.sent_at  # whether it was written to since the last beat
        viewer.topic.attach(self)
        self._services.heartbeat.add(self)

    def offer(self, prev: str, entries: list[Entry], encoded: bytes) -> bool:
        """See `broker.tail.Sink`."""
        held = self._held
        if prev != self._cursor or not held.takes_more:
            return False
        held.write(encoded)
        self._spoke = True
        last = entries[-1]
        self._cursor = last.position
        self._finished = last.field in TERMINAL_FIELDS
        return not self._finished

    def disturbed(self) -> None:
        """See `broker.tail.Sink`."""
        self._unpark()
        if self._finished:
            self._held.finish()
            self._end()
        else:
            self._pulling = self._services.background(self._pull(), name="viewer")
            self._pulling.add_done_callback(self._pulled)

    def beat(self, now: float) -> None:
        """Every `beat_seconds`: a keepalive after a silence, and an end at its time. The silence may have begun a beat
        before it was noticed, and the next look is a beat away."""
        viewer, held = self._viewer, self._held
        if self._spoke:
            self._spoke, self._quiet_since = False, now
        if now >= viewer.closes_at or not held.takes_more:
            viewer.topic.detach(self)
            self.disturbed()
        elif now - self._quiet_since >= viewer.ping_seconds - 2 * self._services.beat_seconds:
            held.write(as_chunk(viewer.framing.ping))
            self._quiet_since = now

    def gone(self) -> None:
        """See `api.held.Holder`."""
        if self._pulling is not None:
            self._pulling.cancel()
        else:
            self._viewer.topic.detach(self)
            self._unpark()
            self._end()

    def _unpark(self) -> None:
        self._services.heartbeat.discard(self)
        viewer = self._viewer
        viewer.cursor = self._cursor
        viewer.sent_at = asyncio.get_running_loop().time() if self._spoke else self._quiet_since

    async def _pull(self) -> None:
        viewer, held = self._viewer, self._held
        seconds = self._services.settings.send_timeout_seconds
        try:
            async for chunk in viewer.chunks():
                await held.send(chunk, seconds)
        except TimeoutError:
            held.reset()  # it takes nothing
            return
        if viewer.parks:
            self._park()
        elif viewer.finished:
            held.finish()
        else:
            held.cut()

    def _pulled(self, task: asyncio.Task[None]) -> None:
        """However it ended: done, cancelled before it began even, or by a defect, which `Services` logs."""
        if self._pulling is not task:
            return  # parked again
        if task.cancelled() or task.exception() is not None:
            self._held.cut()
        self._end()

    def _end(self) -> None:
        self._viewer.leave()
        self._services.viewers -= 1

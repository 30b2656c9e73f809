"""A viewer whose reader speaks a dialect: the same reading as `api.viewer`, and an encoder in place of frames.

Dialects have no `open`, no snapshot and no way to take text back. So a log that does not hold the cursor any more, a
`reset` in mid-stream and every fault end the body incompletely, and the reader asks again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.dialects.encoder import CannotTakeBack, Encoder
from api.frames import SSE
from api.services import Services
from api.stream import send_body
from api.viewer import Start, Viewer, one_page
from broker.errors import LegatoError
from broker.events import Entry
from broker.log import Page
from broker.position import BEGINNING
from broker.window import Notice


class DialectViewer(Viewer):
    """Chunks of whole blocks of SSE, as `encoder` writes them. It pulls: an encoder with state of its own has nothing
    that viewers could share."""

    def __init__(self, services: Services, begin: Start, encoder: Encoder) -> None:
        super().__init__(services, begin, SSE)
        self._words = encoder

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Viewer.chunks`; a fault is not said here, the body just ends."""
        try:
            async for chunk in self._phases():
                yield chunk
        except (LegatoError, CannotTakeBack):
            return
        finally:
            self.leave()

    async def _refold(self, verdict: str) -> bytes:
        raise CannotTakeBack

    def _open(self, verdict: str, page: Page) -> bytes:
        return self._words.begin()

    def _paged(self, page: Page) -> bytes:
        return self._encoded(page.entries)

    def _from_window(self, notices: list[Notice]) -> bytes:
        return self._encoded([notice.entry for notice in one_page(notices)])

    def _encoded(self, entries: list[Entry]) -> bytes:
        said = self._words.encode(entries)
        if entries:
            self._moved_to(entries[-1].position, entries[-1].field)
        return said

    def _deleted(self) -> bytes:
        self.finished = True
        return self._words.deleted()


async def last_reset(services: Services, generation: str) -> str:
    """The position of the last `reset` in the log; `0-0` where there is none."""
    while True:
        found = BEGINNING
        async for page in services.log.pages(generation):
            found = next((place.decode() for place, stored in reversed(page.rows) if stored[0] == b"reset"), found)
        if page.held:
            return found


class DialectStream(Response):
    """A stream as the answer of an ordinary route."""

    def __init__(self, services: Services, begin: Start, encoder: Encoder, *, headers: dict[str, str]) -> None:
        self._services = services
        self._arguments = begin, encoder
        self._extra = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        viewer = DialectViewer(services, *self._arguments)
        services.viewers += 1
        try:
            await send_body(
                scope,
                receive,
                send,
                viewer.chunks(),
                framing=SSE,
                send_seconds=services.settings.send_timeout_seconds,
                viewer=viewer,
                headers=self._extra,
            )
        finally:
            services.viewers -= 1

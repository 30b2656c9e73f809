"""Readers of a dialect that want one answer, once the generation has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.dialects.encoder import Encoder
from api.dialects.viewer import DialectViewer
from api.problem import Problem
from api.services import Services
from api.stream import left
from api.viewer import Start
from broker.events import Entry


class Silent:
    """The encoder of a reader who is shown nothing before the end, and so can be told of everything there."""

    def begin(self) -> bytes:
        return b""

    def encode(self, entries: Sequence[Entry]) -> bytes:
        return b""

    def deleted(self) -> bytes:
        return b""


#: What a waiting reader does with the end: makes an answer of what the encoder has seen.
Answer = Callable[[], Awaitable[Response]]


class WaitForEnd(Response):
    """One answer, once the generation has ended. Its reader is a viewer like any other while it waits. `otherwise` is
    the answer where this process has to let go of it before."""

    def __init__(
        self, services: Services, begin: Start, encoder: Encoder, answer: Answer, *, otherwise: Problem
    ) -> None:
        self._services = services
        self._arguments = begin, encoder
        self._answer, self._otherwise = answer, otherwise
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = asyncio.ensure_future(self._ended())
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait((ended, leaving), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await (await ended)(scope, receive, send)
        finally:
            for task in (ended, leaving):
                task.cancel()
            await asyncio.gather(ended, leaving, return_exceptions=True)

    async def _ended(self) -> Response:
        services = self._services
        viewer = DialectViewer(services, *self._arguments)
        services.viewers += 1
        try:
            async for _ in viewer.chunks():
                pass
        finally:
            services.viewers -= 1
        if not viewer.finished:
            raise self._otherwise
        return await self._answer()

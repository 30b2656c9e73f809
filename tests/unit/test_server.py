"""What the server knows of its connections: what their readers take, when they are handed on and when they are over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from api.connection import Protocol
from api.server import Server
from api.services import Services

REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Transport:
    """Has so many bytes unsent, and never gets rid of any."""

    def __init__(self, unsent: int = 0) -> None:
        self.unsent = unsent
        self.protocol: Any = None
        self.closing = self.aborted = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True

    def write(self, data: bytes) -> None:
        """It is never looked at."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Holder:
    def gone(self) -> None: ...


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    """An answer that is under way for as long as anybody looks."""
    await asyncio.Event().wait()


def served() -> Server:
    config = uvicorn.Config(never, lifespan="off", log_config=None)
    config.load()
    services: Services = None  # type: ignore[assignment]  # nothing here asks for them
    server = Server(services, config)
    server.lifespan = config.lifespan_class(config)
    return server


def connected(server: Server, transport: Transport) -> Protocol:
    state: ServerState = server.server_state
    protocol = Protocol(host=server, config=server.config, server_state=state, app_state={})
    transport.protocol = protocol
    protocol.connection_made(transport)  # type: ignore[arg-type]  # as much of one as is asked for
    return protocol


async def ended(server: Server) -> None:
    for task in list(server.server_state.tasks):
        task.cancel()
    await asyncio.gather(*server.server_state.tasks, return_exceptions=True)


@pytest.mark.parametrize("paused", [True, False])
async def test_whether_its_reader_takes_more_is_handed_on_with_a_connection(paused: bool) -> None:
    server, transport = served(), Transport()
    protocol = connected(server, transport)
    protocol.data_received(REQUEST)
    if paused:
        protocol.pause_writing()
    held = protocol.let_go(Holder())
    assert held.takes_more is not paused
    held.finish()
    assert transport.protocol.flow.write_paused is paused
    await ended(server)


async def test_what_nobody_takes_behind_the_end_of_an_answer_is_dropped() -> None:
    server = served()
    idle, busy, closing = Transport(100), Transport(100), Transport(100)
    cut, holding, taken = Transport(100), Transport(100), Transport(0)
    connected(server, idle)
    connected(server, taken)
    connected(server, busy).data_received(REQUEST)
    for transport, is_over in ((closing, True), (cut, True), (holding, False)):
        protocol = connected(server, transport)
        protocol.data_received(REQUEST)
        if transport is closing:
            transport.close()
        elif is_over:
            protocol.let_go(Holder()).cut()
        else:
            protocol.let_go(Holder())
    dropping = asyncio.create_task(server.drop_unsent(0.01))
    async with asyncio.timeout(30):
        while not (idle.aborted and closing.aborted and cut.aborted):
            await asyncio.sleep(0.01)
    assert [one.aborted for one in (busy, holding, taken)] == [False, False, False]
    dropping.cancel()
    await asyncio.gather(dropping, return_exceptions=True)
    await ended(server)


async def test_who_takes_a_little_of_what_is_left_is_left_alone() -> None:
    server, slow, stuck = served(), Transport(1000), Transport(1000)
    connected(server, slow)
    connected(server, stuck)
    dropping = asyncio.create_task(server.drop_unsent(0.01))
    async with asyncio.timeout(30):
        while not stuck.aborted:
            slow.unsent -= 1
            await asyncio.sleep(0.001)
    assert not slow.aborted
    dropping.cancel()
    await asyncio.gather(dropping, return_exceptions=True)

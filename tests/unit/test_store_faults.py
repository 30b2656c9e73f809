"""What Redis says when it cannot: which answers mean "come again", which mean "never", and that no write is sent twice.

A server of ours answers with the error replies themselves, so each is seen on both kinds of connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from broker.errors import StoreError, StoreUnavailable, StoreUnusable
from broker.scripts import APPEND, READ
from broker.settings import Settings
from broker.store import Store
from broker.wire import StoreReplyError

PASSES = [
    "LOADING Valkey is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "BUSY Valkey is busy running a script.",
    "ERR max number of clients reached",
]
HOPELESS = ["NOAUTH Authentication required.", "WRONGPASS invalid username-password pair or user is disabled."]


class FakeServer:
    """Answers every script and `XREVRANGE` with what `reply` says, and everything else with OK; counts what it got."""

    def __init__(self, reply: Callable[[list[bytes]], bytes | None]) -> None:
        self.commands: list[list[bytes]] = []
        self._reply = reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                command = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(length + 2))[:-2])
                asked = command[0].upper() in (b"EVALSHA", b"EVAL", b"XREVRANGE")
                if asked:
                    self.commands.append(command)
                answer = self._reply(command) if asked else b"+PONG" if command[0] == b"PING" else b"+OK"
                if command[0] == b"HELLO":
                    answer = b"%1\r\n$5\r\nproto\r\n:3"
                if answer is None:
                    break
                writer.write(answer + b"\r\n")
        finally:
            writer.close()


@asynccontextmanager
async def store_over(
    reply: Callable[[list[bytes]], bytes | None], *, timeout_seconds: float = 60
) -> AsyncIterator[tuple[Store, FakeServer]]:
    fake = FakeServer(reply)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = Store(f"redis://127.0.0.1:{port}", Settings(store_timeout_seconds=timeout_seconds))
    yield store, fake
    await store.aclose()
    server.close()


@pytest.mark.parametrize("message", PASSES)
async def test_a_passing_fault_is_told_as_one(message: str) -> None:
    async with store_over(lambda _: f"-{message}".encode()) as (store, _):
        with pytest.raises(StoreUnavailable):
            await store.pipe(APPEND, ["k"], [])
        with pytest.raises(StoreUnavailable):
            await store.run(READ, ["k"], [])


@pytest.mark.parametrize("message", HOPELESS)
async def test_refused_credentials_are_no_passing_fault(message: str) -> None:
    async with store_over(lambda _: f"-{message}".encode()) as (store, _):
        with pytest.raises(StoreUnusable):
            await store.pipe(APPEND, ["k"], [])


async def test_a_defect_of_ours_is_neither(prefix: str) -> None:
    async with store_over(lambda _: b"-ERR wrong number of arguments") as (store, _):
        with pytest.raises(StoreReplyError) as caught:
            await store.pipe(APPEND, ["k"], [])
        assert not isinstance(caught.value, StoreUnavailable)


async def test_an_append_whose_reply_is_lost_is_not_sent_again() -> None:
    async with store_over(lambda _: None) as (store, fake):
        with pytest.raises(StoreUnavailable, match="unknown"):
            await store.pipe(APPEND, ["k"], ["1", "owner"])
        await asyncio.sleep(0.2)
        assert len(fake.commands) == 1


async def test_an_unknown_script_is_sent_whole_once() -> None:
    def reply(command: list[bytes]) -> bytes:
        return b"-NOSCRIPT No matching script." if command[0] == b"EVALSHA" else b"*1\r\n$4\r\ngone"

    async with store_over(reply) as (store, fake):
        assert await store.pipe(APPEND, ["k"], []) == [b"gone"]
        assert [command[0] for command in fake.commands] == [b"EVALSHA", b"EVAL"]
        assert fake.commands[1][1] == APPEND.source


async def test_a_server_that_stops_answering_is_given_up() -> None:
    async with store_over(lambda _: b"", timeout_seconds=1) as (store, _):
        with pytest.raises(StoreError):
            async with asyncio.timeout(60):
                await store.pipe(APPEND, ["k"], [])


async def test_a_connection_that_breaks_over_many_questions_answers_each_of_them() -> None:
    """With what came before it broke, and with a fault for the rest."""
    entry = b"*1\r\n*2\r\n$3\r\n7-1\r\n*2\r\n$1\r\nd\r\n$1\r\nx"
    answers = iter([entry, entry])
    async with store_over(lambda _: next(answers, None)) as (store, _):
        address = await store.locate("k")
        assert await store.last_ids(address, ["a", "b", "c", "d"]) == ["7-1", "7-1", None, None]

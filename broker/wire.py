"""One pipelined connection to one Redis server, for the token path.

Why not redis-py here: an append through `redis.asyncio` costs a worker about ten times the CPU (a lock, a deadline and
several coroutines a command), and its retries re-send writes whose reply was lost. This connection writes what was
asked within one turn of the event loop in one piece, never sends anything twice, and when it breaks every caller still
waiting learns that the outcome is unknown. Parsing and packing are hiredis's; addresses, credentials and topology
come from `broker.connect`, which gets them from redis-py.

RESP2 on purpose: its replies are plain, and a subscribed connection carries pushes only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from broker.errors import StoreError, StoreUnavailable, StoreUnusable
from broker.pace import Pace

#: What a command takes.
Arg = str | bytes | int
#: What a script or command answers: bytes, ints, None, or lists of them.
Reply = Any
#: Called with what came back: a reply, or the error that it means. Must not raise.
Answered = Callable[[Reply], None]

_INCOMPLETE = object()

#: First words of error replies that pass: the same call may succeed later, maybe elsewhere.
TRANSIENT = frozenset(
    {
        *(
            "LOADING",
            "BUSY",
            "UNKILLABLE",
            "NOSCRIPT",
            "NOREPLICAS",
            "MISCONF",
            "OOM",
            "READONLY",
            "MASTERDOWN",
            "UNBLOCKED",
        ),
        *("CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"),
    }
)
#: Said with the word of our own mistakes, to a reconnect storm.
_CROWDED = "ERR max number of clients"
_HOPELESS = frozenset(("NOAUTH", "WRONGPASS", "NOPERM"))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: `path` for a unix socket, else `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to get in, and which database."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = None


class StoreReplyError(StoreError):
    """An error reply that no retry mends: a defect of ours, or a store Legato cannot use."""

    code = "internal"


class Redirected(StoreUnavailable):
    """The slot is elsewhere (MOVED) or on its way (ASK). `address` says where to ask."""

    def __init__(self, *, asking: bool, address: Address) -> None:
        super().__init__("the slot is served elsewhere")
        self.asking = asking
        self.address = address


class NotPrimary(StoreUnavailable):
    """The server is a replica, or has lost its primary: somebody else is, or will be, in charge."""


class ScriptUnknown(StoreUnavailable):
    """The server has not loaded the script; nothing was written."""


def error_of(message: str, address: Address) -> StoreError:
    """The exception for an error reply, told apart by its first word."""
    word, _, rest = message.partition(" ")
    if word in ("MOVED", "ASK"):
        host, _, port = rest.rpartition(" ")[2].rpartition(":")
        return Redirected(asking=word == "ASK", address=Address(host or address.host, int(port)))
    if word == "NOSCRIPT":
        return ScriptUnknown("the server does not know the script")
    if word in ("READONLY", "MASTERDOWN"):
        return NotPrimary(f"Redis answers {word}")
    if word in TRANSIENT or message.startswith(_CROWDED):
        return StoreUnavailable(f"Redis answers {word}")
    if word in _HOPELESS:
        return StoreUnusable(f"Redis refuses us: {word}")
    return StoreReplyError(message)


def pack(*command: Arg) -> bytes:
    """A command as it is sent."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


class Wire(asyncio.Protocol):
    """A connection. Replies come in the order of the calls; a broken wire stays broken: make a new one.

    `on_push` gets the messages of a subscribed connection, which is left unread between two reads for as long as `pace`
    says; `on_close` is called once, when it is over.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_close: Callable[[Wire], None] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.address = address
        self.closed = False
        self.loaded: set[bytes] = set()  # scripts that the server knows, by their hash
        self._timeout = timeout
        self._on_push = on_push
        self._on_close = on_close
        self._pace = pace
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._subscriber = False
        self._waiting: deque[asyncio.Future[Reply] | Answered] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.TimerHandle | None = None
        self._last_progress = self._loop.time()

    @classmethod
    async def open(
        cls,
        address: Address,
        credentials: Credentials,
        *,
        timeout: float,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_close: Callable[[Wire], None] | None = None,
        pace: Pace | None = None,
    ) -> Wire:
        """Connect and log in; raises `StoreUnavailable`, or `StoreUnusable` for refused credentials."""
        wire = cls(address, timeout=timeout, on_push=on_push, on_close=on_close, pace=pace)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                if address.path:
                    await loop.create_unix_connection(lambda: wire, address.path)
                else:
                    await loop.create_connection(lambda: wire, address.host, address.port, ssl=credentials.tls)
                if credentials.password is not None:
                    login = [credentials.username] if credentials.username else []
                    await wire.call("AUTH", *login, credentials.password)
                if credentials.database:
                    await wire.call("SELECT", credentials.database)
                await wire.call("PING")  # a frozen server's kernel accepts connections, too
        except (OSError, TimeoutError) as exc:
            wire.close()
            raise StoreUnavailable("Redis does not answer") from exc
        except StoreError:
            wire.close()
            raise
        return wire

    def call(self, *command: str | bytes | int) -> asyncio.Future[Reply]:
        """Send one command; the future gets its reply, or the error it means.

        Commands of one turn of the loop leave together. When the connection breaks first, the future gets
        `StoreUnavailable`: the command may have been carried out.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the connection to Redis is closed"))
            return future
        self._waiting.append(future)
        self._write(pack(*command))
        return future

    def tell(self, packed: bytes, answered: Answered) -> None:
        """`call`, for a command that is packed already, and without a future: for what is sent once a token. The
        connection must be open."""
        self._waiting.append(answered)
        self._write(packed)

    async def each(self, packed: Sequence[bytes]) -> list[Reply]:
        """The answers to several commands, an error where one means that: one future for all of them. Raises
        `StoreUnavailable` when nothing was sent."""
        if self.closed:
            raise StoreUnavailable("the connection to Redis is closed")
        answers: list[Reply] = []
        if not packed:
            return answers
        done: asyncio.Future[None] = self._loop.create_future()

        def answered(reply: Reply) -> None:
            answers.append(reply)
            if len(answers) == len(packed) and not done.done():
                done.set_result(None)

        for command in packed:
            self.tell(command, answered)
        await done
        return answers

    def send(self, *command: str | bytes | int) -> None:
        """Send a command whose answer arrives as a push (SSUBSCRIBE and the like). A refusal has no sender to go to:
        it closes the connection, and the subscriber starts over."""
        self._subscriber = True
        if not self.closed:
            self._write(pack(*command))

    def close(self) -> None:
        """Close at once; who waits gets `StoreUnavailable`."""
        if self._transport is not None:
            self._transport.abort()
        self._broken()

    def _write(self, data: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        data, self._outgoing = self._outgoing, []
        if self._transport is not None and not self.closed:
            try:
                self._transport.write(b"".join(data))
            except RuntimeError:  # uvloop: reset, and not yet told
                self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # TCP and unix transports both write
        self._watch = self._loop.call_later(self._timeout / 4, self._check)

    def data_received(self, data: bytes) -> None:
        self._last_progress = self._loop.time()
        self._reader.feed(data)
        gets, dispatch = self._reader.gets, self._dispatch
        count = 0
        try:
            while (reply := gets()) is not _INCOMPLETE:
                count += 1
                dispatch(reply)
        except hiredis.ProtocolError:
            self.close()
        if self._pace is not None and self._subscriber and (seconds := self._pace.pause(count)):
            self._rest(seconds)

    def _rest(self, seconds: float) -> None:
        if self._transport is not None and not self.closed and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_later(seconds, self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self.closed and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken()

    def _dispatch(self, reply: Reply) -> None:
        if self._on_push is not None and type(reply) is list and reply[0] != b"pong":
            self._on_push(reply)
        elif self._subscriber and isinstance(reply, hiredis.ReplyError):
            self.close()
        else:
            self._answer(reply)

    def _answer(self, reply: Reply) -> None:
        if not self._waiting:
            self.close()  # an answer nobody asked for: replies can no longer be told apart
            return
        waiting = self._waiting.popleft()
        if type(reply) is int and not isinstance(waiting, asyncio.Future):
            waiting(reply)  # nearly always
            return
        if isinstance(reply, hiredis.ReplyError):
            reply = error_of(str(reply), self.address)
            if isinstance(reply, ScriptUnknown):
                self.loaded.clear()
        _tell(waiting, reply)

    def _check(self) -> None:
        """Every quarter of the time-out: cut a connection that owes an answer too long, ping a quiet one."""
        if self.closed:
            return
        idle = self._loop.time() - self._last_progress
        if self._waiting and idle > self._timeout:
            self.close()
            return
        if not self._waiting and idle > self._timeout / 4:
            self._last_progress = self._loop.time()
            self.call("PING").add_done_callback(_retrieve)
        self._watch = self._loop.call_later(self._timeout / 4, self._check)

    def _broken(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for who in waiting:
            _tell(who, StoreUnavailable("the connection to Redis broke; the outcome is unknown"))
        if self._on_close is not None:
            self._on_close(self)


def _tell(waiting: asyncio.Future[Reply] | Answered, reply: Reply) -> None:
    if not isinstance(waiting, asyncio.Future):
        waiting(reply)
    elif waiting.done():
        return
    elif isinstance(reply, StoreError):
        waiting.set_exception(reply)
    else:
        waiting.set_result(reply)


def _retrieve(future: asyncio.Future[Reply]) -> None:
    if not future.cancelled():
        future.exception()

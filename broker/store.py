"""The way to Redis that everything in `broker` shares: scripts on one pipelined connection a server, the rest pooled.

A `Store` knows connections, and the few plain commands beside the scripts. It never hides a failure: what Redis did
not do raises `StoreUnavailable` (come again) or another `StoreError` (do not).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

from broker.connect import FAILURES, connect, translate
from broker.errors import StoreError, StoreUnavailable, StoreUnusable
from broker.keys import Keys
from broker.pace import Pace
from broker.position import BEGINNING
from broker.scripts import MARKER, Script
from broker.settings import Settings
from broker.wire import Address, Arg, NotPrimary, Redirected, Reply, ScriptUnknown, Wire, pack

#: How often one call follows the cluster to where a slot went.
_HOPS = 4

#: Marker names tried until one falls to a given node; enough for a node with one slot in a few hundred.
_MARKERS: Final = 4096

#: An epoch that follows lost claims rises by a random number from this range (2^20 .. 2^31).
_JUMP = (1 << 20, 1 << 31)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What a server says of itself."""

    server: str  # redis or valkey
    version: str
    maxmemory_policy: str

    @property
    def evicts(self) -> bool:
        """Whether it may drop logs when memory is full: Legato's promises do not hold then."""
        return self.maxmemory_policy not in ("noeviction", "")


class Store:
    """Connections to one Redis deployment. Create and use it inside one event loop; close it with `aclose`."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.settings = settings
        self.keys = Keys(settings.prefix)
        self._topology = connect(url, settings)
        self._timeout = settings.store_timeout_seconds
        self._wires: dict[Address, Wire] = {}
        self._opening: dict[Address, asyncio.Task[Wire]] = {}
        self._opened: WeakSet[Wire] = WeakSet()
        self._blocking: Wire | None = None
        self._broken_at: float | None = None
        self._broken: set[Address] = set()
        self._on_return: list[Callable[[], None]] = []
        self._closed = False

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Reply:
        """Run a script, and once more if the connection broke over it: only for scripts that may be repeated."""
        try:
            return await self.pipe(script, keys, args)
        except StoreUnavailable:
            return await self.pipe(script, keys, args)

    async def pipe(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Reply:
        """Run a script on the pipelined connection to the server of its keys. Never sent twice: after
        `StoreUnavailable` it may have run."""
        address = await self._topology.locate(keys[0])
        verb: str = "EVALSHA"
        body = script.sha
        asking = False
        for _ in range(_HOPS):
            wire = await self._wire(address)
            if asking:
                wire.call("ASKING").add_done_callback(_retrieve)
            try:
                return await wire.call(verb, body, len(keys), *keys, *args)
            except ScriptUnknown:
                verb, body = "EVAL", script.source
            except NotPrimary:
                wire.close()
                with suppress(StoreError):
                    await self._topology.refresh()
                raise
            except Redirected as moved:
                address, asking = moved.address, moved.asking
                if not asking:
                    await self._topology.refresh()
        raise StoreUnavailable("the slot moves too fast to follow")

    async def pipe_with(
        self, script: Script, keys: Sequence[str], args: Sequence[Arg], *command: Arg
    ) -> tuple[Reply, Reply] | None:
        """What a script answers, and what a plain command does, which must name one of `keys`: both in one atomic step,
        and without what a script costs for a long answer. None where that cannot be had just now (the script is not
        loaded, the slot is on its way): ask otherwise. Only for what may be repeated."""
        wire = await self._wire(await self._topology.locate(keys[0]))
        asked = [
            wire.call("MULTI"),
            wire.call("EVALSHA", script.sha, len(keys), *keys, *args),
            wire.call(*command),
            wire.call("EXEC"),
        ]
        *_, replies = await asyncio.gather(*asked, return_exceptions=True)
        match replies:
            case [answer, answered] if not any(isinstance(reply, Exception) for reply in replies):
                return answer, answered
            case _:
                return None

    async def wire_for(self, script: Script, key: str) -> Wire:
        """The pipelined connection to the server of a key, which knows the script: for who sends on it by itself."""
        wire = await self._wire(await self._topology.locate(key))
        if script.sha not in wire.loaded:
            await wire.call("SCRIPT", "LOAD", script.source)
            wire.loaded.add(script.sha)
        return wire

    async def pop(self, key: str, seconds: float) -> bool:
        """Wait up to `seconds` for an element of a list and take it; False when none came."""
        if self._blocking is None or self._blocking.closed:
            self._blocking = await self.open_wire(await self.locate(key), timeout=seconds + self._timeout)
        try:
            return await self._blocking.call("BLPOP", key, f"{max(seconds, 0.01):.3f}") is not None
        except StoreUnavailable:
            wire, self._blocking = self._blocking, None
            if wire is not None:
                wire.close()
            await self._topology.refresh()
            raise

    async def last_ids(self, address: Address, logs: Sequence[str]) -> list[str | None]:
        """The last entry id of each stream, all of them on one server: `0-0` of an empty one, None where there is no
        stream or no answer. A round trip, and another one where some are empty."""
        wire = await self._wire(address)
        replies = await wire.each([pack("XREVRANGE", log, "+", "-", "COUNT", 1) for log in logs])
        found = [reply[0][0].decode() if isinstance(reply, list) and reply else None for reply in replies]
        if empty := [at for at, reply in enumerate(replies) if reply == []]:
            there = await wire.each([pack("EXISTS", logs[at]) for at in empty])
            for at, reply in zip(empty, there, strict=True):
                found[at] = BEGINNING if reply == 1 else None
        return found

    async def get(self, key: str) -> bytes | None:
        """A value, whole."""
        try:
            found = await self._topology.commands.get(key)
        except FAILURES as exc:
            raise translate(exc) from exc
        return found.encode() if isinstance(found, str) else found

    async def range_descending(self, key: str, below: str, count: int) -> list[str]:
        """Members of an index that sort below `below` ('' for all), highest first."""
        try:
            top = f"({below}" if below else "+"
            found = await self._topology.commands.zrevrangebylex(key, top, "-", start=0, num=count)
        except FAILURES as exc:
            raise translate(exc) from exc
        return [_text(member) for member in found]

    async def add_to_index(self, key: str, member: str) -> None:
        """Put a member into an index."""
        try:
            await self._topology.commands.zadd(key, {member: 0})
        except FAILURES as exc:
            raise translate(exc) from exc

    async def remove(self, key: str, members: Sequence[str]) -> None:
        """Take members out of an index."""
        try:
            await self._topology.commands.zrem(key, *members)
        except FAILURES as exc:
            raise translate(exc) from exc

    async def add_to_counter(self, key: str, name: str, amount: int) -> None:
        """Raise one counter of a hash."""
        try:
            await self._topology.commands.hincrby(key, name, amount)
        except FAILURES as exc:
            raise translate(exc) from exc

    async def counters(self, key: str) -> dict[str, int]:
        """All counters of a hash."""
        try:
            found = await self._topology.commands.hgetall(key)
        except FAILURES as exc:
            raise translate(exc) from exc
        return {_text(name): int(value) for name, value in found.items()}

    async def take_turn(self, key: str, milliseconds: int) -> bool:
        """Whether this process may do, for so long, what only one should do at a time."""
        try:
            return bool(await self._topology.commands.set(key, "1", nx=True, px=milliseconds))
        except FAILURES as exc:
            raise translate(exc) from exc

    async def scan(self, pattern: str) -> AsyncIterator[str]:
        """Every key that matches, in small steps."""
        try:
            async for key in self._topology.scan(pattern):
                yield key.decode()
        except FAILURES as exc:
            raise translate(exc) from exc

    async def facts(self) -> StoreFacts:
        """Ask a server what it is. Raises `StoreUnusable` when it is too old for Legato's scripts."""
        try:
            client = self._topology.commands
            info = await client.info("server")
            memory = await client.info("memory")
        except FAILURES as exc:
            raise translate(exc) from exc
        if info and isinstance(next(iter(info.values())), dict):  # a cluster answers per node
            info, memory = next(iter(info.values())), next(iter(memory.values()))
        server = "valkey" if "valkey_version" in info else "redis"
        version = str(info.get(f"{server}_version", "0"))
        floor = (7, 2) if server == "valkey" else (7, 0)
        if tuple(int(part) for part in version.split(".")[:2]) < floor:
            raise StoreUnusable(f"Legato needs Redis 7.0 or Valkey 7.2; this is {server} {version}")
        return StoreFacts(server=server, version=version, maxmemory_policy=str(memory.get("maxmemory_policy", "")))

    async def seconds_since_loss(self, key: str) -> float:
        """How long ago the server of `key` may have lost data: it came up then, took over from another, or was found
        empty. Seen at the next look, so somebody has to look often (`losses`)."""
        return await self._loss_age(await self._topology.locate(key))

    async def losses(self) -> list[float]:
        """The same for every server; those that do not answer are left out."""
        ages = []
        for address in await self._topology.primaries():
            with suppress(StoreUnavailable):
                ages.append(await self._loss_age(address))
        return ages

    async def _loss_age(self, address: Address) -> float:
        for number in range(_MARKERS):
            marker = self.keys.marker(number)
            if await self._topology.locate(marker) == address:
                return int(await self.pipe(MARKER, [marker], [])) / 1000
        raise StoreUnavailable("no marker key falls to the server")

    async def locate(self, key: str) -> Address:
        """Which server serves a key."""
        return await self._topology.locate(key)

    async def refresh(self) -> None:
        """Learn the topology anew."""
        await self._topology.refresh()

    def steady(self, seconds: float) -> bool:
        """Whether no connection of this process had a break for that long; one ends with the first answer after it. A
        first connection is none. Which server it was does not matter: a failover changes that."""
        return self._broken_at is None or asyncio.get_running_loop().time() - self._broken_at > seconds

    async def open_wire(
        self,
        address: Address,
        *,
        timeout: float | None = None,
        on_push: Callable[[list[Reply]], None] | None = None,
        on_close: Callable[[Wire], None] | None = None,
        pace: Pace | None = None,
    ) -> Wire:
        """A new pipelined connection; closed with the store, if not before."""
        wire = await Wire.open(
            address,
            self._topology.credentials,
            timeout=timeout or self._timeout,
            on_push=on_push,
            on_close=on_close,
            pace=pace,
        )
        self._opened.add(wire)
        return wire

    def on_return(self, call: Callable[[], None]) -> None:
        """Call this whenever a server answers again after a break."""
        self._on_return.append(call)

    def note_break(self) -> None:
        """Remember that a connection broke, or came back: nobody is taken over from for a lease."""
        self._broken_at = asyncio.get_running_loop().time()

    async def aclose(self) -> None:
        """Close every connection."""
        self._closed = True
        for wire in list(self._opened):
            wire.close()
        await self._topology.aclose()

    async def _wire(self, address: Address) -> Wire:
        wire = self._wires.get(address)
        if wire is not None and not wire.closed:
            return wire
        opening = self._opening.get(address)
        if opening is None:
            opening = asyncio.ensure_future(self._open_shared(address))
            self._opening[address] = opening
            opening.add_done_callback(lambda _: self._opening.pop(address, None))
            opening.add_done_callback(_retrieve)
        return await asyncio.shield(opening)

    async def _open_shared(self, address: Address) -> Wire:
        try:
            wire = await self.open_wire(address, on_close=self._wire_closed)
        except StoreError:
            self._broken.add(address)
            self.note_break()
            with suppress(StoreError):
                await self._topology.refresh()
            raise
        self._wires[address] = wire
        if self._broken:
            self._broken.discard(address)
            self.note_break()
            for call in self._on_return:
                call()
        return wire

    def _wire_closed(self, wire: Wire) -> None:
        if not self._closed:
            self._topology.forget()
            self._broken.add(wire.address)
            self.note_break()
            self._wires.pop(wire.address, None)


def jump() -> int:
    """By how much an epoch rises beyond one when claims may have been lost."""
    return random.randrange(*_JUMP)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()

"""The stores under test: real servers in the four shapes that production has, and what can be done to them.

`url` is what the processes get. Except under Sentinel, who names real addresses, they reach every server through a
proxy of ours, so that the path can fail without the server.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import redis

from broker.embedded import EmbeddedServer, find_binary
from broker.joined import split
from chaos.proxy import Proxy, Way
from chaos.schedule import Profile

OPTIONS: Final = {"enable-debug-command": "local", "shutdown-timeout": "0"}
_READY_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.02
#: What a replica may be behind, on one machine.
UNREPLICATED_SECONDS: Final = 1.0


def free_port() -> int:
    """A loopback port that nobody listens on, below the range of outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 200):  # another run that starts now takes others
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise OSError("no free port")


_given: set[int] = set()


def ask(server: EmbeddedServer, *words: str | float) -> Any:
    """One command over the server's socket; the bare reply."""
    with redis.Redis.from_url(server.url, decode_responses=True, protocol=2, socket_timeout=20) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


def info(server: EmbeddedServer, section: str) -> Mapping[str, str]:
    """INFO."""
    return dict(line.split(":", 1) for line in str(ask(server, "INFO", section)).splitlines() if ":" in line)


async def until(condition: Callable[[], bool], what: str, *, seconds: float = _READY_SECONDS) -> None:
    """Look again and again, in a thread; `TimeoutError` says what did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.RedisError):
            if await asyncio.to_thread(condition):
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s still not: {what}")
        await asyncio.sleep(_POLL_SECONDS)


class Stores(ABC):
    """Servers, and proxies in front of them."""

    profile: Profile

    def __init__(self) -> None:
        self.servers: list[EmbeddedServer] = []
        self.proxies: list[Proxy] = []
        self.lock = asyncio.Lock()  # one fault at a time

    @property
    @abstractmethod
    def url(self) -> str:
        """For LEGATO_REDIS_URL."""

    @abstractmethod
    async def start(self) -> None: ...

    @property
    def primaries(self) -> list[EmbeddedServer]:
        """The servers that take writes."""
        return self.servers

    def serving(self, key: str) -> EmbeddedServer:
        """The server of a key."""
        return self.primaries[0]

    async def on_primaries(self, *words: str | float) -> None:
        """A command to each."""
        for server in self.primaries:
            await asyncio.to_thread(ask, server, *words)

    async def empty_start(self, server: EmbeddedServer) -> None:
        """Start a killed server without its file."""
        shutil.rmtree(server.data_dir / "appendonlydir", ignore_errors=True)
        await asyncio.to_thread(server.restart)

    async def stop(self) -> None:
        """Stop everything."""
        for proxy in self.proxies:
            await proxy.aclose()
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in self.servers))

    async def settle(self) -> None:
        """Undo what a fault may have left."""
        for proxy in self.proxies:
            proxy.release()
        for server in self.servers:
            if not server.running:
                await asyncio.to_thread(server.restart)
            await asyncio.to_thread(ask, server, "CONFIG", "SET", "maxmemory", 0)

    def logs(self, pattern: str) -> dict[str, list[tuple[str, str, str]]]:
        """Every log that the store holds: position, field, payload of each event, by key."""
        found = {}
        for server in self.primaries:
            with redis.Redis.from_url(server.url, protocol=2, socket_timeout=20) as client:
                keys = list(client.scan_iter(match=pattern, count=500))
                client.response_callbacks.clear()
                for key in keys:
                    rows: Any = client.execute_command("XRANGE", key, "-", "+")
                    found[key.decode()] = [(place, field.decode(), text.decode()) for place, field, text in split(rows)]
        return found

    def keys(self, pattern: str) -> set[str]:
        """Keys of all primaries."""
        found: set[str] = set()
        for server in self.primaries:
            with redis.Redis.from_url(server.url, decode_responses=True, protocol=2, socket_timeout=20) as client:
                found.update(map(str, client.scan_iter(match=pattern, count=500)))
        return found

    def fields(self, key: str, *names: str) -> list[str | None]:
        """Some fields of a hash."""
        found: list[str | None] = ask(self.serving(key), "HMGET", key, *names)
        return found

    def clients(self) -> int:
        """Connections to all servers that are not ours of this moment."""
        count = 0
        for server in self.primaries:
            lines = str(ask(server, "CLIENT", "LIST", "TYPE", "normal")).splitlines()
            lines += str(ask(server, "CLIENT", "LIST", "TYPE", "pubsub")).splitlines()
            count += len([line for line in lines if line.strip() and "cmd=client|list" not in line])
        return count

    def channels(self) -> list[str]:
        """Channels that anybody is subscribed to."""
        return [str(name) for server in self.primaries for name in ask(server, "PUBSUB", "SHARDCHANNELS")]


class Single(Stores):
    """One server with an append-only file."""

    profile = Profile.SINGLE

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxies[0].port}/0"

    async def start(self) -> None:
        server = await asyncio.to_thread(EmbeddedServer.start, port=free_port(), extra=OPTIONS)
        self.servers.append(server)
        self.proxies.append(await Proxy.start(("127.0.0.1", server.port)))


class Replicated(Stores):
    """A primary and a replica behind one address; the replica follows through a proxy that can be held."""

    profile = Profile.REPLICA

    def __init__(self) -> None:
        super().__init__()
        self._primary = 0
        self.link: Proxy | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxies[0].port}/0"

    @property
    def primaries(self) -> list[EmbeddedServer]:
        return [self.servers[self._primary]]

    @property
    def replica(self) -> EmbeddedServer:
        return self.servers[1 - self._primary]

    async def start(self) -> None:
        options = {**OPTIONS, "repl-diskless-sync-delay": "0", "repl-timeout": "5", "repl-ping-replica-period": "1"}
        for _ in range(2):
            self.servers.append(await asyncio.to_thread(EmbeddedServer.start, port=free_port(), extra=options))
        self.proxies.append(await Proxy.start(("127.0.0.1", self.servers[0].port)))
        self.link = await Proxy.start(("127.0.0.1", self.servers[0].port))
        await self._follow()

    async def promote(self, cut_off_seconds: float) -> tuple[float, float]:
        """Cut the replica off, let the primary go on alone for a while, then make the replica the primary. Returns
        since when (Unix seconds) what the old one acknowledged is lost, and when that was."""
        assert self.link is not None  # noqa: S101 - started
        await self._in_sync()  # it may still be behind the fault before
        since = time.time()
        self.link.hold(Way.DOWN)
        await asyncio.sleep(cut_off_seconds)
        proxy, replica = self.proxies[0], self.replica
        at = time.time()
        await asyncio.to_thread(ask, replica, "REPLICAOF", "NO", "ONE")
        proxy.upstream = ("127.0.0.1", replica.port)
        proxy.cut()
        self._primary = 1 - self._primary
        self.link.cut()
        self.link.upstream = ("127.0.0.1", replica.port)
        self.link.release()
        await self._follow()
        return since, at

    async def stop(self) -> None:
        await super().stop()
        if self.link is not None:
            await self.link.aclose()

    async def settle(self) -> None:
        assert self.link is not None  # noqa: S101 - started
        self.link.release()
        await super().settle()

    async def _follow(self) -> None:
        assert self.link is not None  # noqa: S101 - started
        await asyncio.to_thread(ask, self.replica, "REPLICAOF", "127.0.0.1", self.link.port)
        await self._in_sync()

    async def _in_sync(self) -> None:
        await until(
            lambda: info(self.replica, "replication").get("master_link_status") == "up", "the replica is in sync"
        )


class Sentinels(Stores):
    """The same under three Sentinels: they decide who is the primary, and the processes ask them."""

    profile = Profile.SENTINEL

    def __init__(self) -> None:
        super().__init__()
        self._ports: list[int] = []
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._directory = Path(tempfile.mkdtemp(prefix="legato-chaos-sentinel-"))

    @property
    def url(self) -> str:
        return f"sentinel://{','.join(f'127.0.0.1:{port}' for port in self._ports)}/legato"

    @property
    def primaries(self) -> list[EmbeddedServer]:
        found = [
            server for server in self.servers if server.running and info(server, "replication")["role"] == "master"
        ]
        return [next((server for server in found if server.port == self._named()), found[0])] if found else []

    async def start(self) -> None:
        options = {**OPTIONS, "repl-diskless-sync-delay": "0", "repl-timeout": "5", "repl-ping-replica-period": "1"}
        for _ in range(2):
            self.servers.append(await asyncio.to_thread(EmbeddedServer.start, port=free_port(), extra=options))
        first, second = self.servers
        await asyncio.to_thread(ask, second, "REPLICAOF", "127.0.0.1", first.port)
        await until(lambda: info(second, "replication").get("master_link_status") == "up", "the replica is in sync")
        for number in range(3):
            await asyncio.to_thread(self._start_sentinel, number, first.port)
        await until(lambda: all(self._others(port) == 2 for port in self._ports), "the Sentinels know each other")

    def _start_sentinel(self, number: int, primary: int) -> None:
        port = free_port()
        conf = self._directory / f"{number}.conf"
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor legato 127.0.0.1 {primary} 2\n"
            "sentinel down-after-milliseconds legato 1000\nsentinel failover-timeout legato 4000\n"
        )
        with (self._directory / f"{number}.log").open("wb") as out:
            self._sentinels.append(
                subprocess.Popen([find_binary(), conf, "--sentinel"], stdout=out, stderr=out)  # noqa: S603
            )
        self._ports.append(port)

    async def fail_over(self, down_seconds: float) -> None:
        """Kill the primary, wait until the Sentinels have promoted the replica, bring the old one back."""
        primary = (await asyncio.to_thread(lambda: self.primaries))[0]
        await asyncio.to_thread(primary.kill)
        before = primary.port
        await until(lambda: self._named() not in (None, before), "the Sentinels name another primary")
        await asyncio.sleep(down_seconds)
        await asyncio.to_thread(primary.restart)
        await until(lambda: info(primary, "replication").get("master_link_status") == "up", "the old one follows")

    async def stop(self) -> None:
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait()
        await super().stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _named(self) -> int | None:
        for port in self._ports:
            with suppress(redis.RedisError), redis.Redis(port=port, decode_responses=True, socket_timeout=2) as client:
                client.response_callbacks.clear()
                return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "legato")[1])
        return None

    @staticmethod
    def _others(port: int) -> int:
        with redis.Redis(port=port, decode_responses=True, socket_timeout=2, protocol=2) as client:
            client.response_callbacks.clear()
            return len(client.execute_command("SENTINEL", "SENTINELS", "legato"))

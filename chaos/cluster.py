"""Three primaries that share the slots, and a slot that moves under load."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Final

import redis
from redis.crc import key_slot

from broker.embedded import EmbeddedServer
from chaos.proxy import Proxy
from chaos.schedule import Profile
from chaos.stores import OPTIONS, Stores, ask, free_port, until

_SLOTS: Final = 16_384
_NODE_TIMEOUT_MS: Final = 2000


class Cluster(Stores):
    """Three primaries. Each announces the port of a proxy, so that clients reach it through that."""

    profile = Profile.CLUSTER

    @property
    def url(self) -> str:
        return f"cluster://{','.join(f'127.0.0.1:{proxy.port}' for proxy in self.proxies)}"

    async def start(self) -> None:
        for _ in range(3):
            port = free_port()
            proxy = await Proxy.start(("127.0.0.1", port))
            self.proxies.append(proxy)
            options = {
                **OPTIONS,
                "cluster-enabled": "yes",
                "cluster-port": str(free_port()),
                "cluster-node-timeout": str(_NODE_TIMEOUT_MS),
                "cluster-announce-ip": "127.0.0.1",
                "cluster-announce-port": str(proxy.port),
                "cluster-require-full-coverage": "no",
            }
            self.servers.append(await asyncio.to_thread(EmbeddedServer.start, port=port, extra=options))
        await asyncio.to_thread(self._join)
        await until(self._is_ready, "the cluster is whole")

    def serving(self, key: str) -> EmbeddedServer:
        slot = key_slot(key.encode())
        names = {str(ask(server, "CLUSTER", "MYID")): server for server in self.servers}
        for first, last, primary, *_ in ask(self.servers[0], "CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return names[str(primary[2])]
        raise LookupError(f"nobody serves slot {slot}")

    async def move(self, slot: int, seconds: float) -> None:
        """Move a slot with everything in it to the next node, slowly: `seconds` in the state between."""
        await asyncio.to_thread(self._move, slot, seconds)

    def slot_of(self, key: str) -> int:
        """A key's hash slot."""
        return key_slot(key.encode())

    def slots_of(self, server: EmbeddedServer) -> frozenset[int]:
        """Which slots a server serves now."""
        mine = next(line for line in str(ask(server, "CLUSTER", "NODES")).splitlines() if "myself" in line)
        slots: set[int] = set()
        for item in mine.split()[8:]:
            if not item.startswith("["):
                first, _, last = item.partition("-")
                slots.update(range(int(first), int(last or first) + 1))
        return frozenset(slots)

    def _move(self, slot: int, seconds: float) -> None:
        names = [str(ask(server, "CLUSTER", "MYID")) for server in self.servers]
        source = next(number for number, server in enumerate(self.servers) if slot in self.slots_of(server))
        target = (source + 1) % len(self.servers)
        here, there = self.servers[source], self.servers[target]
        ask(there, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        ask(here, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        time.sleep(seconds / 2)
        while keys := ask(here, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            with suppress(redis.ResponseError):
                ask(here, "MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(0.01)
        time.sleep(seconds / 2)
        for server in (there, here, *self.servers):
            ask(server, "CLUSTER", "SETSLOT", slot, "NODE", names[target])

    def _join(self) -> None:
        for number, server in enumerate(self.servers):
            first, last = _SLOTS * number // 3, _SLOTS * (number + 1) // 3 - 1
            ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            ask(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for one in self.servers:
            for other in self.servers:
                if one is not other:
                    bus = ask(other, "CONFIG", "GET", "cluster-port")[1]
                    ask(one, "CLUSTER", "MEET", "127.0.0.1", other.port, bus)

    def _is_ready(self) -> bool:
        for server in self.servers:
            said = str(ask(server, "CLUSTER", "INFO"))
            state = dict(re.findall(r"(\w+):(\w+)", said))
            if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != str(_SLOTS):
                return False
        return True

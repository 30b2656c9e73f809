"""With nobody using a deployment, nothing may be left of the use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from chaos.checks import Verdict
from chaos.processes import Child, Reading
from chaos.stores import Stores

#: As the setting of that name.
STORE_CONNECTIONS: Final = 24

#: So long nobody does anything.
_QUIET_SECONDS: Final = 3.0

#: What a process may hold when nobody uses it any more.
_MOST_BYTES: Final = 200 * 1024 * 1024
_DESCRIPTORS: Final = 40  # beside its connections to the store
_TASKS: Final = 16
_TASKS_A_SERVER: Final = 4


def most_tasks(stores: Stores) -> int:
    """How many tasks a process may have then."""
    return _TASKS + _TASKS_A_SERVER * len(stores.servers)


async def look_for_leaks(children: Sequence[Child], stores: Stores, verdict: Verdict) -> dict[str, Reading]:
    """Memory, descriptors, subscriptions, connections; what each process holds."""
    await asyncio.sleep(_QUIET_SECONDS)
    readings: dict[str, Reading] = {}
    servers = len(stores.servers)
    most = _DESCRIPTORS + (STORE_CONNECTIONS + 4) * servers
    for child in children:
        if not child.alive:
            verdict.wrong("exit", child.name, "ended by itself")
            continue
        reading = readings[child.name] = child.reading()
        if reading.resident_bytes > _MOST_BYTES:
            verdict.wrong("memory", child.name, f"{reading.resident_bytes // 2**20} MiB")
        if reading.descriptors > most:
            verdict.wrong("descriptors", child.name, f"{reading.descriptors}, at most {most}; {dict(child.peers())}")
    if channels := await asyncio.to_thread(stores.channels):
        verdict.wrong("subscriptions", "store", f"nobody reads, and subscribed are {channels[:5]}")
    clients = await asyncio.to_thread(stores.clients)
    if clients > len(children) * (STORE_CONNECTIONS + 4) * servers:
        verdict.wrong("connections", "store", f"{clients} connections")
    return readings

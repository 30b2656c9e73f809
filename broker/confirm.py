"""Writes that are answered only when replicas, or the append-only file, have them: optional, by setting.

`WAIT` and `WAITAOF` wait for the writes of their own connection, and block what is pipelined behind them, so each such
write has a connection to itself while it waits. A count that falls short is no error of Redis's: here it is one, for
the caller to weigh. The write has happened all the same, and may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import StoreUnavailable
from broker.scripts import Script
from broker.store import Store
from broker.wire import Address, Arg, Redirected, Reply, ScriptUnknown, Wire


class NotReplicated(StoreUnavailable):
    """Fewer replicas than `LEGATO_WAIT_REPLICAS` have the write. Cure: the same call again."""

    code = "not_replicated"

    def __init__(self, message: str, *, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


class Confirmer:
    """Runs scripts and waits for their replication, over one store. Does nothing extra where no setting asks."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._idle: dict[Address, list[Wire]] = {}

    @property
    def asked(self) -> bool:
        """Whether a setting asks for confirmation at all."""
        settings = self._store.settings
        return settings.wait_replicas > 0 or settings.wait_aof

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Reply:
        """Run a script that may be repeated; raises `NotReplicated` when it ran and was not confirmed in time."""
        if not self.asked:
            return await self._store.run(script, keys, args)
        address = await self._store.locate(keys[0])
        idle = self._idle.setdefault(address, [])
        wire = idle.pop() if idle else None
        if wire is None or wire.closed:
            wire = await self._store.open_wire(address, timeout=self._store.settings.wait_ms / 1000 + 5)
        try:
            return await self._confirmed(wire, script, keys, args)
        except Redirected as moved:
            await self._store.refresh()
            raise StoreUnavailable("the slot is moving") from moved
        except StoreUnavailable as exc:
            if not isinstance(exc, NotReplicated):
                await self._store.refresh()
            raise
        finally:
            idle.append(wire)

    async def _confirmed(self, wire: Wire, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Reply:
        try:
            reply = await wire.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except ScriptUnknown:
            reply = await wire.call("EVAL", script.source, len(keys), *keys, *args)
        settings = self._store.settings
        if settings.wait_aof:
            local, replicas = await wire.call("WAITAOF", 1, settings.wait_replicas, settings.wait_ms)
        else:
            local, replicas = 1, await wire.call("WAIT", settings.wait_replicas, settings.wait_ms)
        if local < 1 or replicas < settings.wait_replicas:
            short = f"{replicas} of {settings.wait_replicas} replicas confirmed the write in {settings.wait_ms} ms"
            raise NotReplicated(short, reply=reply)
        return reply

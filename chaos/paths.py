"""Faults of connections, through our proxies: of the ways between clients and APIs, and of the paths to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from chaos.proxy import Proxy, Way
from chaos.schedule import Fault, Kind

#: How much a throttled path carries, and by how much it delays.
_SLOW_BYTES: Final = 3000
_SLOW_SECONDS: Final = 0.1

#: What `break_paths` does.
PATHS: Final = frozenset({Kind.STORE_CUT, Kind.STORE_CUT_AT, Kind.STORE_HELD, Kind.STORE_LATE, Kind.STORE_OUTAGE})


async def break_ways(fault: Fault, proxies: Sequence[Proxy]) -> None:
    """The faults of the ways between clients and APIs."""
    match fault.kind:
        case Kind.VIEWERS_CUT:
            for proxy in proxies:
                proxy.cut()
        case Kind.VIEWERS_CUT_AT:
            for proxy in proxies:
                proxy.cut_at(fault.size)
        case _:
            proxy = proxies[fault.target % len(proxies)]
            if fault.kind is Kind.VIEWERS_HELD:
                proxy.hold(Way.DOWN if fault.size % 3 else Way.UP)
            else:
                proxy.bytes_per_second, proxy.delay_seconds = _SLOW_BYTES, _SLOW_SECONDS
            await asyncio.sleep(fault.seconds)
            proxy.release()


async def break_paths(fault: Fault, proxies: Sequence[Proxy]) -> None:
    """The faults of the paths to the store: what is asked or answered is lost, or late."""
    match fault.kind:
        case Kind.STORE_CUT:
            for proxy in proxies:
                proxy.cut()
        case Kind.STORE_CUT_AT:
            for proxy in proxies:
                proxy.cut_at(fault.size)
            await asyncio.sleep(1.0)
        case Kind.STORE_HELD:
            for proxy in proxies:
                proxy.hold(Way.DOWN)
            await asyncio.sleep(fault.seconds)
            for proxy in proxies:
                if fault.size % 3:
                    proxy.cut()  # the replies never come
                proxy.release()
        case Kind.STORE_LATE:
            for proxy in proxies:
                proxy.hold(Way.UP)
            await asyncio.sleep(fault.seconds)
            for proxy in proxies:
                proxy.release()
        case Kind.STORE_OUTAGE:
            for proxy in proxies:
                proxy.refusing = True
                proxy.cut()
            await asyncio.sleep(fault.seconds)
            for proxy in proxies:
                proxy.release()

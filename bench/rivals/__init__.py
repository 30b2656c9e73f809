"""Everything that Legato is compared with, by name: one file each says how it is installed, started, written and read.

They are only run, never shipped; each has its own licence. The last one is Legato itself, with several processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bench.contender import Contender
from bench.legato import LegatoProcesses
from bench.rivals.c_floor import CFloor
from bench.rivals.centrifugo import Centrifugo
from bench.rivals.direct import Direct
from bench.rivals.durable_streams import DurableStreams
from bench.rivals.mercure import Mercure
from bench.rivals.naive import NaiveFastApiSse, NaiveSseStarlette, NaiveStreaming
from bench.rivals.nchan import Nchan, NchanRedis
from bench.rivals.redis_asyncio import RedisAsyncio
from bench.rivals.resumable_stream import ResumableStream, ResumableStreamFirst

_ALL: Final[tuple[Contender, ...]] = (
    CFloor(),
    NaiveStreaming(),
    NaiveSseStarlette(),
    NaiveFastApiSse(),
    ResumableStream(),
    ResumableStreamFirst(),
    DurableStreams(),
    Nchan(),
    NchanRedis(),
    Mercure(),
    Centrifugo(),
    Direct(),
    RedisAsyncio(),
    LegatoProcesses(),
)

RIVALS: Final[Mapping[str, Contender]] = {rival.name: rival for rival in _ALL}

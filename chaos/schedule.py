"""From a seed to a list of timed faults. Pure: the same seed, profile and length give the same schedule, anywhere."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Profile(Enum):
    """A shape of store."""

    SINGLE = "single"  # one server
    REPLICA = "replica"  # a primary and a replica behind one address
    SENTINEL = "sentinel"  # the same under three Sentinels
    CLUSTER = "cluster"  # three primaries, the slots shared
    REMOTE = "remote"  # a stack of somebody's own, of which only the ways to its APIs are ours to break

    @property
    def is_ours(self) -> bool:
        """Whether the suite starts it, and may break it."""
        return self is not Profile.REMOTE


class Kind(Enum):
    """A fault. The comment says what `seconds` means where it is not simply how long it lasts."""

    API_KILL = "api_kill"  # SIGKILL; seconds until it is started again
    API_PAUSE = "api_pause"  # SIGSTOP … SIGCONT
    API_TERM = "api_term"  # SIGTERM, and a new one when it has gone
    WORKER_KILL = "worker_kill"  # SIGKILL; seconds until it is started again
    WORKER_PAUSE = "worker_pause"  # SIGSTOP … SIGCONT, often for longer than the lease
    WORKER_TERM = "worker_term"  # SIGTERM, and a new one when it has gone
    ROLLING_RESTART = "rolling_restart"  # SIGTERM of every process, one after the other
    VIEWERS_CUT = "viewers_cut"  # reset of every connection through the proxies of the APIs
    VIEWERS_CUT_AT = "viewers_cut_at"  # the same, at a byte
    VIEWERS_HELD = "viewers_held"  # nothing from the APIs gets through
    VIEWERS_SLOW = "viewers_slow"  # throttled and delayed
    STORE_CUT = "store_cut"  # reset of every connection to the store
    STORE_CUT_AT = "store_cut_at"  # the same, in the middle of a reply
    STORE_HELD = "store_held"  # replies get lost: outcomes are unknown
    STORE_LATE = "store_late"  # requests arrive late, after those who sent them have given up
    STORE_OUTAGE = "store_outage"  # refused for longer than the lease
    STORE_SLEEP = "store_sleep"  # DEBUG SLEEP
    STORE_PAUSE = "store_pause"  # SIGSTOP … SIGCONT of a server
    STORE_TERM = "store_term"  # SIGTERM of a server; comes back with its file, which is whole, after `seconds`
    STORE_FULL = "store_full"  # maxmemory reached, then lifted
    SCRIPT_FLUSH = "script_flush"
    CLIENT_KILL = "client_kill"
    STORE_KILL = "store_kill"  # SIGKILL; comes back with its file after `seconds`
    STORE_KILL_EMPTY = "store_kill_empty"  # SIGKILL; comes back without its file
    FLUSHALL = "flushall"
    PROMOTION = "promotion"  # a replica that has been cut off for `seconds` is made the primary
    FAILOVER = "failover"  # SIGKILL of the primary; the Sentinels promote the replica
    RESHARD = "reshard"  # slots of live generations, and the queue's, move to other nodes

    @property
    def is_of_the_store(self) -> bool:
        """Whether it is the store, or the path to it, that fails."""
        return self not in _PROCESSES and self not in _VIEWERS

    @property
    def loses_data(self) -> bool:
        """Whether the store may forget what it has acknowledged."""
        return self in _LOSING


_LOSING: Final = frozenset({Kind.STORE_KILL, Kind.STORE_KILL_EMPTY, Kind.FLUSHALL, Kind.PROMOTION, Kind.FAILOVER})

#: How long each lasts, least and most, in seconds.
_SECONDS: Final[Mapping[Kind, tuple[float, float]]] = {
    Kind.API_KILL: (0.2, 2.0),
    Kind.API_PAUSE: (0.5, 4.0),
    Kind.API_TERM: (0.0, 0.5),
    Kind.WORKER_KILL: (0.2, 3.0),
    Kind.WORKER_PAUSE: (0.5, 6.0),
    Kind.WORKER_TERM: (0.0, 0.5),
    Kind.ROLLING_RESTART: (0.0, 0.5),
    Kind.VIEWERS_CUT: (0.0, 0.0),
    Kind.VIEWERS_CUT_AT: (0.0, 0.0),
    Kind.VIEWERS_HELD: (1.0, 5.0),
    Kind.VIEWERS_SLOW: (2.0, 5.0),
    Kind.STORE_CUT: (0.0, 0.0),
    Kind.STORE_CUT_AT: (0.0, 0.0),
    Kind.STORE_HELD: (0.5, 4.0),
    Kind.STORE_LATE: (2.2, 6.0),
    Kind.STORE_OUTAGE: (2.5, 7.0),
    Kind.STORE_SLEEP: (1.0, 5.0),
    Kind.STORE_PAUSE: (0.5, 6.0),
    Kind.STORE_TERM: (0.1, 3.0),
    Kind.STORE_FULL: (1.5, 4.0),
    Kind.SCRIPT_FLUSH: (0.0, 0.0),
    Kind.CLIENT_KILL: (0.0, 0.0),
    Kind.STORE_KILL: (0.1, 4.0),
    Kind.STORE_KILL_EMPTY: (0.1, 3.0),
    Kind.FLUSHALL: (0.0, 0.0),
    Kind.PROMOTION: (0.1, 1.0),
    Kind.FAILOVER: (0.5, 2.0),
    Kind.RESHARD: (0.3, 1.5),
}

_PROCESSES: Final = (
    Kind.API_KILL,
    Kind.API_PAUSE,
    Kind.API_TERM,
    Kind.WORKER_KILL,
    Kind.WORKER_PAUSE,
    Kind.WORKER_TERM,
    Kind.ROLLING_RESTART,
)
_VIEWERS: Final = (Kind.VIEWERS_CUT, Kind.VIEWERS_CUT_AT, Kind.VIEWERS_HELD, Kind.VIEWERS_SLOW)
_PATH: Final = (Kind.STORE_CUT, Kind.STORE_CUT_AT, Kind.STORE_HELD, Kind.STORE_LATE, Kind.STORE_OUTAGE)
_INSIDE: Final = (Kind.STORE_SLEEP, Kind.STORE_FULL, Kind.SCRIPT_FLUSH, Kind.CLIENT_KILL, Kind.FLUSHALL)
#: Under Sentinel a server that pauses or stops is failed over: there it is `store_sleep` and `failover`.
_SERVER: Final = (Kind.STORE_PAUSE, Kind.STORE_TERM, Kind.STORE_KILL, Kind.STORE_KILL_EMPTY)

#: What only one profile has is in its bag more than once, so that no kind stays rare.
KINDS: Final[Mapping[Profile, tuple[Kind, ...]]] = {
    Profile.SINGLE: (*_PROCESSES, *_VIEWERS, *_PATH, *_INSIDE, *_SERVER),
    Profile.REPLICA: (
        *_PROCESSES,
        *_VIEWERS,
        *_PATH,
        *_INSIDE,
        *_SERVER,
        Kind.PROMOTION,
        Kind.PROMOTION,
        Kind.PROMOTION,
    ),
    Profile.SENTINEL: (*_PROCESSES, *_VIEWERS, *_INSIDE, Kind.FAILOVER, Kind.FAILOVER, Kind.FAILOVER),
    Profile.CLUSTER: (
        *_PROCESSES,
        *_VIEWERS,
        *_PATH,
        *_INSIDE,
        *_SERVER,
        Kind.RESHARD,
        Kind.RESHARD,
        Kind.RESHARD,
    ),
    Profile.REMOTE: _VIEWERS,
}

#: Time between the end of one fault and the next, and how often two overlap.
_GAP_SECONDS: Final = (0.3, 2.5)
_OVERLAP: Final = 0.3
#: After so many faults everything is left alone for a while, so that some generations end in peace.
_SPELL: Final = 12
_PEACE_SECONDS: Final = 5.0
#: The first fault: by then everything is running.
_FIRST_SECONDS: Final = 2.0
#: A process needs about this long to be there again: what takes it down twice at once tests nothing.
_RECOVERY_SECONDS: Final = {
    Kind.ROLLING_RESTART: 8.0,
    Kind.FAILOVER: 14.0,
    Kind.STORE_KILL: 1.0,
    Kind.STORE_TERM: 1.0,
    Kind.PROMOTION: 2.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry of a schedule. `target` picks a process or a node (modulo how many there are); `size` is a number of
    bytes, for cuts."""

    number: int
    at: float  # seconds from the start
    kind: Kind
    seconds: float
    target: int
    size: int


def plan(seed: int, profile: Profile, seconds: float, *, kinds: tuple[Kind, ...] | None = None) -> list[Fault]:
    """The schedule of a run. Kinds come from a bag that is refilled when it is empty, so all come about equally often;
    faults of the store never overlap one another, for then nobody could say which one lost what."""
    draw = random.Random(f"{seed}:{profile.value}")
    every = kinds or KINDS[profile]
    bag: list[Kind] = []
    faults: list[Fault] = []
    now = _FIRST_SECONDS
    store_free = 0.0
    while True:
        if not bag:
            bag = list(every)
            draw.shuffle(bag)
        kind = bag.pop()
        least, most = _SECONDS[kind]
        lasts = round(draw.uniform(least, most), 2)
        at = max(now, store_free) if kind.is_of_the_store else now
        if at >= seconds:
            return faults
        fails_over = profile is Profile.SENTINEL and kind is Kind.STORE_SLEEP  # a sleeping primary is a dead one
        end = at + lasts + _RECOVERY_SECONDS.get(Kind.FAILOVER if fails_over else kind, 0.0)
        faults.append(
            Fault(
                number=len(faults),
                at=round(at, 2),
                kind=kind,
                seconds=lasts,
                target=draw.randrange(1000),
                size=draw.randrange(1, 3000),
            )
        )
        if kind.is_of_the_store:
            store_free = end + 0.5
        overlaps = draw.random() < _OVERLAP
        now = at + (draw.uniform(0, 0.5) if overlaps else end - at + draw.uniform(*_GAP_SECONDS))
        if len(faults) % _SPELL == 0:
            now = end + _PEACE_SECONDS

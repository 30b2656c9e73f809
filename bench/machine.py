"""The machine: which core does what, what processes used, and whether anything else was in the way.

The server has core 0 for itself; Redis, the viewers, the writer and this process share core 1. So a server's figure is
never mixed with what drives it, and one process is compared with one process.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.row import MOST_SPREAD, Busy, Summary

SERVER_CORE: Final = 0
LOAD_CORE: Final = 1

#: More than this share of the two cores taken by others, or by the hypervisor, makes a run unfit.
MOST_OTHERS: Final = 0.05
MOST_STEAL: Final = 0.02

_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: A second of two cores; what is shorter is mostly rounding.
_LEAST_TICKS: Final = 2 * _TICKS


class TooFewCores(Exception):
    """The server and what drives it need a core each."""


def take_load_core() -> None:
    """Put this process, and so all that it starts without saying more, on the core of the load."""
    if not {SERVER_CORE, LOAD_CORE} <= os.sched_getaffinity(0):
        raise TooFewCores(f"cores {SERVER_CORE} and {LOAD_CORE} are needed, and not both are here")
    os.sched_setaffinity(0, {LOAD_CORE})


def on_core(core: int, command: Sequence[str]) -> list[str]:
    """The command, bound to a core with all its threads and children."""
    return ["taskset", "--cpu-list", str(core), *command]


def cpu_us(pids: Iterable[int]) -> float:
    """User and system time that processes used so far, in µs; one that has gone counts nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total * 1e6 / _TICKS


def rss_kib(pids: Iterable[int]) -> float:
    """Resident memory of processes, in KiB."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    total += int(line.split()[1])
    return float(total)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(part) for part in text.split()]


def free_port() -> int:
    """A port on loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What the two cores have done since the machine started, in ticks."""

    all: int
    busy: int
    steal: int


class Watch:
    """Compares what the two cores did over a time with what our own processes used of it."""

    def __init__(self) -> None:
        self._begin = _clock()
        self._own = os.times()

    def busy(self, ours_us: float) -> Busy | None:
        """Since the watch was made; `ours_us` is what the processes of the run used, but for this one. None for a time
        that is too short to be told in ticks."""
        end = _clock()
        now = os.times()
        own = now.user + now.system - self._own.user - self._own.system
        ticks = end.all - self._begin.all
        if ticks < _LEAST_TICKS:
            return None
        others = end.busy - self._begin.busy - ours_us * _TICKS / 1e6 - own * _TICKS
        return Busy(steal=round((end.steal - self._begin.steal) / ticks, 4), others=round(max(others, 0) / ticks, 4))


def verdict(summaries: Sequence[Summary], busy: Sequence[Busy]) -> list[str]:
    """Why the figures of a run are not fit to be quoted; empty when they are."""
    reasons = []
    if busy:
        others, steal = max(item.others for item in busy), max(item.steal for item in busy)
        if others > MOST_OTHERS:
            reasons.append(f"other programs took up to {others:.0%} of the two cores (at most {MOST_OTHERS:.0%})")
        if steal > MOST_STEAL:
            reasons.append(f"the hypervisor took up to {steal:.0%} of the two cores (at most {MOST_STEAL:.0%})")
    wide = [item for item in summaries if not item.fit]
    if wide:
        worst = max(wide, key=lambda item: item.spread)
        reasons.append(
            f"{len(wide)} of {len(summaries)} lines spread by more than {MOST_SPREAD:.0%}, "
            f"the widest {worst.workload} {worst.contender} at {worst.point} by {worst.spread:.0%}"
        )
    return reasons


def description() -> list[str]:
    """What the figures were measured on, a line each."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB",
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    ]


def _clock() -> Clock:
    every = busy = steal = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *parts = line.split()
        if name in (f"cpu{SERVER_CORE}", f"cpu{LOAD_CORE}"):
            user, nice, system, idle, iowait, irq, softirq, stolen = (int(part) for part in parts[:8])
            every += user + nice + system + idle + iowait + irq + softirq + stolen
            # Interrupts are the kernel's work for everybody, ours included, and nobody's CPU time.
            busy += user + nice + system
            steal += stolen
    return Clock(all=every, busy=busy, steal=steal)

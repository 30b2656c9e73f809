"""Has a token become dearer? A short run that fails when it has. For CI: about a minute.

    python -m bench.guard

Absolute figures of a shared machine say little, ratios within one interleaved run much more. First Legato's own Python
is compared with a fixed piece of Python (`bench.hot_path`): these ratios vary by a few per cent, on any machine. Then
the whole server is compared with the floor (one write() an event, in C) and with the naive server (one XREAD a viewer),
which Legato's own environment can run. All of them are up the whole time; in each round each is measured for a short
while, one after the other, and each ratio is the median over the rounds of what two windows a few seconds apart say.

Exits 0 when the ratios hold and 1 when they do not. 3: it cannot tell, as there is no C compiler, there are too few
cores, or a ratio of the servers does not hold on a machine that was busy with other things.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import hot_path
from bench.contender import Contender, NotStarted, place_of
from bench.legato import Legato
from bench.machine import MOST_STEAL, TooFewCores, take_load_core
from bench.measure import Plan, live, outcome_of
from bench.programs import CompilerMissing, ProgramFailed, build
from bench.rivals.c_floor import CFloor
from bench.rivals.naive import with_own_interpreter
from bench.row import spread
from bench.workload import Outcome
from bench.workloads.live import RATE

#: Few enough that the naive server is far from its ceiling: near it, it merges tokens, and an event seems cheap.
STREAMS: Final = 40
ROUNDS: Final = 6
PLAN: Final = Plan(warm_seconds=0.7, window_seconds=1.5)
#: Ratios stand more noise than figures that are quoted: with more than this share taken by others nothing is judged.
MOST_OTHERS: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """How many times what a contender's figure costs Legato's may cost."""

    what: str
    figure: str  # of `Figures`
    over: str  # name of the contender
    most: float


#: An eighth above the worst of what was measured with a load of 2 to 5, twice what a quiet machine says
#: (bench/README.md): for what `HOT_PATH` does not see.
THRESHOLDS: Final = (
    Threshold(what="server CPU over the floor", figure="server_us", over="c_floor", most=4.2),
    Threshold(what="server CPU over the naive server", figure="server_us", over="naive_streaming", most=0.42),
    # Legato's append does more than an XADD.
    Threshold(what="CPU of server and Redis over the naive ones", figure="total_us", over="naive_streaming", most=0.55),
)

#: The same of `bench.hot_path`, by stretch: a quarter above what was measured.
HOT_PATH: Final[Mapping[str, float]] = {"deliver": 0.76, "append": 2.2, "replay": 0.095}

#: Windows by contender, in the order of the rounds.
Windows = Mapping[str, Sequence[Outcome]]


def main() -> int:
    dear = judged_hot_path(hot_path.measured()) and judged_hot_path(hot_path.measured())  # once is no proof
    for line in dear:
        print(f"guard: {line}", file=sys.stderr)
    status = _of_servers()
    return 1 if dear else status


def judged_hot_path(found: Mapping[str, float]) -> list[str]:
    """What of it does not hold; empty when all is well."""
    problems = []
    for name, most in HOT_PATH.items():
        print(f"{name}: {found[name]:.3f} of an event as JSON (at most {most:g})")
        if not found[name] <= most:
            problems.append(f"a token costs {found[name]:.3f} of an event as JSON in {name}, more than {most:g}")
    return problems


def _of_servers() -> int:
    """The exit status for the whole servers."""
    try:
        take_load_core()
        programs = build()
    except (CompilerMissing, TooFewCores, OSError) as problem:
        print(f"guard: nothing was measured: {problem}", file=sys.stderr)
        return 3
    except ProgramFailed as problem:
        print(f"guard: {problem}", file=sys.stderr)
        return 1
    try:
        windows = measured([Legato(), CFloor(), with_own_interpreter()], programs)
    except (ProgramFailed, NotStarted) as problem:
        print(f"guard: {problem}", file=sys.stderr)
        return 1
    for name, outcomes in windows.items():
        print(f"{name:16} {_told(outcomes)}")
    problems = judged(windows)
    for line in problems:
        print(f"guard: {line}", file=sys.stderr)
    if not problems:
        return 0
    if reason := busy(windows):
        print(f"guard: not judged, {reason}", file=sys.stderr)
        return 3
    return 1


def measured(contenders: Sequence[Contender], programs: Path) -> Windows:
    """All of them started once, then measured in turn. Raises `NotStarted`, `ProgramFailed`."""
    found: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        started = []
        for contender in contenders:
            place = stack.enter_context(place_of(programs, rate=RATE))
            started.append((contender, place, stack.enter_context(contender.start(place))))
        for _ in range(ROUNDS):
            for contender, place, running in started:
                streams = contender.prepare(running, STREAMS)
                window = live(contender, place, running, streams, PLAN, viewers=STREAMS)
                found[contender.name].append(outcome_of(window))
    return found


def ratio(windows: Windows, threshold: Threshold) -> float:
    """Median over the rounds; NaN, which no threshold holds, where a window has no such figure."""
    found = []
    for own, other in zip(windows["legato"], windows[threshold.over], strict=True):
        ours, theirs = (getattr(outcome.figures, threshold.figure) for outcome in (own, other))
        found.append(ours / theirs if ours is not None and theirs else float("nan"))
    return statistics.median(found) if all(one == one for one in found) else float("nan")


def judged(windows: Windows) -> list[str]:
    """What does not hold; empty when all is well."""
    problems = []
    for name, outcomes in windows.items():
        faulty = [one for one in outcomes if one.gaps or one.duplicates or one.missing or one.errors]
        if faulty:
            first = faulty[0]
            problems.append(
                f"{name}: in {len(faulty)} of {len(outcomes)} windows something was lost, repeated or failed: "
                f"{first.gaps} gaps, {first.duplicates} duplicates, {first.missing} missing, {first.errors} errors"
                f"{first.note and '; '}{first.note}"
            )
    for threshold in THRESHOLDS:
        seen = ratio(windows, threshold)
        print(f"{threshold.what}: {seen:.2f} (at most {threshold.most:g})")
        if not seen <= threshold.most:
            problems.append(f"{threshold.what} is {seen:.2f}, more than {threshold.most:g}")
    return problems


def busy(windows: Windows) -> str | None:
    """Why this was no machine to judge on: what else it did, in the median window."""
    seen = [outcome.busy for outcomes in windows.values() for outcome in outcomes if outcome.busy is not None]
    if not seen:
        return None
    others, steal = (
        statistics.median(values) for values in ([one.others for one in seen], [one.steal for one in seen])
    )
    if others <= MOST_OTHERS and steal <= MOST_STEAL:
        return None
    return f"the machine is busy: others took {others:.0%} of the two cores, the hypervisor {steal:.0%}"


def _told(outcomes: Sequence[Outcome]) -> str:
    figures = [outcome.figures for outcome in outcomes]
    server, store, p99 = (
        [getattr(one, name) or 0.0 for one in figures] for name in ("server_us", "store_us", "p99_ms")
    )
    return (
        f"server {statistics.median(server):6.1f}  Redis {statistics.median(store):6.1f} µs/event"
        f"  p99 {statistics.median(p99):7.2f} ms  spread {spread(server):.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())

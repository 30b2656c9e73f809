"""Has a token become dearer? A short run that fails when it has. For CI: under two minutes.

    python -m bench.guard

Absolute figures of a shared machine say little, ratios within one interleaved run much more: Legato is compared with
the floor (one write() an event, in C) and with the naive server (one XREAD a viewer), which Legato's own environment
can run. Exits 0 when the ratios hold, 1 when they do not, 3 when there is no C compiler or there are too few cores.
"""

from __future__ import annotations

import sys
from typing import Final

from bench.contender import Contender
from bench.legato import Legato
from bench.machine import TooFewCores, take_load_core
from bench.measure import outcome_of
from bench.programs import CompilerMissing, ProgramFailed, build
from bench.rivals.c_floor import CFloor
from bench.rivals.naive import with_own_interpreter
from bench.row import Row, Summary, summaries
from bench.workload import Means
from bench.workloads.live import measure

STREAMS: Final = 100
ROUNDS: Final = 3
WINDOW_SECONDS: Final = 3.0

#: Server CPU of Legato over the floor's, at most.
MOST_OVER_FLOOR: Final = 9.0
#: Server CPU of Legato over the naive server's, at most.
MOST_OVER_NAIVE: Final = 0.75
#: The same with Redis' CPU on both sides: Legato's append does more than an XADD.
MOST_TOTAL_OVER_NAIVE: Final = 1.0


def main() -> int:
    try:
        take_load_core()
        means = Means(programs=build(), redis_port=None, quick=False, minutes=0)
    except (CompilerMissing, TooFewCores, ProgramFailed) as problem:
        print(f"guard: {problem}", file=sys.stderr)
        return 3
    contenders: list[Contender] = [Legato(), CFloor(), with_own_interpreter()]
    rows = []
    for round_ in range(1, ROUNDS + 1):
        for contender in contenders:
            outcome = outcome_of(measure(contender, STREAMS, means, window_seconds=WINDOW_SECONDS))
            rows.append(
                Row(
                    workload="W1",
                    contender=contender.name,
                    round=round_,
                    point=f"{STREAMS} streams",
                    x=STREAMS,
                    figures=outcome.figures,
                    gaps=outcome.gaps,
                    duplicates=outcome.duplicates,
                    missing=outcome.missing,
                    errors=outcome.errors,
                )
            )
    found = {item.contender: item for item in summaries(rows, {"W1": "server_us"})}
    for name, item in found.items():
        figures = item.figures
        print(
            f"{name:18} server {figures.server_us or 0:6.1f}  Redis {figures.store_us or 0:6.1f} µs/event"
            f"  p99 {figures.p99_ms or 0:7.2f} ms  spread {item.spread:.0%}"
        )
    problems = judged(found["legato"], found["c_floor"], found["naive_streaming"])
    for line in problems:
        print(f"guard: {line}", file=sys.stderr)
    return 1 if problems else 0


def judged(legato: Summary, floor: Summary, naive: Summary) -> list[str]:
    """What does not hold; empty when all is well."""
    problems = [f"{item.contender} lost, repeated or failed" for item in (legato, floor, naive) if item.invalid]
    for what, ratio, most in (
        ("server CPU over the floor", _ratio(legato.figures.server_us, floor.figures.server_us), MOST_OVER_FLOOR),
        (
            "server CPU over the naive server",
            _ratio(legato.figures.server_us, naive.figures.server_us),
            MOST_OVER_NAIVE,
        ),
        (
            "total CPU over the naive one",
            _ratio(legato.figures.total_us, naive.figures.total_us),
            MOST_TOTAL_OVER_NAIVE,
        ),
    ):
        print(f"{what}: {ratio:.2f} (at most {most})")
        if not ratio <= most:
            problems.append(f"{what} is {ratio:.2f}, more than {most}")
    return problems


def _ratio(one: float | None, other: float | None) -> float:
    """NaN, which no threshold holds, where either was not measured."""
    return one / other if one is not None and other else float("nan")


if __name__ == "__main__":
    sys.exit(main())

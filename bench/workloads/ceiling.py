"""W1C: how much one process takes: W1 with ever more streams, until tokens are late, lost or not delivered at all."""

from __future__ import annotations

from typing import Final

from bench.contender import Contender
from bench.measure import outcome_of
from bench.row import Figures
from bench.workload import Means, Outcome, Point, Workload
from bench.workloads.live import RATE, measure

#: Streams of 50 tokens a second.
STEPS: Final = (100, 200, 300, 400, 500, 600, 800, 1000, 1200, 1600, 2000)
QUICK_STEPS: Final = (40, 80)
#: A step holds if this share of the tokens came, and came in time.
LEAST_DELIVERED: Final = 0.97
MOST_P99_MS: Final = 100.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    best = Outcome(figures=Figures(), errors=1, note="not even the first step held")
    for streams in QUICK_STEPS if means.quick else STEPS:
        outcome = outcome_of(measure(contender, streams, means))
        if not holds(outcome, streams * RATE):
            stopped = f"{best.note}; did not hold {streams} streams" if not best.errors else best.note
            return Outcome(figures=best.figures, errors=best.errors, note=stopped, busy=outcome.busy)
        best = Outcome(figures=outcome.figures, note=f"held {streams} streams", busy=outcome.busy)
    return best


def holds(outcome: Outcome, offered: float) -> bool:
    """Whether what was offered, in tokens a second, was delivered whole and in time."""
    figures = outcome.figures
    if outcome.gaps or outcome.duplicates or outcome.missing or outcome.errors:
        return False
    if figures.events_per_second is None or figures.p99_ms is None:
        return False
    return figures.events_per_second >= LEAST_DELIVERED * offered and figures.p99_ms <= MOST_P99_MS


WORKLOAD: Final = Workload(
    name="W1C",
    title="the most tokens/s that one process delivers with p99 below 100 ms, 50 tokens/s a stream",
    headline="events_per_second",
    points=(Point(label="ceiling", x=0),),
    quick_points=(Point(label="ceiling", x=0),),
    run=_run,
)

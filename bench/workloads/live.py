"""W1: many streams, one viewer each, 50 tokens a second: what a chat product does all day."""

from __future__ import annotations

from typing import Final

from bench.contender import Contender, place_of
from bench.measure import Measured, Plan, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

RATE: Final = 50.0
WARM_SECONDS: Final = 1.5
WINDOW_SECONDS: Final = 5.0


def measure(contender: Contender, streams: int, means: Means, *, window_seconds: float = WINDOW_SECONDS) -> Measured:
    """One window at so many streams."""
    with place_of(means.programs, rate=RATE, redis_port=means.redis_port) as place, contender.start(place) as running:
        plan = Plan(warm_seconds=means.seconds(WARM_SECONDS), window_seconds=means.seconds(window_seconds))
        return live(contender, place, running, contender.prepare(running, streams), plan, viewers=streams)


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    return outcome_of(measure(contender, point.x, means))


WORKLOAD: Final = Workload(
    name="W1",
    title="S streams, one viewer each, 50 tokens/s a stream",
    headline="total_us",
    points=tuple(Point(label=f"{streams} streams", x=streams) for streams in (20, 100, 200, 400)),
    quick_points=(Point(label="40 streams", x=40),),
    run=_run,
)

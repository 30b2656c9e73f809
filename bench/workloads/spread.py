"""W1S: the same 5,000 tokens a second, spread over ever more streams: what a stream costs besides its tokens."""

from __future__ import annotations

from typing import Final

from bench.contender import Contender, place_of
from bench.measure import Plan, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

EVENTS_PER_SECOND: Final = 5000.0
WARM_SECONDS: Final = 3.0
WINDOW_SECONDS: Final = 6.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    streams = point.x
    rate = EVENTS_PER_SECOND / streams
    with place_of(means.programs, rate=rate, redis_port=means.redis_port) as place, contender.start(place) as running:
        plan = Plan(warm_seconds=means.seconds(WARM_SECONDS), window_seconds=means.seconds(WINDOW_SECONDS))
        return outcome_of(live(contender, place, running, contender.prepare(running, streams), plan, viewers=streams))


WORKLOAD: Final = Workload(
    name="W1S",
    title="5,000 tokens/s in all, over S streams with one viewer each",
    headline="total_us",
    points=tuple(Point(label=f"{streams} streams", x=streams) for streams in (10, 100, 1000, 10_000)),
    quick_points=(Point(label="50 streams", x=50),),
    run=_run,
)

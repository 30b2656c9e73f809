"""W2: one stream that many read: a shared chat, or one answer on many screens."""

from __future__ import annotations

from typing import Final

from bench.contender import Contender, place_of
from bench.measure import Plan, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

RATE: Final = 50.0
WARM_SECONDS: Final = 1.5
WINDOW_SECONDS: Final = 5.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    with place_of(means.programs, rate=RATE, redis_port=means.redis_port) as place, contender.start(place) as running:
        plan = Plan(warm_seconds=means.seconds(WARM_SECONDS), window_seconds=means.seconds(WINDOW_SECONDS))
        streams = contender.prepare(running, 1, shared=True)
        return outcome_of(live(contender, place, running, streams, plan, viewers=point.x))


WORKLOAD: Final = Workload(
    name="W2",
    title="one stream of 50 tokens/s, N viewers",
    headline="total_us",
    points=tuple(Point(label=f"{viewers} viewers", x=viewers) for viewers in (10, 100, 1000)),
    quick_points=(Point(label="50 viewers", x=50),),
    run=_run,
)

"""W6: a quiet system: ten streams of 20 tokens a second, from writer to viewer."""

from __future__ import annotations

from typing import Final

from bench.contender import Contender, place_of
from bench.measure import Plan, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

STREAMS: Final = 10
RATE: Final = 20.0
WARM_SECONDS: Final = 1.5
WINDOW_SECONDS: Final = 10.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    with place_of(means.programs, rate=RATE, redis_port=means.redis_port) as place, contender.start(place) as running:
        plan = Plan(warm_seconds=means.seconds(WARM_SECONDS), window_seconds=means.seconds(WINDOW_SECONDS))
        streams = contender.prepare(running, point.x)
        return outcome_of(live(contender, place, running, streams, plan, viewers=point.x))


WORKLOAD: Final = Workload(
    name="W6",
    title="ten streams of 20 tokens/s: latency (CPU a token means little at this rate)",
    headline="p50_ms",
    points=(Point(label=f"{STREAMS} streams", x=STREAMS),),
    quick_points=(Point(label=f"{STREAMS} streams", x=STREAMS),),
    run=_run,
)

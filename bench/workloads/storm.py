"""W8: every viewer is dropped at once and comes back at once, with the last id it has: a load balancer restarts.

A viewer counts as back with its first token, and there is one every 200 ms: less than that nobody can have.
"""

from __future__ import annotations

from typing import Final

from bench.contender import Contender, place_of
from bench.measure import Plan, figures_of, known, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

STREAMS: Final = 100
#: Tokens a second of each stream; whoever is back has one within a fifth of a second.
RATE: Final = 5.0
WARM_SECONDS: Final = 2.0
WINDOW_SECONDS: Final = 12.0
QUICK_SECONDS: Final = 5.0
#: After the window began.
DROP_SECONDS: Final = 1.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    with place_of(means.programs, rate=RATE, redis_port=means.redis_port) as place, contender.start(place) as running:
        window = QUICK_SECONDS if means.quick else WINDOW_SECONDS
        plan = Plan(warm_seconds=WARM_SECONDS, window_seconds=window)
        streams = contender.prepare(running, min(STREAMS, point.x))
        options = ["--resume", "--storm", str(DROP_SECONDS), "--ramp", str(point.x)]
        measured = live(contender, place, running, streams, plan, viewers=point.x, options=options)
        viewed = measured.viewed
        figures = figures_of(
            measured,
            back_ms=known(viewed.storm_ms),
            first_p50_ms=known(viewed.back_p50_ms),
            first_p99_ms=known(viewed.back_p99_ms),
        )
        outcome = outcome_of(measured, figures)
        if figures.back_ms is None:
            return Outcome(figures=figures, errors=1, note=f"not all were back in {window - DROP_SECONDS:.0f} s")
        return outcome


WORKLOAD: Final = Workload(
    name="W8",
    title="N viewers of 100 streams (5 tokens/s) are dropped at once and come back; until all have had a token again",
    headline="back_ms",
    points=tuple(Point(label=f"{viewers} viewers", x=viewers) for viewers in (500, 2000)),
    quick_points=(Point(label="200 viewers", x=200),),
    run=_run,
)

"""W9: some minutes of everything at once: live streams, viewers that come and go, slow ones, cancels.

Memory is what it looks for: what a process has grown by a minute, between the first third of the window and the last.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Sequence
from typing import Final

from bench.contender import Contender, Running, Streams, place_of
from bench.machine import rss_kib
from bench.measure import Plan, figures_of, live, outcome_of
from bench.workload import Means, Outcome, Point, Workload

STREAMS: Final = 500
QUICK_STREAMS: Final = 60
#: Of these, at the end of the list, one is cancelled every `CANCEL_SECONDS`.
CANCELLED_SHARE: Final = 0.1
RATE: Final = 10.0
WARM_SECONDS: Final = 3.0
#: Share of the viewers that drop their connection each second.
CHURN: Final = 0.05
SLOW_VIEWERS: Final = 10
CANCEL_SECONDS: Final = 2.0
SAMPLE_SECONDS: Final = 1.0


def _run(contender: Contender, point: Point, means: Means) -> Outcome:
    seconds = 8.0 if means.quick else 60 * means.minutes
    count = QUICK_STREAMS if means.quick else point.x
    with place_of(means.programs, rate=RATE, redis_port=means.redis_port) as place, contender.start(place) as running:
        streams = contender.prepare(running, count)
        plan = Plan(warm_seconds=WARM_SECONDS, window_seconds=seconds)
        options = ["--resume", "--churn", str(CHURN), "--slow", str(min(SLOW_VIEWERS, count // 10))]
        side = _Side(contender, running, streams)
        side.start()
        try:
            measured = live(contender, place, running, streams, plan, viewers=count, options=options)
        finally:
            side.stop()
        figures = figures_of(
            measured,
            server_kib=growth_a_minute(side.server, SAMPLE_SECONDS),
            store_kib=growth_a_minute(side.store, SAMPLE_SECONDS),
        )
        outcome = outcome_of(measured, figures)
        note = f"{measured.viewed.returns} reconnects, {side.cancelled} cancels"
        return Outcome(
            figures=figures,
            gaps=outcome.gaps,
            duplicates=outcome.duplicates,
            missing=outcome.missing,
            errors=outcome.errors,
            note="; ".join(part for part in (note, outcome.note) if part),
            busy=outcome.busy,
        )


def growth_a_minute(samples: Sequence[float], every_seconds: float) -> float | None:
    """KiB a minute between the middles of the first and the last third; None for too few samples."""
    third = len(samples) // 3
    if not third:
        return None
    minutes = (len(samples) - third) * every_seconds / 60
    return (statistics.median(samples[-third:]) - statistics.median(samples[:third])) / minutes


class _Side(threading.Thread):
    """What happens beside the load: memory is looked at, and streams are cancelled."""

    def __init__(self, contender: Contender, running: Running, streams: Streams) -> None:
        super().__init__(name="side")
        self.server: list[float] = []
        self.store: list[float] = []
        self.cancelled = 0
        self._contender = contender
        self._running = running
        self._names = list(streams.names[: -max(1, round(len(streams.names) * CANCELLED_SHARE)) - 1 : -1])
        self._over = threading.Event()

    def run(self) -> None:
        seconds = 0.0
        redis = self._running.store
        while not self._over.wait(SAMPLE_SECONDS):
            seconds += SAMPLE_SECONDS
            self.server.append(rss_kib(self._running.servers.values()))
            if redis is not None and redis.pid is not None:
                self.store.append(rss_kib([redis.pid]))
            due = seconds > WARM_SECONDS + CANCEL_SECONDS * (self.cancelled + 1)
            if due and self._names and self._contender.cancel(self._running, self._names.pop()):
                self.cancelled += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


WORKLOAD: Final = Workload(
    name="W9",
    title="a mixed day: 500 streams of 10 tokens/s, 5 % of the viewers reconnect each second, slow ones, cancels; "
    "memory is KiB a minute",
    headline="p99_ms",
    points=(Point(label=f"{STREAMS} streams", x=STREAMS),),
    quick_points=(Point(label=f"{QUICK_STREAMS} streams", x=QUICK_STREAMS),),
    run=_run,
)

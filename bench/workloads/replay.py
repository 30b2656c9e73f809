"""W3: reading what was written before: who comes back late, or opens yesterday's chat.

`W3` reads streams as they were written, so also what a viewer of a running one is replayed; `W3S` as they are stored
once nobody writes them any more. Rivals know one form only, and are measured with that in both. Eight viewers at a time
keep the server busy, which shows what a token costs. How long one waits for the first, `W3F` shows: one at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.contender import Contender, place_of
from bench.machine import Watch, cpu_us
from bench.measure import known, preload
from bench.programs import Load
from bench.row import Figures, per_event
from bench.workload import Means, Outcome, Point, Workload

AT_ONCE: Final = 8
#: Tokens that all viewers of a run read in all, about.
TOKENS_READ: Final = 800_000
QUICK_TOKENS_READ: Final = 40_000
LONGEST_SECONDS: Final = 900.0


def _run(contender: Contender, point: Point, means: Means, *, sealed: bool = False, at_once: int = AT_ONCE) -> Outcome:
    tokens = point.x
    total = max(at_once, (QUICK_TOKENS_READ if means.quick else TOKENS_READ) // tokens)
    with place_of(means.programs, rate=0, redis_port=means.redis_port) as place, contender.start(place) as running:
        paths: tuple[str, ...] = (f"/replay/{tokens}",)  # of the floor, which has them from the start
        if contender.name != "c_floor":
            streams = contender.prepare(running, at_once)
            assert streams.writing is not None
            written = preload(place, streams.writing, tokens)
            if written.stored != tokens * at_once or written.errors:
                return Outcome(figures=Figures(), errors=1, note=f"only {written.stored} tokens could be written")
            contender.finish(running, streams, tokens)
            if sealed:
                contender.seal(running, streams)
            paths = streams.paths
        options = ["--mode", "replay", "--address", running.address, "--viewers", str(at_once), "--total", str(total)]
        options += ["--expect", str(tokens), "--seconds", str(LONGEST_SECONDS), "--pids", running.pids()]
        for header in contender.headers:
            options += ["--header", header]
        watch, before = Watch(), cpu_us(running.every_pid())
        viewed = Load(place.programs, place.directory, paths, options).result()
        busy = watch.busy(cpu_us(running.every_pid()) - before + viewed.cpu_us)
        server = viewed.cpu_of(running.servers)
        redis = viewed.cpu_of(["store"]) if "store" in viewed.processes else 0.0
        return Outcome(
            figures=Figures(
                events_per_second=viewed.tokens / viewed.seconds,
                server_us=per_event(server, viewed.tokens),
                store_us=per_event(redis, viewed.tokens),
                total_us=per_event(server + redis, viewed.tokens),
                core_share=server / viewed.seconds / 1e6,
                first_p50_ms=known(viewed.first_p50_ms),
                first_p99_ms=known(viewed.first_p99_ms),
                last_p50_ms=known(viewed.whole_p50_ms),
                last_p99_ms=known(viewed.whole_p99_ms),
            ),
            gaps=viewed.gaps,
            duplicates=viewed.duplicates,
            missing=viewed.missing,
            errors=viewed.errors,
            busy=busy,
        )


WORKLOAD: Final = Workload(
    name="W3",
    title="replay of ended streams, eight at a time",
    headline="total_us",
    points=tuple(Point(label=f"{tokens:,} tokens", x=tokens) for tokens in (200, 2_000, 50_000)),
    quick_points=(Point(label="500 tokens", x=500),),
    run=_run,
)

SEALED: Final = Workload(
    name="W3S",
    title="replay of ended streams as they are stored in the end, eight at a time",
    headline="total_us",
    points=tuple(Point(label=f"{tokens:,} tokens", x=tokens) for tokens in (200, 2_000, 20_000)),
    quick_points=(Point(label="500 tokens", x=500),),
    run=partial(_run, sealed=True),
)

FIRST: Final = Workload(
    name="W3F",
    title="replay of ended streams, one at a time",
    headline="first_p50_ms",
    points=tuple(Point(label=f"{tokens:,} tokens", x=tokens) for tokens in (200, 2_000, 20_000)),
    quick_points=(Point(label="500 tokens", x=500),),
    run=partial(_run, at_once=1),
)

"""W4: viewers that wait: what a connection costs in memory, and what keeping it alive costs in CPU.

In `W4` they share a hundred streams; in `W4S` each has a stream of its own, as when models are slow to begin: there
is seen what is done for each stream.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.contender import Contender, place_of
from bench.machine import Watch, cpu_us
from bench.programs import Load
from bench.row import Figures
from bench.workload import Means, Outcome, Point, Workload

#: Viewers are spread over so many streams that nobody writes, or each has one.
STREAMS: Final = 100
WARM_SECONDS: Final = 2.0
#: Long enough that every viewer is pinged once by those that ping every 15 s.
WINDOW_SECONDS: Final = 20.0


def _run(contender: Contender, point: Point, means: Means, *, alone: bool) -> Outcome:
    viewers = point.x
    with place_of(means.programs, rate=0, redis_port=means.redis_port) as place, contender.start(place) as running:
        paths: tuple[str, ...] = ("/idle",)
        if contender.name != "c_floor":
            paths = contender.prepare(running, viewers if alone else min(STREAMS, viewers)).paths
        options = ["--mode", "idle", "--address", running.address, "--viewers", str(viewers), "--pids", running.pids()]
        options += ["--warm", str(means.seconds(WARM_SECONDS)), "--seconds", str(means.seconds(WINDOW_SECONDS))]
        for header in contender.headers:
            options += ["--header", header]
        watch, before = Watch(), cpu_us(running.every_pid())
        load = Load(place.programs, place.directory, paths, options)
        attached = load.ready()
        viewed = load.result()
        busy = watch.busy(cpu_us(running.every_pid()) - before + viewed.cpu_us)
        cpu = viewed.cpu_of(running.servers)
        growth = viewed.growth_kib_of(running.servers)
        redis = viewed.growth_kib_of(["store"]) if "store" in viewed.processes else 0.0
        notes = [f"attached in {viewed.attach_seconds:.2f} s, {viewed.comments} pings"]
        if viewed.dropped:
            notes.append(f"{viewed.dropped} connections were closed by the server")
        return Outcome(
            figures=Figures(
                server_us=cpu / viewed.comments if viewed.comments else None,
                core_share=cpu / viewed.seconds / 1e6,
                server_kib=growth / viewers,
                store_kib=redis / viewers,
                total_kib=(growth + redis) / viewers,
            ),
            errors=viewed.errors + viewed.dropped + viewers - attached,
            note="; ".join(notes),
            busy=busy,
        )


WORKLOAD: Final = Workload(
    name="W4",
    title="N viewers that wait: memory a viewer; CPU is µs a ping",
    headline="total_kib",
    points=tuple(Point(label=f"{viewers} viewers", x=viewers) for viewers in (1000, 3000, 5000)),
    quick_points=(Point(label="200 viewers", x=200),),
    run=partial(_run, alone=False),
)

ALONE: Final = Workload(
    name="W4S",
    title="N viewers that wait, each for a stream of its own",
    headline="core_share",
    points=(Point(label="3000 viewers", x=3000),),
    quick_points=(Point(label="200 viewers", x=200),),
    run=partial(_run, alone=True),
)

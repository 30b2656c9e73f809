"""W7: from a job to its answer, with a scripted provider behind: what Legato adds to streaming directly.

Both are asked by POST and answer with the stream. The provider stamps each token when it sends it, so latency is what
lies between it and the viewer; the first token's time is from the viewer's connecting (the provider sends it after
20 ms). `W7` are answers of 100 tokens at 50 a second: one at a time, which shows what each is made to wait, and many
that begin together, which also wait for one another. `W7J` are answers of one token as fast as they go: jobs a second
from submit over claim to the end, with API and worker on one core, and how many of them one Redis would carry.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Final

from bench.contender import Contender, Place, Running, place_of, process
from bench.legato import ROOT
from bench.machine import LOAD_CORE, Watch, cpu_us, free_port
from bench.measure import known
from bench.programs import Load, Viewed
from bench.row import Busy, Figures, per_event
from bench.workload import Means, Outcome, Point, Workload

TOKENS: Final = 100
QUICK_TOKENS: Final = 30
RATE: Final = 50
#: Answers that each viewer reads, one after the other.
ANSWERS_A_VIEWER: Final = 4
#: And all together at least.
LEAST_ANSWERS: Final = 20
JOBS_A_VIEWER: Final = 40
QUICK_JOBS_A_VIEWER: Final = 5
LONGEST_SECONDS: Final = 300.0


def _answers(contender: Contender, point: Point, means: Means) -> Outcome:
    tokens = QUICK_TOKENS if means.quick else TOKENS
    total = point.x if means.quick else max(LEAST_ANSWERS, point.x * ANSWERS_A_VIEWER)
    return _asked(contender, means, viewers=point.x, total=total, tokens=tokens, rate=RATE)


def _jobs(contender: Contender, point: Point, means: Means) -> Outcome:
    total = point.x * (QUICK_JOBS_A_VIEWER if means.quick else JOBS_A_VIEWER)
    outcome = _asked(contender, means, viewers=point.x, total=total, tokens=1, rate=0)
    if not outcome.figures.store_us:
        return outcome
    bound = 1e6 / outcome.figures.store_us
    return replace(outcome, note=f"API and worker share a core; a core of Redis carries {bound:,.0f} jobs/s")


def _asked(contender: Contender, means: Means, *, viewers: int, total: int, tokens: int, rate: int) -> Outcome:
    port = free_port()
    provider = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "bench.provider", "--port", str(port)]
    with (
        place_of(means.programs, rate=rate, redis_port=means.redis_port) as place,
        process(
            place,
            "provider",
            command,
            url=f"http://{provider}/",
            environment=os.environ,
            core=LOAD_CORE,
            directory=ROOT,
        ) as scripted,
        contender.whole(place, provider) as running,
    ):
        model = f"t{tokens}-r{rate}"
        # Connections are made and code is warm before anything is measured.
        _view(place, running, model="t1-r0", tokens=1, viewers=viewers, total=2 * viewers)
        watch, before = Watch(), cpu_us([*running.every_pid(), scripted.pid])
        viewed = _view(place, running, model=model, tokens=tokens, viewers=viewers, total=total)
        ours = cpu_us([*running.every_pid(), scripted.pid]) - before + viewed.cpu_us
        return _outcome(viewed, running, events=total if tokens == 1 else viewed.tokens, busy=watch.busy(ours))


def _view(place: Place, running: Running, *, model: str, tokens: int, viewers: int, total: int) -> Viewed:
    body = {"model": model, "messages": [{"role": "user", "content": "Say something."}]}
    if running.extra["provider"]:
        body["provider"] = running.extra["provider"]
    posted = place.directory / "body.json"
    posted.write_text(json.dumps(body) + "\n")
    options = ["--mode", "replay", "--address", running.address, "--post", str(posted), "--viewers", str(viewers)]
    options += ["--total", str(total), "--expect", str(tokens), "--to-end", "--seconds", str(LONGEST_SECONDS)]
    return Load(place.programs, place.directory, [running.extra["path"]], [*options, "--pids", running.pids()]).result()


def _outcome(viewed: Viewed, running: Running, *, events: int, busy: Busy | None) -> Outcome:
    server = viewed.cpu_of(running.servers)
    redis = viewed.cpu_of(["store"]) if "store" in viewed.processes else 0.0
    return Outcome(
        figures=Figures(
            events_per_second=events / viewed.seconds,
            server_us=per_event(server, events),
            store_us=per_event(redis, events),
            total_us=per_event(server + redis, events),
            core_share=server / viewed.seconds / 1e6,
            p50_ms=known(viewed.p50_ms),
            p99_ms=known(viewed.p99_ms),
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


ANSWERS: Final = Workload(
    name="W7",
    title="job to answer, 100 tokens at 50/s, against streaming directly: time to the first token, delay of each",
    headline="first_p50_ms",
    points=tuple(Point(label=f"{viewers} at a time", x=viewers) for viewers in (1, 10, 50)),
    quick_points=(Point(label="10 at a time", x=10),),
    run=_answers,
)

JOBS: Final = Workload(
    name="W7J",
    title="jobs of one token, from submit over claim to the end; events are jobs",
    headline="events_per_second",
    points=(Point(label="20 at a time", x=20),),
    quick_points=(Point(label="20 at a time", x=20),),
    run=_jobs,
)

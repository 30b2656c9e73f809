"""One measurement of a started contender: viewers attach, the writer begins, a window is measured, everything is
checked. What W1, W2, W6, W8 and W9 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.contender import Contender, Place, Running, Streams
from bench.machine import Watch, cpu_us
from bench.programs import Load, Viewed, Writer, Writing, Written
from bench.row import Busy, Figures, per_event
from bench.workload import Outcome

#: The writer goes on so long after the window, which so never sees it end.
TAIL_SECONDS: Final = 0.5
#: How long after the window tokens may still come before they count as missing.
GRACE_SECONDS: Final = 4.0
#: A writer that was later than this did not make the load that the row names.
LATE_MS: Final = 250.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to look."""

    warm_seconds: float  # from all viewers being attached to the window
    window_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one live measurement gave."""

    viewed: Viewed
    written: Written | None  # None: the server made the tokens itself
    busy: Busy | None
    running: Running

    @property
    def note(self) -> str:
        notes = []
        if self.written is not None and self.written.late_ms > LATE_MS:
            notes.append(f"the writer was up to {self.written.late_ms:.0f} ms late")
        if self.viewed.silent:
            notes.append(f"{self.viewed.silent} viewers got nothing")
        if self.viewed.dropped:
            notes.append(f"{self.viewed.dropped} connections were closed by the server")
        if self.viewed.complaint:
            notes.append(self.viewed.complaint)
        return "; ".join(notes)

    @property
    def errors(self) -> int:
        return self.viewed.errors + (self.written.errors if self.written else 0)


def live(
    contender: Contender,
    place: Place,
    running: Running,
    streams: Streams,
    plan: Plan,
    *,
    viewers: int,
    options: Sequence[str] = (),
    tokens: int | None = None,
) -> Measured:
    """Write `place.rate` tokens a second into each stream while `viewers` read, spread over the streams evenly.

    `tokens` is how many each stream gets in all; None: as many as the plan needs.
    """
    seconds = plan.warm_seconds + plan.window_seconds + TAIL_SECONDS
    tokens = tokens or max(1, round(place.rate * seconds))
    asked = ["--address", running.address, "--viewers", str(viewers), "--pids", running.pids()]
    asked += ["--warm", str(plan.warm_seconds), "--seconds", str(plan.window_seconds), "--grace", str(GRACE_SECONDS)]
    for header in contender.headers:
        asked += ["--header", header]
    if streams.writing is not None:
        asked += ["--expect", str(tokens)]
    watch, before = Watch(), cpu_us(running.every_pid())
    load = Load(place.programs, place.directory, streams.paths, [*asked, *options])
    writer = None
    try:
        load.ready()
        if streams.writing is not None:
            writing = ["--rate", str(place.rate), "--tokens", str(tokens)]
            writer = Writer(place.programs, place.directory, streams.writing, writing)
        viewed = load.result()
        written = writer.result() if writer is not None else None
        ours = cpu_us(running.every_pid()) - before + viewed.cpu_us + (written.cpu_us if written else 0)
        return Measured(viewed=viewed, written=written, busy=watch.busy(ours), running=running)
    finally:
        load.stop()
        if writer is not None:
            writer.stop()


def preload(place: Place, writing: Writing, tokens: int) -> Written:
    """Fill streams with `tokens` each, as fast as they are taken."""
    return Writer(place.programs, place.directory, writing, ["--preload", "--tokens", str(tokens)]).result()


def figures_of(
    measured: Measured,
    *,
    back_ms: float | None = None,
    first_p50_ms: float | None = None,
    first_p99_ms: float | None = None,
    server_kib: float | None = None,
    store_kib: float | None = None,
) -> Figures:
    """CPU an event, rates and latencies of a live measurement, and what the workload measured besides."""
    viewed, servers = measured.viewed, measured.running.servers
    server = viewed.cpu_of(servers)
    redis = viewed.cpu_of(["store"]) if "store" in viewed.processes else 0.0
    return Figures(
        events_per_second=viewed.tokens / viewed.seconds,
        server_us=per_event(server, viewed.tokens),
        store_us=per_event(redis, viewed.tokens),
        total_us=per_event(server + redis, viewed.tokens),
        core_share=server / viewed.seconds / 1e6,
        p50_ms=known(viewed.p50_ms),
        p99_ms=known(viewed.p99_ms),
        max_ms=known(viewed.max_ms),
        back_ms=back_ms,
        first_p50_ms=first_p50_ms,
        first_p99_ms=first_p99_ms,
        server_kib=server_kib,
        store_kib=store_kib,
    )


def outcome_of(measured: Measured, figures: Figures | None = None) -> Outcome:
    """A live measurement as an outcome, with `figures` in place of the usual ones."""
    viewed = measured.viewed
    nothing = int(not viewed.tokens)
    return Outcome(
        figures=figures or figures_of(measured),
        gaps=viewed.gaps,
        duplicates=viewed.duplicates,
        missing=viewed.missing,
        errors=measured.errors + nothing,
        note=measured.note,
        busy=measured.busy,
    )


def known(ms: float) -> float | None:
    """A time of sseload's, which says -1 for nothing counted."""
    return ms if ms >= 0 else None

"""The workloads, by name: each a file that says what is done at which points, and makes one row of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bench.workload import Workload
from bench.workloads import append, ceiling, day, fanout, idle, latency, live, replay, spread, storm, whole_path

_ALL: Final[tuple[Workload, ...]] = (
    live.WORKLOAD,
    ceiling.WORKLOAD,
    spread.WORKLOAD,
    fanout.WORKLOAD,
    replay.WORKLOAD,
    replay.SEALED,
    replay.FIRST,
    idle.WORKLOAD,
    idle.ALONE,
    append.WORKLOAD,
    append.MEMORY,
    latency.WORKLOAD,
    whole_path.ANSWERS,
    whole_path.JOBS,
    storm.WORKLOAD,
    day.WORKLOAD,
)

WORKLOADS: Final[Mapping[str, Workload]] = {workload.name: workload for workload in _ALL}

"""What a workload is: a name, points to be measured at, and one function that makes a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.contender import Contender
from bench.row import Busy, Figures, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a workload is measured: `x` is its size, in what the workload varies."""

    label: str
    x: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every run needs."""

    programs: Path
    redis_port: int | None  # of a Redis that is to be used; None: one of its own for each run
    quick: bool  # short windows, to see whether it works
    minutes: float  # of the mixed day

    def seconds(self, full: float) -> float:
        """A window: shorter where it is only to be seen to work."""
        return min(full, 1.5) if self.quick else full


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run gave, before it becomes a row."""

    figures: Figures
    gaps: int = 0
    duplicates: int = 0
    missing: int = 0
    errors: int = 0
    note: str = ""
    busy: Busy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One of the workloads. `headline` names the figure of `Figures` that contenders are compared by."""

    name: str
    title: str
    headline: str
    points: tuple[Point, ...]
    quick_points: tuple[Point, ...]
    run: Callable[[Contender, Point, Means], Outcome]

    def row(self, contender: Contender, point: Point, means: Means, *, round_: int) -> Row:
        """Run it once."""
        outcome = self.run(contender, point, means)
        return Row(
            workload=self.name,
            contender=contender.name,
            round=round_,
            point=point.label,
            x=point.x,
            figures=outcome.figures,
            gaps=outcome.gaps,
            duplicates=outcome.duplicates,
            missing=outcome.missing,
            errors=outcome.errors,
            note=outcome.note,
            busy=outcome.busy,
        )

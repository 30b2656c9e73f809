"""One measurement, the same shape for every workload and contender. Pure: no I/O, no clock.

A figure that a workload does not measure is None, never 0. A row with a gap, a duplicate or a token that never came is
invalid: what it says of cost is then said of something that did not do the work.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

#: Runs of one contender that differ by more than this say nothing (share of their median).
MOST_SPREAD: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. CPU is user and system time."""

    events_per_second: float | None = None  # tokens delivered to viewers; jobs in W7's job rows
    server_us: float | None = None  # CPU of the server processes, µs an event
    store_us: float | None = None  # CPU of Redis, µs an event
    total_us: float | None = None  # both
    core_share: float | None = None  # of its one core that the server used, 0 to 1
    p50_ms: float | None = None  # from the stamp in the token to the viewer
    p99_ms: float | None = None
    max_ms: float | None = None
    first_p50_ms: float | None = None  # from connecting to the first token
    first_p99_ms: float | None = None
    last_p50_ms: float | None = None  # from connecting to the last token
    last_p99_ms: float | None = None
    server_kib: float | None = None  # growth of resident memory, KiB a viewer (W9: KiB a minute)
    store_kib: float | None = None
    total_kib: float | None = None
    store_bytes: float | None = None  # memory of Redis, bytes a token
    back_ms: float | None = None  # until all viewers had a token again


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """What else the machine did while a row was measured, as shares of the measured cores' time, 0 to 1."""

    steal: float
    others: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run of one contender at one point of one workload."""

    workload: str
    contender: str
    round: int
    point: str  # "400 streams": what is compared with what
    x: float  # the same as a number, for plots
    figures: Figures
    gaps: int = 0
    duplicates: int = 0
    missing: int = 0
    errors: int = 0
    note: str = ""
    busy: Busy | None = None

    @property
    def valid(self) -> bool:
        return not (self.gaps or self.duplicates or self.missing or self.errors)

    def as_json(self) -> dict[str, Any]:
        """For `--json`; figures that were not measured are left out."""
        data = asdict(self) | {"valid": self.valid}
        data["figures"] = {name: value for name, value in data["figures"].items() if value is not None}
        return data


def row_of(data: dict[str, Any]) -> Row:
    """The inverse of `Row.as_json`."""
    given = {item.name: data[item.name] for item in fields(Row) if item.name in data}
    given["figures"] = Figures(**data["figures"])
    given["busy"] = None if data.get("busy") is None else Busy(**data["busy"])
    return Row(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All rounds of one contender at one point: medians, and how far the headline figure spread."""

    workload: str
    contender: str
    point: str
    x: float
    rounds: int
    figures: Figures
    spread: float  # (largest - least) / median of the headline figure
    invalid: int  # rounds with losses, duplicates or errors
    ratio: float | None  # headline figure over Legato's of the same run; None where there is none
    note: str

    @property
    def fit(self) -> bool:
        return self.spread <= MOST_SPREAD


def per_event(cpu_us: float, events: int) -> float | None:
    """µs an event; None where nothing was delivered."""
    return cpu_us / events if events else None


def summaries(rows: Sequence[Row], headline: dict[str, str], *, to: str = "legato") -> list[Summary]:
    """One line a workload, point and contender, in the order in which they first came. `headline` names the figure
    that each workload is about."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.point, row.contender), []).append(row)
    medians = {key: _medians([row.figures for row in group]) for key, group in groups.items()}
    found = []
    for (workload, point, contender), group in groups.items():
        name = headline[workload]
        own = getattr(medians[workload, point, contender], name)
        base = getattr(medians.get((workload, point, to), Figures()), name)
        values = [value for row in group if (value := getattr(row.figures, name)) is not None]
        found.append(
            Summary(
                workload=workload,
                contender=contender,
                point=point,
                x=group[0].x,
                rounds=len(group),
                figures=medians[workload, point, contender],
                spread=spread(values),
                invalid=sum(not row.valid for row in group),
                ratio=own / base if own is not None and base else None,
                note="; ".join(dict.fromkeys(row.note for row in group if row.note)),
            )
        )
    return found


def spread(values: Sequence[float]) -> float:
    """(largest - least) / median; 0 for less than two values."""
    middle = statistics.median(values) if values else 0
    return (max(values) - min(values)) / middle if len(values) > 1 and middle else 0.0


def _medians(figures: Iterable[Figures]) -> Figures:
    given = list(figures)
    found: dict[str, float] = {}
    for item in fields(Figures):
        values = [value for one in given if (value := getattr(one, item.name)) is not None]
        if values:
            found[item.name] = statistics.median(values)
    return Figures(**found)

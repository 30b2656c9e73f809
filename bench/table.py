"""Summaries as a Markdown table, one for each workload. Pure.

A column is there if anything was measured for it. The headline's ratio says how many times Legato's figure of the same
run the contender has; a line with losses is marked, for its figures are those of work that was not done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from bench.row import MOST_SPREAD, Summary

#: Figure, what stands above its column, decimals.
COLUMNS: Final = (
    ("events_per_second", "events/s", 0),
    ("server_us", "server µs/event", 2),
    ("store_us", "Redis µs/event", 2),
    ("total_us", "total µs/event", 2),
    ("core_share", "of the core", 2),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("first_p50_ms", "first token p50 ms", 2),
    ("first_p99_ms", "first token p99 ms", 1),
    ("last_p50_ms", "last token p50 ms", 1),
    ("last_p99_ms", "last token p99 ms", 1),
    ("server_kib", "server KiB", 1),
    ("store_kib", "Redis KiB", 1),
    ("total_kib", "total KiB", 1),
    ("store_bytes", "Redis bytes/token", 1),
    ("back_ms", "all back, ms", 0),
)


def tables(summaries: Sequence[Summary], titles: Mapping[str, str]) -> str:
    """All workloads, each under its title."""
    parts = []
    for workload in dict.fromkeys(item.workload for item in summaries):
        lines = [item for item in summaries if item.workload == workload]
        parts.append(f"### {workload}: {titles[workload]}\n\n{table(lines)}\n")
    return "\n".join(parts)


def table(summaries: Sequence[Summary]) -> str:
    """One workload: a line a contender and point."""
    shown = [column for column in COLUMNS if any(getattr(item.figures, column[0]) is not None for item in summaries)]
    head = ["point", "contender", *(title for _, title, _ in shown), "× Legato", "spread", "note"]
    lines = [head, ["---"] * 2 + ["--:"] * (len(shown) + 2) + ["---"]]
    for item in summaries:
        cells = [number(getattr(item.figures, name), decimals) for name, _, decimals in shown]
        lines.append([item.point, item.contender, *cells, number(item.ratio, 2), _spread(item), _note(item)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, decimals: int) -> str:
    """`1,234.5`; a dash for what was not measured."""
    return "–" if value is None else f"{value:,.{decimals}f}"


def _spread(item: Summary) -> str:
    if item.rounds == 1:
        return "one run"
    return f"{item.spread:.0%}" + (" !" if item.spread > MOST_SPREAD else "")


def _note(item: Summary) -> str:
    lost = f"INVALID: losses, duplicates or errors in {item.invalid} of {item.rounds}" if item.invalid else ""
    return "; ".join(part for part in (lost, item.note) if part).replace("|", "/")

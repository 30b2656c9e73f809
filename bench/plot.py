"""Line plots as SVG, for the documentation. Pure: values in, text out; no library.

Both axes are logarithmic: what is compared differs by factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.row import Summary

WIDTH: Final = 760
HEIGHT: Final = 440
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 46, 56

#: Legato comes first and is drawn thicker.
COLOURS: Final = (
    "#c2410c", "#2563eb", "#16a34a", "#9333ea", "#0891b2", "#ca8a04", "#db2777", "#4b5563", "#65a30d", "#7c3aed",
    "#0f766e", "#b91c1c",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contender: points (x, y), both above 0."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What a plot shows."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One of the plots of the documentation: which figure of which workload."""

    file: str
    workload: str
    figure: str
    x_figure: str | None  # None: the point's own x
    title: str
    x_label: str
    y_label: str


WANTED: Final = (
    Wanted(
        file="cost-over-rate.svg",
        workload="W1",
        figure="total_us",
        x_figure="events_per_second",
        title="Cost of a token over the rate",
        x_label="tokens/s, one viewer each",
        y_label="µs CPU a token, server and Redis",
    ),
    Wanted(
        file="latency-over-rate.svg",
        workload="W1",
        figure="p99_ms",
        x_figure="events_per_second",
        title="Latency over the rate",
        x_label="tokens/s, one viewer each",
        y_label="p99, ms",
    ),
    Wanted(
        file="cost-over-streams.svg",
        workload="W1S",
        figure="total_us",
        x_figure=None,
        title="Cost of a token over the number of streams",
        x_label="streams, 5,000 tokens/s in all",
        y_label="µs CPU a token, server and Redis",
    ),
    Wanted(
        file="cost-over-viewers.svg",
        workload="W2",
        figure="total_us",
        x_figure=None,
        title="Cost of a delivered token over the viewers of one stream",
        x_label="viewers",
        y_label="µs CPU a delivered token",
    ),
    Wanted(
        file="cost-over-log-length.svg",
        workload="W3",
        figure="total_us",
        x_figure=None,
        title="Cost of a replayed token over the length of the log",
        x_label="tokens in the log",
        y_label="µs CPU a token",
    ),
)


def plots(summaries: Sequence[Summary]) -> dict[str, str]:
    """File name and SVG of each plot for which there is a line of at least two points; invalid ones are left out."""
    found = {}
    for wanted in WANTED:
        lines = []
        for contender in dict.fromkeys(item.contender for item in summaries):
            points = []
            for item in summaries:
                if (item.workload, item.contender) != (wanted.workload, contender) or item.invalid:
                    continue
                x = item.x if wanted.x_figure is None else getattr(item.figures, wanted.x_figure)
                y = getattr(item.figures, wanted.figure)
                if x and y:
                    points.append((x, y))
            if points:
                lines.append(Line(name=contender, points=tuple(sorted(points))))
        if any(len(line.points) > 1 for line in lines):
            plot = Plot(title=wanted.title, x_label=wanted.x_label, y_label=wanted.y_label, lines=tuple(lines))
            found[wanted.file] = svg(plot)
    return found


def svg(plot: Plot) -> str:
    """The plot as a picture of `WIDTH` by `HEIGHT`. Raises `ValueError` without any point."""
    xs = [x for line in plot.lines for x, _ in line.points]
    ys = [y for line in plot.lines for _, y in line.points]
    if not xs or min(xs) <= 0 or min(ys) <= 0:
        raise ValueError("a plot needs points, all of them above 0")
    across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT), _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, TOP - 20, plot.title, size=15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, plot.x_label, anchor="middle"),
        f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)">'
        f"{_text(0, 0, plot.y_label, anchor='middle')}</g>",
    ]
    for tick in across.ticks():
        x = across.at(tick)
        out.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e5e7eb"/>')
        out.append(_text(x, HEIGHT - BOTTOM + 16, tick_label(tick), anchor="middle"))
    for tick in up.ticks():
        y = up.at(tick)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        out.append(_text(LEFT - 6, y + 4, tick_label(tick), anchor="end"))
    for number, line in enumerate(plot.lines):
        colour = COLOURS[number % len(COLOURS)]
        width = 3 if line.name == "legato" else 1.5
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line.points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        out += [f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line.points]
        y = TOP + 8 + 18 * number
        out.append(f'<path d="M{WIDTH - RIGHT + 14} {y}h18" stroke="{colour}" stroke-width="{width}"/>')
        out.append(_text(WIDTH - RIGHT + 38, y + 4, line.name))
    return "\n".join([*out, "</svg>"]) + "\n"


def tick_label(value: float) -> str:
    """`50k`, `2`, `0.1`."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


class _Axis:
    """A logarithmic axis from the 1, 2 or 5 below the least value to that above the largest."""

    def __init__(self, least: float, most: float, begin: float, end: float) -> None:
        self._begin, self._end = begin, end
        self._low = max(tick for tick in _steps(least / 10, most) if tick <= least * 1.0001)
        self._high = min(tick for tick in _steps(least, most * 10) if tick >= most * 0.9999)
        if self._high <= self._low:
            self._high = self._low * 2

    def at(self, value: float) -> float:
        share = math.log(value / self._low) / math.log(self._high / self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        return [
            tick for tick in _steps(self._low, self._high) if self._low <= tick * 1.0001 and tick <= self._high * 1.0001
        ]


def _steps(least: float, most: float) -> list[float]:
    """1, 2, 5, 10, … around these values."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#111827">{escape(text)}</text>'
    )

"""Legato and what it is compared with, in one run.

    python -m bench [--only W1,W2] [--against nchan,naive_streaming] [--rounds 3] [--quick] [--json FILE] [--out DIR]

Every workload is gone through round by round, and in each round contender by contender, so that what else the machine
does meets all of them alike. Prints a line a run as it comes, then a table a workload; says when the machine was too
busy for the figures to be quoted. Rivals that are not here are left out by name, with how to get them. They are kept,
like the native programs, below ~/.cache/legato-bench, or where LEGATO_BENCH_CACHE says.

Exits 0; 1 when a row is invalid or the run is not fit to be quoted; 3 when there is no C compiler or too few cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.contender import Contender, InstallFailed, NotStarted, StoreRunning
from bench.legato import ROOT, Legato
from bench.machine import TooFewCores, description, take_load_core, verdict
from bench.plot import plots
from bench.programs import CompilerMissing, ProgramFailed, build
from bench.rivals import RIVALS
from bench.row import Figures, Row, row_of, summaries
from bench.table import tables
from bench.workload import Means, Workload
from bench.workloads import WORKLOADS
from broker.embedded import find_binary

#: Where the plots of the documentation are.
PLOTS: Final = ROOT / "docs" / "benchmarks"


def main() -> int:
    options = parsed()
    if options.list:
        _list()
        return 0
    if options.render:
        read = json.loads(Path(options.render).read_text())
        return _report([row_of(data) for data in read["rows"]], read["about"], options)
    try:
        take_load_core()
        programs = build()
    except (TooFewCores, CompilerMissing, ProgramFailed) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 3
    workloads = [WORKLOADS[name] for name in _names(options.only, WORKLOADS)]
    contenders, left_out = _contenders(options.against, workloads)
    about = _about(contenders, left_out, options.redis_port)
    for line in about:
        print(line)
    means = Means(programs=programs, redis_port=options.redis_port, quick=options.quick, minutes=options.minutes)
    rows: list[Row] = []
    for workload in workloads:
        points = workload.quick_points if options.quick else workload.points
        for point in points:
            if options.points and point.x not in options.points:
                continue
            for round_ in range(1, options.rounds + 1):
                for contender in contenders:
                    if workload.name in contender.workloads:
                        rows.append(_measured(workload, contender, point, means, round_))
                        _keep(rows, about, options.json)
    return _report(rows, about, options)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help=f"workloads, of {','.join(WORKLOADS)}")
    parser.add_argument("--against", default="", help="rivals, separated by commas; none for Legato alone")
    parser.add_argument(
        "--points",
        type=lambda text: [int(part) for part in text.split(",")],
        help="only these sizes of a workload: streams, viewers, tokens, as the tables have them",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="short windows and few points: does everything work?")
    parser.add_argument("--minutes", type=float, default=5, help="of the mixed day (W9)")
    parser.add_argument(
        "--redis-port", type=int, help="a Redis on 127.0.0.1 instead of an embedded server for each run"
    )
    parser.add_argument("--json", type=Path, help="write all rows here, after each run")
    parser.add_argument("--out", type=Path, help="write the tables into this directory, as results.md")
    parser.add_argument("--plots", action="store_true", help=f"write the plots into {PLOTS.relative_to(ROOT)}")
    parser.add_argument("--render", type=Path, help="measure nothing: tables and plots of such a JSON file")
    parser.add_argument("--list", action="store_true", help="name workloads and contenders")
    return parser.parse_args(arguments)


def _contenders(against: str, workloads: Sequence[Workload]) -> tuple[list[Contender], list[str]]:
    """Legato and the rivals that are wanted and can run; and a line for each that cannot."""
    found: list[Contender] = [Legato()]
    left_out = []
    wanted = [] if against == "none" else _names(against, RIVALS)
    for name in wanted:
        rival = RIVALS[name]
        if not any(workload.name in rival.workloads for workload in workloads):
            continue
        problem = rival.missing()
        if problem is None:
            try:
                rival.install()
            except (InstallFailed, OSError, subprocess.SubprocessError) as failure:
                problem = str(failure)
        if problem is None:
            found.append(rival)
        else:
            left_out.append(f"{name}: {problem}")
    return found, left_out


def _measured(workload: Workload, contender: Contender, point: Any, means: Means, round_: int) -> Row:
    began = time.monotonic()
    try:
        row = workload.row(contender, point, means, round_=round_)
    except (NotStarted, ProgramFailed, OSError, subprocess.SubprocessError) as problem:
        row = Row(
            workload=workload.name,
            contender=contender.name,
            round=round_,
            point=point.label,
            x=point.x,
            figures=Figures(),
            errors=1,
            note=" ".join(str(problem).split())[-200:],
        )
    headline = getattr(row.figures, workload.headline)
    shown = "–" if headline is None else f"{headline:,.2f}"
    state = (
        "" if row.valid else f"  INVALID gaps {row.gaps} dup {row.duplicates} missing {row.missing} err {row.errors}"
    )
    took = time.monotonic() - began
    print(
        f"{workload.name:4} {point.label:16} round {round_}  {contender.name:22} {workload.headline} {shown:>10}"
        f"  p99 {row.figures.p99_ms or 0:8.2f} ms  {took:5.1f} s{state}  {row.note}",
        flush=True,
    )
    return row


def _keep(rows: Sequence[Row], about: Sequence[str], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps({"about": list(about), "rows": [row.as_json() for row in rows]}, indent=1) + "\n")


def _report(rows: Sequence[Row], about: Sequence[str], options: argparse.Namespace) -> int:
    """Tables, plots, and whether the run is fit to be quoted."""
    lines = summaries(rows, {name: workload.headline for name, workload in WORKLOADS.items()})
    reasons = verdict(lines, [row.busy for row in rows if row.busy is not None])
    told = tables(lines, {name: workload.title for name, workload in WORKLOADS.items()})
    fit = "\n".join(f"NOT FIT TO BE QUOTED: {reason}." for reason in reasons)
    text = "\n".join(["", *(f"- {line}" for line in about), "", told, fit])
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.md").write_text(text.strip() + "\n")
    if options.plots:
        PLOTS.mkdir(parents=True, exist_ok=True)
        for file, picture in plots(lines).items():
            (PLOTS / file).write_text(picture)
    return 1 if reasons or any(not row.valid for row in rows) else 0


def _about(contenders: Sequence[Contender], left_out: Sequence[str], redis_port: int | None) -> list[str]:
    if redis_port is None:
        text = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=False).stdout
        redis = f"{' '.join(text.split()[:3])}, append-only file"
    else:
        given = StoreRunning(port=redis_port, pid=None)
        facts = given.info("server")
        name = "Valkey" if "valkey_version" in facts else "Redis"
        kept = given.info("persistence").get("aof_enabled") == "1"
        version = facts.get("valkey_version") or facts["redis_version"]
        redis = f"{name} {version}, {'append-only file' if kept else 'in memory'}, one for all"
    lines = [*description(), f"Redis: {redis}, over loopback TCP"]
    lines += [f"{one.name} {one.version()}: {one.summary}. CPU includes {one.includes}." for one in contenders]
    return lines + [f"left out: {line}" for line in left_out]


def _names(given: str, known: Any) -> list[str]:
    """The names that were given, or all; an unknown one ends the program."""
    names = [name for name in given.split(",") if name] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"bench: {', '.join(unknown)} is unknown; there are {', '.join(known)}")
    return names


def _list() -> None:
    for name, workload in WORKLOADS.items():
        print(f"{name:4} {workload.title}; by {workload.headline}")
    for one in [Legato(), *RIVALS.values()]:
        print(f"{one.name:22} {one.summary} ({', '.join(sorted(one.workloads))})")


if __name__ == "__main__":
    sys.exit(main())

"""What a run was, as a table for people and as JSON for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from chaos.run import Result


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """Everything, one object a run."""
    return {"runs": [_one(result) for result in results], "violations": sum(_violations(each) for each in results)}


def table(result: Result) -> str:
    """A run on a screen."""
    seen, verdict = result.seen, result.verdict
    rows = [
        ("profile, seed", f"{result.profile.value}, {result.seed}"),
        ("seconds of faults", f"{result.seconds:g}"),
        ("jobs", f"{result.jobs}: {result.accepted} accepted, {result.refused} refused"),
        ("shapes", _counted(result.shapes)),
        ("ended", _counted(verdict.ends)),
        ("clients", f"{result.readers}, with {seen.connections} connections: {_counted(seen.transports)}"),
        ("verdicts", _counted(seen.verdicts)),
        ("answers and breaks", _counted(seen.statuses)),
        ("resets seen", str(result.resets)),
        ("characters compared", f"{verdict.characters} in {verdict.texts} texts, at {result.positions} positions"),
        ("faults", f"{sum(result.faults.values())}: {_counted(result.faults)}"),
        ("told of the end", f"{verdict.prompt} judged, the latest after {verdict.latest_seconds:.2f} s"),
        ("exceptions used", _counted(verdict.exceptions)),
        ("violations", str(len(verdict.violations))),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    lines += [f"  not injected: {done.fault.kind.value} {done.problem}" for done in result.done if done.problem]
    for name, reading in sorted(result.readings.items()):
        held = (
            f"{reading.resident_bytes // 2**20} MiB, {reading.descriptors} descriptors, {result.tasks.get(name)} tasks"
        )
        lines.append(f"  {name}: {held}")
    for violation in verdict.violations[:40]:
        lines.append(f"  VIOLATION {violation.check} {violation.generation}: {violation.detail}")
    return "\n".join(lines)


def _one(result: Result) -> dict[str, Any]:
    return {
        "profile": result.profile.value,
        "seed": result.seed,
        "seconds": result.seconds,
        "jobs": result.jobs,
        "accepted": result.accepted,
        "refused": result.refused,
        "shapes": dict(result.shapes),
        "ended": dict(result.verdict.ends),
        "clients": result.readers,
        "transports": dict(result.seen.transports),
        "connections": result.seen.connections,
        "verdicts": dict(result.seen.verdicts),
        "answers": dict(result.seen.statuses),
        "resets": result.resets,
        "characters": result.verdict.characters,
        "texts": result.verdict.texts,
        "positions": result.positions,
        "faults": dict(result.faults),
        "not_injected": [f"{done.fault.kind.value}: {done.problem}" for done in result.done if done.problem],
        "timeline": [
            {
                "kind": done.fault.kind.value,
                "target": done.target,
                "at": done.fault.at,
                "since": done.since,
                "until": done.until,
            }
            for done in result.done
        ],
        "exceptions": dict(result.verdict.exceptions),
        "excused": result.verdict.excused,
        "readings": {
            name: {
                "resident_bytes": reading.resident_bytes,
                "descriptors": reading.descriptors,
                "tasks": result.tasks.get(name),
            }
            for name, reading in result.readings.items()
        },
        "violations": [
            {"check": each.check, "generation": each.generation, "detail": each.detail}
            for each in result.verdict.violations
        ],
    }


def _violations(result: Result) -> int:
    return len(result.verdict.violations)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"

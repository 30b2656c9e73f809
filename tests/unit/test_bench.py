"""The benchmark of what a provider's piece costs runs, and every path reads the whole text. No figure is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.stack import ROOT

#: litellm is left out: nothing is installed by a test.
PATHS = ["bytes", "legato, parsing", "legato, log in memory", "legato", "sdk", "sdk helper"]
WIRES = ["openai", "openai_responses", "anthropic"]
ARRIVALS = ["blocks", "chunks", "single"]


def test_the_provider_benchmark_measures_every_path_and_writes_the_same_figures_twice(tmp_path: Path) -> None:
    """A path that lost or doubled a piece has a note in place of figures."""
    written = tmp_path / "figures.json"
    sizes = ["--deltas", "30", "--rounds", "1", "--no-litellm", "--json", str(written)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.provider_cpu", *sizes], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(written.read_text())["rows"]
    wanted = [(arrival, wire, path) for arrival in ARRIVALS for wire in WIRES for path in PATHS]
    assert [(row["arrival"], row["wire"], row["path"]) for row in rows] == wanted
    assert [row["note"] for row in rows] == [""] * len(wanted)
    assert all(row["least_us"] <= row["us_per_delta"] <= row["most_us"] for row in rows)
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(wanted)
    for line, row in zip(table[2:], rows, strict=True):
        assert line.startswith(f"| {row['arrival']} | {row['wire']} | {row['path']} | {row['us_per_delta']:.1f} |")

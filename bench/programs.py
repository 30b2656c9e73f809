"""The native programs: built when they are first needed, run with their output as values.

They are in C because a viewer or a writer in Python would be the bottleneck long before a server is. Without a
compiler there is no benchmark: the suite says so and stops.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

SOURCES: Final = Path(__file__).parent / "native"

#: No step of a benchmark takes longer.
PROGRAM_SECONDS: Final = 1800.0
#: How long viewers may take to attach, in all.
READY_SECONDS: Final = 90.0


class CompilerMissing(Exception):
    """There is no C compiler, or no make."""


class ProgramFailed(Exception):
    """One of the programs ended with an error; the message is what it said."""


def cache() -> Path:
    """Where programs and rivals are kept: `LEGATO_BENCH_CACHE`, else below `~/.cache`."""
    return Path(os.environ.get("LEGATO_BENCH_CACHE") or Path.home() / ".cache" / "legato-bench")


def build() -> Path:
    """Compile what changed; returns the directory of the programs. Raises `CompilerMissing`, `ProgramFailed`."""
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    digest = sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    out = cache() / f"bin-{digest}"  # another checkout has other programs
    out.mkdir(parents=True, exist_ok=True)
    for tool in ("make", "cc", "taskset"):
        if shutil.which(tool) is None:
            raise CompilerMissing(f"{tool} is not here: the benchmark needs make, a C compiler and util-linux")
    done = subprocess.run(["make", "-s", "-C", str(SOURCES), f"OUT={out}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProgramFailed(done.stdout + done.stderr)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What the writer is to do, but for how fast and how much."""

    sink: str  # append, xadd or http
    address: str  # host:port
    targets: tuple[str, ...]  # a line a stream, see writer.c
    connections: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the writer did."""

    tokens: int
    stored: int
    stopped: int  # streams whose append was refused: cancelled or taken over
    errors: int
    late_ms: float  # longest delay behind a token's due time
    cpu_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """What one process used over the window."""

    cpu_us: float
    rss_before_kib: float
    rss_after_kib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewed:
    """What the viewers saw; times in ms, -1 for nothing counted. See sseload.c."""

    seconds: float
    attach_seconds: float
    tokens: int
    frames: int
    bytes: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    first_p99_ms: float
    whole_p50_ms: float
    whole_p99_ms: float
    back_p50_ms: float
    back_p99_ms: float
    storm_ms: float
    gaps: int
    duplicates: int
    missing: int
    silent: int
    errors: int
    dropped: int
    comments: int
    finished: int
    returns: int
    cpu_us: float
    processes: Mapping[str, ProcessUse] = field(default_factory=dict)
    complaint: str = ""  # the first answer that was none, or the first connection that failed

    def cpu_of(self, names: Iterable[str]) -> float:
        return sum(self.processes[name].cpu_us for name in names)

    def growth_kib_of(self, names: Iterable[str]) -> float:
        return sum(self.processes[name].rss_after_kib - self.processes[name].rss_before_kib for name in names)


class Load:
    """A running sseload: `ready()` when all viewers are attached, `result()` at its end."""

    def __init__(self, programs: Path, directory: Path, paths: Sequence[str], options: Sequence[str]) -> None:
        listed = directory / "paths"
        listed.write_text("\n".join(paths) + "\n")
        self._process = subprocess.Popen(
            [str(programs / "sseload"), "--paths", str(listed), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> int:
        """Wait until the viewers are attached; returns how many are."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("READY"):
            raise ProgramFailed(f"sseload did not get ready: {line}{self._errors()}")
        return int(line.split()[1])

    def result(self) -> Viewed:
        try:
            out, errors = self._process.communicate(timeout=PROGRAM_SECONDS)
        finally:
            self.stop()
        if self._process.returncode or not out.strip():
            raise ProgramFailed(f"sseload failed: {errors}")
        data: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        data["processes"] = {name: ProcessUse(**use) for name, use in data["processes"].items()}
        return Viewed(**data, complaint=" ".join(errors.split())[:120])

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _errors(self) -> str:
        self._process.kill()
        return self._process.communicate()[1]


class Writer:
    """A running writer."""

    def __init__(self, programs: Path, directory: Path, writing: Writing, options: Sequence[str]) -> None:
        listed = directory / "targets"
        listed.write_text("\n".join(writing.targets) + "\n")
        command = [str(programs / "writer"), "--sink", writing.sink, "--address", writing.address]
        command += ["--targets", str(listed), "--connections", str(writing.connections), *writing.options, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self) -> Written:
        try:
            out, errors = self._process.communicate(timeout=PROGRAM_SECONDS)
        finally:
            self.stop()
        if self._process.returncode:
            raise ProgramFailed(f"the writer failed: {errors}")
        data = json.loads(out)
        wanted = ("tokens", "stored", "stopped", "errors", "late_ms", "cpu_us")
        return Written(**{name: data[name] for name in wanted})

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

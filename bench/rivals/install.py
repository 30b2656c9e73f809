"""Where rivals are kept, and how they get there: a virtual environment, npm packages, Go binaries, Debian packages.

Only ever run, never shipped: nothing of theirs is part of this project. Versions are pinned here and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.contender import InstallFailed
from bench.programs import cache

APPS: Final = Path(__file__).parent / "apps"

PYTHON_PACKAGES: Final[Mapping[str, str]] = {
    "fastapi": "0.163.2",
    "starlette": "1.10.0",
    "uvicorn": "0.54.0",
    "uvloop": "0.23.0",
    "httptools": "0.9.0",
    "sse-starlette": "3.7.0",
    "redis": "8.1.0",
    "hiredis": "3.5.0",
    "openai": "3.51.0",
}
NODE_PACKAGES: Final[Mapping[str, str]] = {
    "resumable-stream": "2.2.13",
    "redis": "6.3.1",
    "@durable-streams/server": "0.3.7",
}
#: Module, version, and the package of its program: its own, or one of `apps/`.
GO_PROGRAMS: Final[Mapping[str, tuple[str, str, str]]] = {
    "mercure": ("github.com/dunglas/mercure", "v0.20.2", "."),
    "centrifugo": ("github.com/centrifugal/centrifugo/v5", "v5.4.9", "github.com/centrifugal/centrifugo/v5"),
}
NCHAN_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
DEBIAN_PACKAGES: Final = ("nginx", "libnginx-mod-nchan")

INSTALL_SECONDS: Final = 1200.0


def python() -> Path:
    """The interpreter that has the Python rivals' packages."""
    return cache() / "python" / "bin" / "python"


def install_python() -> None:
    wanted = [f"{name}=={version}" for name, version in PYTHON_PACKAGES.items()]
    if _has(cache() / "python", wanted):
        return
    _run([sys.executable, "-m", "venv", "--clear", str(cache() / "python")])
    _run([str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    _done(cache() / "python", wanted)


def node_modules() -> Path:
    return cache() / "node"


def install_node() -> None:
    wanted = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
    if _has(node_modules(), wanted):
        return
    node_modules().mkdir(parents=True, exist_ok=True)
    _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *wanted], directory=node_modules())
    _done(node_modules(), wanted)


def go_program(name: str) -> Path:
    return cache() / "go" / name / name


def install_go(name: str) -> None:
    """Built in a module of its own: the root of the module that is wanted need not be listed by the proxy then."""
    module, version, package = GO_PROGRAMS[name]
    directory = cache() / "go" / name
    wanted = [f"{module}@{version}"]
    if _has(directory, wanted):
        return
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "go.mod").write_text(f"module bench/{name}\n\ngo 1.23\n\nrequire {module} {version}\n")
    for source in (APPS / name).glob("*.go"):
        shutil.copy(source, directory)
    environment = os.environ | {"GOMODCACHE": str(cache() / "go" / "modules"), "GOCACHE": str(cache() / "go" / "build")}
    _run(["go", "build", "-mod=mod", "-o", name, package], directory=directory, environment=environment)
    _done(directory, wanted)


def install_nchan() -> None:
    if not NCHAN_MODULE.exists():
        _run(["apt-get", "install", "--yes", "--no-install-recommends", *DEBIAN_PACKAGES])


def lacks(*tools: str) -> str | None:
    """How to get the first of these programs that is not here."""
    for tool in tools:
        if shutil.which(tool) is None:
            return f"{tool} is not here; install {_SOURCES.get(tool, tool)}"
    return None


_SOURCES: Final[Mapping[str, str]] = {
    "node": "Node.js 20 or newer (https://nodejs.org)",
    "npm": "Node.js 20 or newer (https://nodejs.org)",
    "go": "Go 1.23 or newer (https://go.dev)",
}


def lacks_nchan() -> str | None:
    if NCHAN_MODULE.exists():
        return None
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        return None
    return f"nginx with Nchan is not here; on Debian: apt-get install {' '.join(DEBIAN_PACKAGES)}"


def debian_versions() -> str:
    """Of nginx and Nchan, as Debian names them."""
    command = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ", *DEBIAN_PACKAGES]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _has(directory: Path, wanted: Sequence[str]) -> bool:
    """Whether exactly these were installed here."""
    stamp = directory / ".installed"
    return stamp.exists() and stamp.read_text().split() == list(wanted)


def _done(directory: Path, wanted: Sequence[str]) -> None:
    (directory / ".installed").write_text("\n".join(wanted) + "\n")


def _run(
    command: Sequence[str], *, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    if done.returncode:
        raise InstallFailed(f"{' '.join(command[:3])} … failed: {(done.stdout + done.stderr)[-1500:]}")

"""Processes of Legato's own that live no longer than this one: for the demo.

Whatever happens to the parent, they end: `with` stops them in order, and on Linux the kernel kills them when the parent
is killed. They are started through a one-liner that asks for that and then becomes the command, for `preexec_fn` may
deadlock in a process with threads. They have sessions of their own: the terminal's Ctrl-C is for the parent.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from broker.lifeline import bound_to_us
from cli.exits import Exit, Failure

#: How long a process may take to say where it listens, and to end in order.
_READY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 3.0

_POLL_SECONDS: Final = 0.01

#: How much of a log an error quotes.
_QUOTED_CHARACTERS: Final = 400


class Child:
    """One process; its output is in a file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def port(self) -> int:
        """The port it says it listens on; waits for it. Raises `Failure` when it ends instead."""
        deadline = time.monotonic() + _READY_SECONDS
        while not (match := re.search(r"http://127\.0\.0\.1:(\d+)", self._said())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.fail("did not start")
            time.sleep(_POLL_SECONDS)
        return int(match[1])

    def fail(self, what: str) -> None:
        """Raise `Failure`, quoting the end of its output."""
        raise Failure(Exit.FAILED, f"{self.name} {what}; it said: {self._said()[-_QUOTED_CHARACTERS:] or '(nothing)'}")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def _said(self) -> str:
        return self._log.read_text(errors="replace")


class Children:
    """Starts them, and stops them all at the end of the block."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}
        self._environment = inherited | dict(settings)
        self._children: list[Child] = []

    def start(self, name: str, *arguments: str) -> Child:
        """`legato <arguments>`, in the folder."""
        log = self._folder / f"{len(self._children)}.log"
        command = bound_to_us([sys.executable, "-m", "cli.main", *arguments])
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raise `Failure` if one has ended that nobody killed."""
        for child in self._children:
            if child.process.poll() not in (None, -signal.SIGKILL):
                child.fail("ended")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        try:
            for child in self._children:
                child.process.terminate()
            for child in self._children:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
        finally:
            for child in self._children:
                if child.process.poll() is None:
                    child.kill()

"""A client under test: a process that takes commands and says what happened, a JSON object a line. The contract is in
docs/how-to/write-a-client.md.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from broker.lifeline import bound_to_us

ROOT: Final = Path(__file__).resolve().parents[2]
#: How long one command may take.
COMMAND_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0


class AdapterBroken(AssertionError):
    """It does not keep the contract: died, said nothing, or said what is no line of it."""


class Adapter:
    """One process. Commands run one after the other, but for `stop`."""

    def __init__(self, command: Sequence[str]) -> None:
        program, *arguments = command
        found = shutil.which(program)
        if found is None:
            raise AdapterBroken(f"there is no program {program}")
        self._process = subprocess.Popen(
            bound_to_us([found, *arguments]),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._numbers = 0
        threading.Thread(target=self._read, daemon=True).start()
        try:
            hello = self.outcome({"op": "hello"})
        except BaseException:
            self.close()
            raise
        self.client = str(hello.get("client", "an unnamed client"))
        self.ops = frozenset(hello.get("ops", ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End of its stdin, and it ends."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def outcome(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command; its last line."""
        *_, last = self.run(command)
        return last

    def run(self, command: Mapping[str, Any], *, stop_at: str | None = None) -> Iterator[dict[str, Any]]:
        """Its lines, the one with the outcome last. With `stop_at`, stop it when an event of that position has come."""
        number = self._send(command)
        stop: str | None = None
        outcome: dict[str, Any] | None = None
        stopped = stop_at is None
        while outcome is None or not stopped:
            line = self._line(command)
            if line.get("id") == stop and stop is not None:
                stopped = True
                if line.get("outcome") != "ok":
                    raise AdapterBroken(f"stop was answered with {line}")
                continue
            if line.get("id") != number or outcome is not None:
                raise AdapterBroken(f"{command}: a line of another command, or behind the outcome: {line}")
            if "outcome" in line:
                outcome = line
                stopped = stopped or stop is None
                continue
            yield line
            if stop_at is not None and stop is None and line.get("position") == stop_at:
                stop = self._send({"op": "stop", "target": number})
        yield outcome

    def _send(self, command: Mapping[str, Any]) -> str:
        self._numbers += 1
        number = str(self._numbers)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": number, **command}) + "\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise AdapterBroken(f"it has ended, with {self._process.poll()}") from exc
        return number

    def _line(self, command: Mapping[str, Any]) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=COMMAND_SECONDS)
        except queue.Empty:
            raise AdapterBroken(f"{command}: no outcome after {COMMAND_SECONDS:g} s") from None
        if line is None:
            raise AdapterBroken(f"{command}: it has ended, with {self._process.poll()}")
        try:
            read = json.loads(line)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise AdapterBroken(f"no line of the contract: {line[:200]!r}")
        return read

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:
            pass  # it was closed here
        self._lines.put(None)

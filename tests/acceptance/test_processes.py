"""Several processes behind one port: they share the work, and none of them is missed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.lifeline import bound_to_us
from tests.support.sse_client import SSE, Reader, SseParser, events_path, request
from tests.support.stack import ROOT, eventually, job
from worker.providers.sim import sim_text

STOP_SECONDS = 60
READERS = 30
TOKENS = 10_000
JSON = {"Content-Type": "application/json"}


class Command:
    """A `legato` command that has children."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.log_path = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                bound_to_us([sys.executable, "-m", "cli.main", *arguments]),
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def children(self) -> set[int]:
        """Those that have become the command: before, they are a line of Python that is about to."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid) for pid in found if _has_become(int(pid))}


def _has_become(pid: int) -> bool:
    with suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"cli.main" in line and b"prctl" not in line
    return False


@contextmanager
def command(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[Command]:
    started = Command(arguments, environment, log)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            try:
                started.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()


@pytest.fixture
def environment(redis_url: str, prefix: str) -> dict[str, str]:
    return {
        "LEGATO_REDIS_URL": redis_url,
        "LEGATO_PREFIX": prefix,
        "LEGATO_PROVIDERS": "sim",
        "LEGATO_LEASE_SECONDS": "2",
        "LEGATO_DRAIN_SECONDS": "1",
    }


@contextmanager
def shared(environment: dict[str, str], directory: Path, processes: int = 3) -> Iterator[tuple[Command, str]]:
    """`legato api --workers N` with a worker beside it, and where it is."""
    arguments = ["api", "--port", "0", "--workers", str(processes), "--json"]
    with (
        command(["worker"], environment, directory / "worker.log"),
        command(arguments, environment, directory / "api.log") as api,
    ):
        eventually(lambda: re.search(r'{"url":"[^"]+"}', api.log), "it says where it is")
        found = re.search(r'{"url":"([^"]+)"}', api.log)
        assert found is not None
        url = found[1]

        def is_up() -> bool:
            with suppress(OSError):
                return len(api.children) == processes and request(url, "GET", "/readyz").status == 200
            return False

        eventually(is_up, "all processes are there", seconds=60)
        yield api, url


def gauge(url: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", request(url, "GET", "/metrics").body.decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def submit(url: str, **options: object) -> str:
    answer = request(url, "POST", "/v1/generations", body=json.dumps(job(options)).encode(), headers=JSON)
    assert answer.status == 202, answer.body
    return str(json.loads(answer.body)["id"])


async def follow(url: str, generation: str) -> Reader:
    """Read to the end over as many connections as it takes."""
    seen = Reader()
    while seen.ended is None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await _read_on(urlsplit(url).port, generation, seen)
        await asyncio.sleep(0.05)
    return seen


async def _read_on(port: int | None, generation: str, seen: Reader) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        cursor = f"Last-Event-ID: {seen.cursor}\r\n" if seen.cursor else ""
        head = f"GET {events_path(generation)} HTTP/1.1\r\nHost: h\r\nAccept: {SSE}\r\n{cursor}\r\n"
        writer.write(head.encode())
        await reader.readuntil(b"\r\n\r\n")
        parser = SseParser()
        while size := int(await reader.readline(), 16):
            for frame in parser.feed((await reader.readexactly(size + 2))[:-2]):
                seen.take(frame)
    finally:
        writer.close()


async def test_processes_share_a_port_and_replace_one_another_and_no_reader_misses_a_character(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Viewers are counted over all of them. One is killed, then all are replaced; the readers come back and go on."""
    with shared(environment, tmp_path) as (api, url):
        generation = await asyncio.to_thread(submit, url, tokens=TOKENS, seed=5, tokens_per_second=5)
        readers = [asyncio.create_task(follow(url, generation)) for _ in range(READERS)]

        def all_are_counted() -> bool:
            return gauge(url, "legato_viewers") == READERS

        await asyncio.to_thread(eventually, all_are_counted, "every reader is counted, whoever is asked")
        before = api.children
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(
            eventually, lambda: victim not in api.children and len(api.children) == len(before), "another one is there"
        )
        await asyncio.to_thread(eventually, all_are_counted, "who read from the killed one is counted once")
        api.process.send_signal(signal.SIGHUP)

        def all_are_new() -> bool:
            return not before & api.children and len(api.children) == len(before)

        await asyncio.to_thread(eventually, all_are_new, "all are new", seconds=60)
        path = f"/v1/generations/{generation}"
        assert (await asyncio.to_thread(request, url, "POST", f"{path}/cancel", body=b"")).status == 202
        async with asyncio.timeout(100):
            texts = {(await reader).text for reader in readers}
        stored = (await asyncio.to_thread(request, url, "GET", path)).json()
        assert (texts, stored["status"]) == ({stored["text"]}, "cancelled")
        assert sim_text(TOKENS, 5).startswith(stored["text"])


def test_told_to_stop_all_of_them_stop(environment: dict[str, str], tmp_path: Path) -> None:
    with shared(environment, tmp_path) as (api, _):
        children = api.children
        api.process.terminate()
        assert api.process.wait(STOP_SECONDS) == 0
        assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children cannot be told of their parent's death")
def test_children_do_not_outlive_a_killed_parent(environment: dict[str, str], tmp_path: Path) -> None:
    with shared(environment, tmp_path) as (api, _):
        children = api.children
        api.process.kill()
        eventually(lambda: not any(_has_become(child) for child in children), "they have stopped", seconds=60)


def test_a_setting_that_is_wrong_ends_the_command(environment: dict[str, str], tmp_path: Path) -> None:
    """A provider that nobody knows is found by the children. They are not started again and again."""
    wrong = environment | {"LEGATO_PROVIDERS": "nobody"}
    with command(["worker", "--processes", "2"], wrong, tmp_path / "workers.log") as workers:
        assert workers.process.wait(STOP_SECONDS) == 2
        assert "nobody" in workers.log


def test_a_worker_process_that_is_killed_is_started_anew(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ["worker", "--processes", "2", "--concurrency", "4"]
    with (
        shared(environment, tmp_path, processes=2) as (_, url),
        command(arguments, environment, tmp_path / "workers.log") as workers,
    ):
        eventually(lambda: len(workers.children) == 2, "both are there", seconds=60)
        before = workers.children
        os.kill(min(before), signal.SIGKILL)
        eventually(lambda: len(workers.children) == 2 and workers.children != before, "two are there again", seconds=60)
        generation = submit(url, tokens=20, seed=1)
        assert asyncio.run(follow(url, generation)).text == sim_text(20, 1)

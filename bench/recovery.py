"""How long it takes until things move again: cancel, take-over, hand-over, return of the store.

    python -m bench.recovery [--rounds 20] [--lease 3] [--streams 20] [--only cancel]

Real processes: an embedded server, one API, two workers. All in milliseconds of wall time, a row of JSON each:

* `cancel_socket`: from the request to the end of the provider's connection, as the provider sees it. The worker asks it
  with the OpenAI SDK, and it has gone silent: no token brings the news. `cancel_end`: to the terminal event, as a
  reader sees it.
* `hand_over`, `take_over`: from SIGTERM (no time to drain) and SIGKILL of the worker to the next attempt's first event.
* `store_back`: from the moment a killed server answers again to a new delta on *every* one of the streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.provider import chunk
from bench.tail_latency import _free_port as free_port
from broker.embedded import EmbeddedServer

Event = tuple[str, float]

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PATIENCE_SECONDS = 60.0


class SilentProvider:
    """Speaks chat completions: a few tokens, then nothing, until the client closes. When it did, by model."""

    def __init__(self) -> None:
        self.closed: dict[str, float] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    def closed_at(self, model: str) -> float:
        """When the client closed its connection; waits for it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while model not in self.closed:
            if time.monotonic() > deadline:
                raise SystemExit(f"the call of {model} was never left")
            time.sleep(0.002)
        return self.closed[model]

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(line for line in head.split("\r\n") if line.startswith("content-length"))
        model = json.loads(await reader.readexactly(int(length.partition(":")[2])))["model"]
        writer.write(_HEAD + b"".join(chunk({"content": word}) for word in ("Well", ", ", "so", " it ", "was")))
        with suppress(ConnectionError):
            await reader.read(1)
        self.closed[model] = time.monotonic()
        writer.close()


class Stack:
    """An API and two workers over one server."""

    def __init__(self, server: EmbeddedServer, *, lease: float, streams: int, directory: Path) -> None:
        self.server = server
        self.streams = streams
        self.provider = SilentProvider()
        self.url = f"http://127.0.0.1:{free_port()}"
        self._directory = directory
        self._environment = os.environ | {
            "LEGATO_REDIS_URL": server.url,
            "LEGATO_PROVIDERS": "sim,openai",
            "LEGATO_LEASE_SECONDS": str(lease),
            "LEGATO_DRAIN_SECONDS": "0",
            "OPENAI_BASE_URL": self.provider.url,
            "OPENAI_API_KEY": "none",
        }
        self._api = self._launch("api", "--port", self.url.rpartition(":")[2])
        self.workers = [self.worker(), self.worker()]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._is_ready():
            if time.monotonic() > deadline:
                raise SystemExit("the API does not come up")
            time.sleep(0.05)

    def worker(self) -> subprocess.Popen[bytes]:
        return self._launch("worker")

    def submit(self, **options: object) -> str:
        return self._submit("sim", "m", {"tokens": 100_000, "tokens_per_second": 40} | options)

    def submit_silent(self, model: str) -> str:
        """To the provider that falls silent."""
        return self._submit("openai", model, {})

    def cancel(self, generation: str) -> None:
        httpx.post(f"{self.url}/v1/generations/{generation}/cancel", timeout=_PATIENCE_SECONDS).raise_for_status()

    def holder(self, generation: str) -> int:
        """Which worker runs it: the one whose log says so. Only one runs anything here."""
        for number, worker in enumerate(self.workers):
            if generation in self._said(worker):
                return number
        raise SystemExit("no worker has claimed the generation")

    def wait_workers(self) -> None:
        """Until all of them work: a new one takes its time to start."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all("worker_started" in self._said(worker) for worker in self.workers):
            if time.monotonic() > deadline:
                raise SystemExit("a worker does not come up")
            time.sleep(0.05)

    def events(self, generation: str) -> Iterator[Event]:
        """Event names as they come, with the time of their coming. Follow them without a pause: what waits in a buffer
        has the time at which it is taken out."""
        with httpx.stream(
            "GET", f"{self.url}/v1/generations/{generation}/events", timeout=_PATIENCE_SECONDS
        ) as response:
            for line in response.iter_lines():
                if line.startswith("event: "):
                    yield line[7:], time.monotonic()

    def close(self) -> None:
        for process in [self._api, *self.workers]:
            process.kill()
            process.wait()

    def _submit(self, provider: str, model: str, options: dict[str, Any]) -> str:
        messages = [{"role": "user", "content": "x"}]
        body = {"provider": provider, "model": model, "messages": messages, "provider_options": options}
        answer = httpx.post(self.url + "/v1/generations", json=body, timeout=_PATIENCE_SECONDS)
        return str(answer.raise_for_status().json()["id"])

    @staticmethod
    def _said(worker: subprocess.Popen[bytes]) -> str:
        return Path(f"/proc/{worker.pid}/fd/2").resolve().read_text(errors="replace")

    def _is_ready(self) -> bool:
        try:
            return httpx.get(self.url + "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _launch(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{command[0]}-{time.monotonic_ns()}.log").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "cli.main", *command], env=self._environment, stdout=out, stderr=out
            )


class Watched:
    """A stream that a thread reads without a pause. `moved_after` tells when it had its next delta."""

    def __init__(self, stack: Stack, generation: str) -> None:
        self.generation = generation
        self._stack = stack
        self._news = threading.Condition()
        self._deltas: list[float] = []
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, count: int) -> None:
        """Until it has had so many deltas."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._deltas) >= count, _PATIENCE_SECONDS):
                raise SystemExit(f"{self.generation} does not get on")

    def moved_after(self, moment: float) -> float:
        """When the first delta behind `moment` came; waits for it."""
        with self._news:
            if not self._news.wait_for(lambda: self._deltas[-1] > moment, _PATIENCE_SECONDS):
                raise SystemExit(f"{self.generation} never moved again")
            return next(at for at in self._deltas if at > moment)

    def _read(self) -> None:
        with suppress(httpx.TransportError):  # the end of the benchmark
            for name, at in self._stack.events(self.generation):
                if name == "delta":
                    with self._news:
                        self._deltas.append(at)
                        self._news.notify_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--lease", type=float, default=3)
    parser.add_argument("--streams", type=int, default=20, help="for store_back")
    parser.add_argument("--only", choices=list(MEASURES))
    options = parser.parse_args()
    with TemporaryDirectory() as name, EmbeddedServer.start(Path(name) / "data") as server:
        stack = Stack(server, lease=options.lease, streams=options.streams, directory=Path(name))
        try:
            for measure in [options.only] if options.only else list(MEASURES):
                rounds = [MEASURES[measure](stack) for _ in range(options.rounds)]
                for row in rounds[0]:
                    times = sorted(each[row] for each in rounds)
                    print(json.dumps(_row(row, times, options.lease)), flush=True)
        finally:
            stack.close()


def _row(name: str, times: list[float], lease: float) -> dict[str, object]:
    return {
        "measure": name,
        "rounds": len(times),
        "lease_ms": round(lease * 1000),
        "p50_ms": round(1000 * statistics.median(times)),
        "p99_ms": round(1000 * times[int(len(times) * 0.99)]),
        "max_ms": round(1000 * times[-1]),
    }


def _cancel(stack: Stack) -> dict[str, float]:
    model = f"m{random.getrandbits(60):x}"
    generation = stack.submit_silent(model)
    events = stack.events(generation)
    while next(events)[0] != "delta":
        pass
    time.sleep(random.uniform(0.5, 1.5))  # any phase of the worker's looks
    asked = time.monotonic()
    stack.cancel(generation)
    ended = next(at for name, at in events if name == "cancelled")
    return {"cancel_socket": stack.provider.closed_at(model) - asked, "cancel_end": ended - asked}


def _take_over(stack: Stack) -> dict[str, float]:
    return {"take_over": _replace(stack, signal.SIGKILL)}


def _hand_over(stack: Stack) -> dict[str, float]:
    return {"hand_over": _replace(stack, signal.SIGTERM)}


def _replace(stack: Stack, how: signal.Signals) -> float:
    stack.wait_workers()
    generation = stack.submit()
    events = stack.events(generation)
    seen = 0
    while seen < 20:
        seen += next(events)[0] == "delta"
    number = stack.holder(generation)
    asked = time.monotonic()
    stack.workers[number].send_signal(how)
    took = next(at for name, at in events if name == "reset") - asked
    stack.workers[number].wait()
    stack.workers[number] = stack.worker()
    stack.cancel(generation)
    time.sleep(1)
    return took


def _store_back(stack: Stack) -> dict[str, float]:
    watched = [Watched(stack, stack.submit()) for _ in range(stack.streams)]
    for each in watched:
        each.wait(20)
    stack.server.kill()
    time.sleep(random.uniform(1, 4))
    stack.server.restart()
    back = time.monotonic()
    took = max(each.moved_after(back) for each in watched) - back
    for each in watched:
        stack.cancel(each.generation)
    return {"store_back": took}


MEASURES: dict[str, Callable[[Stack], dict[str, float]]] = {
    "cancel": _cancel,
    "hand_over": _hand_over,
    "take_over": _take_over,
    "store_back": _store_back,
}

if __name__ == "__main__":
    main()

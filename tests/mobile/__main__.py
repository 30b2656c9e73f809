"""`make test-android`: the reader of docs/how-to/android.md, compiled and run against a Legato that is cut and killed.

Needs a JDK (17 or newer) and Maven, which fetches Kotlin and OkHttp; fails, never skips, without them.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from broker.embedded import EmbeddedServer
from broker.lifeline import bound_to_us
from chaos.proxy import Proxy
from tests.support.stack import ROOT, Stack

HERE: Final = Path(__file__).parent
PAGE: Final = ROOT / "docs/how-to/android.md"
SECONDS: Final = 120.0


def compiled(directory: Path) -> str:
    """The reader of the page and its driver, compiled; the class path."""
    for command in ("java", "mvn"):
        if shutil.which(command) is None:
            sys.exit(f"make test-android: {command} is not there (Debian: apt-get install default-jdk-headless maven)")
    (code,) = re.findall(r"```kotlin\n(.*?)```", PAGE.read_text(), re.DOTALL)
    sources = directory / "src"
    sources.mkdir()
    (sources / "GenerationReader.kt").write_text(code)
    shutil.copy(HERE / "Check.kt", sources)
    shutil.copy(HERE / "pom.xml", directory)
    build = ["mvn", "--quiet", "--batch-mode", f"-Dkotlin.sources={sources}", "compile", "dependency:copy-dependencies"]
    subprocess.run([*build, "-DoutputDirectory=target/lib"], cwd=directory, check=True, timeout=900)
    return f"{directory}/target/classes:{directory}/target/lib/*"


class Reader:
    """The compiled reader, in a process of its own."""

    def __init__(self, classes: str, url: str, generation: str) -> None:
        self._process = subprocess.Popen(
            bound_to_us([str(shutil.which("java")), "-Xshare:auto", "-cp", classes, "CheckKt", url, generation]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")

    def pause(self) -> None:
        self.tell("pause")
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "paused\n"

    def result(self) -> Mapping[str, Any]:
        out, _ = self._process.communicate(timeout=SECONDS)
        found: Mapping[str, Any] = json.loads(out.splitlines()[-1])
        return found


async def run(stack: Stack, classes: str) -> None:
    proxy = await Proxy.start(("127.0.0.1", stack.apis[0].port))
    url = f"http://127.0.0.1:{proxy.port}/"
    dice = random.Random(7)

    async def reads(name: str, options: Mapping[str, Any], during: Callable[[Reader, str], Any] | None = None) -> None:
        generation = await asyncio.to_thread(stack.submit, options)
        before = proxy.connections
        reader = Reader(classes, url, generation)
        if during is not None:
            await during(reader, generation)
        found = await asyncio.to_thread(reader.result)
        stored = (await asyncio.to_thread(stack.get, f"/v1/generations/{generation}")).json()
        assert found["ended"] == stored["status"], (name, found["ended"], stored["status"])
        assert found["text"] == stored["text"], name
        assert found["cursor"] == stored["position"], name
        print(f"ok  {name}: {len(found['text'])} characters, {proxy.connections - before} connections", flush=True)

    async def cuts(reader: Reader, generation: str) -> None:
        for _ in range(8):
            while not proxy.open_connections and reader.running:
                await asyncio.sleep(0.01)
            proxy.cut_at(dice.randrange(600, 1600))
            while proxy.open_connections and reader.running:
                await asyncio.sleep(0.01)
            if reader.running:
                reader.tell("hurry")

    async def background(reader: Reader, generation: str) -> None:
        for entries in (20, 60, 110):
            await asyncio.to_thread(stack.wait_entries, generation, entries)
            await asyncio.to_thread(reader.pause)
            await asyncio.to_thread(stack.wait_entries, generation, entries + 25)
            reader.tell("resume")

    async def restart(reader: Reader, generation: str) -> None:
        await asyncio.to_thread(stack.wait_entries, generation, 20)
        await asyncio.to_thread(stack.remove, stack.apis[0])
        api = await asyncio.to_thread(stack.add_api)
        proxy.upstream = ("127.0.0.1", api.port)
        reader.tell("hurry")

    async def lost(reader: Reader, generation: str) -> None:
        await asyncio.to_thread(stack.wait_entries, generation, 20)
        holder = await asyncio.to_thread(stack.holder, generation)
        holder.kill()
        stack.workers.remove(holder)
        stack.add_worker()

    async def joins_late(reader: Reader, generation: str) -> None:
        await asyncio.to_thread(stack.wait_entries, generation, 30)
        late = Reader(classes, url, generation)
        found = await asyncio.to_thread(late.result)
        assert found["text"] == stack.get(f"/v1/generations/{generation}").json()["text"]

    try:
        slow = {"tokens": 150, "seed": 3, "tokens_per_second": 30}
        await reads("an answer", {"tokens": 50, "seed": 1})
        await reads("cuts at random bytes", slow, cuts)
        await reads("pauses", slow, background)
        await reads("a restart of the API", slow, restart)
        await reads("a lost worker", slow, lost)
        await reads("another device in mid-answer", slow, joins_late)
        await reads("a failure", {"tokens": 20, "faults": [{"at_token": 5, "kind": "truncate"}]})
        gone = stack.submit({"tokens": 5})
        stack.wait_status(gone, "completed")
        stack.delete(f"/v1/generations/{gone}")
        found = await asyncio.to_thread(Reader(classes, url, gone).result)
        assert (found["ended"], found["error"][:4]) == ("gone", "410:")
        print("ok  a deleted generation")
    finally:
        await proxy.aclose()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        classes = compiled(directory)
        print("compiled", flush=True)
        with EmbeddedServer.start() as server, Stack.start(server.url, directory, workers=2) as stack:
            asyncio.run(run(stack, classes))


if __name__ == "__main__":
    main()

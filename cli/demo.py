"""`legato demo`: the promise, shown on this machine in a few seconds.

Real processes; a reader that keeps losing its connection (`cli.bad_reader`) and comes back to the other API process; at
the end a text that has to be the one the sim provider generates, which is known beforehand, and the one that
`GET /v1/generations/{id}` gives. Everything it starts ends with it, however it ends.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final
from uuid import uuid4

import click
import orjson

from broker.embedded import EmbeddedServer
from broker.errors import LegatoError
from cli.bad_reader import BadReader, Reading, plan
from cli.children import Child, Children
from cli.client import Client, json_object
from cli.exits import Exit, Failure
from worker.providers.sim import sim_text

#: How long the generation takes. With --kill-worker half of it is read twice, and the lease has to lapse.
_SECONDS: Final = 5.0
_SECONDS_WITH_KILL: Final = 3.5

#: After this the demo has failed.
_DEADLINE_SECONDS: Final = 60.0

#: How soon another worker takes over: short, for a show.
_LEASE_SECONDS: Final = 2

#: The part of the text after which the worker is killed, and the part at which its attempt stands still: on a slow
#: machine it would end before anybody has read so far.
_KILL_AT: Final = 0.5
_STALL_AT: Final = 0.75

#: Pause after a connection that brought nothing and was not cut by us.
_PAUSE_SECONDS: Final = 0.2

_EXCERPT_CHARACTERS: Final = 30


@click.command()
@click.option("--tokens", type=click.IntRange(100, 20_000), default=600, show_default=True, help="Length of the text.")
@click.option("--seed", type=click.IntRange(0), help="Which text, and where the cuts are.  [default: random]")
@click.option("--cuts", type=click.IntRange(0, 20), default=8, show_default=True, help="How often to cut.")
@click.option("--kill-worker", is_flag=True, help="Also kill the worker in mid-text (SIGKILL) and start another.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but how it went, as one object.")
@click.pass_context
def demo(context: click.Context, /, tokens: int, seed: int | None, cuts: int, kill_worker: bool, as_json: bool) -> None:
    """Cut a stream's connection again and again, and show that its text is whole.

    Starts an embedded server (unless LEGATO_REDIS_URL is set), two API processes and a worker, and stops them at the
    end. Takes about ten seconds. Ends with 0 if the text was whole, else with 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if "NO_COLOR" in os.environ:
        context.color = False
    seed = random.randrange(10_000) if seed is None else seed
    with _signals_end_it(), ExitStack() as stack:
        started = time.monotonic()
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="legato-demo-")))
        children = stack.enter_context(Children(folder, _settings(_store(stack, folder), kill_worker=kill_worker)))
        apis = [children.start(f"API {name}", "api", "--port", "0") for name in "AB"]
        worker = children.start("the worker", "worker")
        ports = [child.port() for child in apis]
        where = ", ".join(f"API {name} on port {port}" for name, port in zip("AB", ports, strict=True))
        show = Show(children, ports, worker, tokens=tokens, seed=seed, cuts=cuts, kill_worker=kill_worker, mute=as_json)
        show.say(f"started in {time.monotonic() - started:.1f} s: a store, {where}, a worker (pid {worker.pid})")
        outcome = show.run()
    if as_json:
        click.echo(orjson.dumps(outcome))
    whole = outcome["whole"]
    raise click.exceptions.Exit(Exit.COMPLETED if whole else Exit.FAILED)


class Show:
    """One generation and its reader."""

    def __init__(
        self,
        children: Children,
        ports: list[int],
        worker: Child,
        *,
        tokens: int,
        seed: int,
        cuts: int,
        kill_worker: bool,
        mute: bool,
    ) -> None:
        self._mute = mute
        self._children = children
        self._ports = ports
        self._worker = worker
        self._tokens = tokens
        self._seed = seed
        self._expected = sim_text(tokens, seed)
        self._cuts = plan(len(self._expected), cuts, random.Random(seed))
        self._kill_at = len(self._expected) * _KILL_AT if kill_worker else None
        self._seconds = _SECONDS_WITH_KILL if kill_worker else _SECONDS
        self._deadline = time.monotonic() + _DEADLINE_SECONDS
        self._reading = Reading()

    def say(self, line: str) -> None:
        """A line of the show."""
        if not self._mute:
            click.echo(line)

    def run(self) -> dict[str, Any]:
        """Submit, read to the end, judge: counts, what was checked, and whether the text is `whole`."""
        generation = self._submit()
        reader = BadReader(self._reading, f"/v1/generations/{generation}/events")
        connections = cuts = 0
        while self._reading.end is None:
            api = connections % len(self._ports)
            connections += 1
            cuts += self._connection(reader, "AB"[api], self._ports[api])
        return self._judge(generation, connections, cuts)

    def _submit(self) -> str:
        options: dict[str, Any] = {
            "tokens": self._tokens,
            "seed": self._seed,
            "tokens_per_second": self._tokens / self._seconds,
        }
        if self._kill_at is not None:
            options["faults"] = [{"at_token": int(self._tokens * _STALL_AT), "kind": "stall", "attempt": 1}]
        job = {
            "provider": "sim",
            "model": "sim",
            "messages": [{"role": "user", "content": "Tell me something."}],
            "provider_options": options,
            "ttl_seconds": 60,
        }
        generation = str(self._call("POST", "/v1/generations", orjson.dumps(job))["id"])
        self.say(f"{generation}: {self._tokens} tokens (seed {self._seed}) in {self._seconds:g} s\n")
        return generation

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        with Client(f"http://127.0.0.1:{self._ports[0]}", timeout_seconds=_DEADLINE_SECONDS / 4) as client:
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"demo-{uuid4()}"}
            return json_object(client.call(method, path, body=body, headers=headers))

    def _connection(self, reader: BadReader, name: str, port: int) -> bool:
        """Read until the end or the cut, and say so in one line; whether it was cut by us."""
        reading = self._reading
        asked, frames, resets, reading.verdict = reading.cursor or "", reading.frames, reading.resets, ""
        try:
            place = reader.read(port, self._cuts.pop(0) if self._cuts else None, self._go_on)
        except (OSError, ValueError) as exc:
            self._children.check()
            raise Failure(Exit.FAILED, f"API {name}: {exc}") from exc
        if place is not None:
            ending = click.style(f"✂ {place.value}", fg="red")
        elif reading.end is not None:
            ending = click.style(f"■ {reading.end.event}", fg="green")
        else:
            ending = click.style("the API closed it", fg="yellow")
            time.sleep(_PAUSE_SECONDS)
        if reading.resets > resets:
            ending = f"↺ reset, text anew; {ending}"
        excerpt = " ".join(reading.text.split())[-_EXCERPT_CHARACTERS:] if reading.frames > frames else "–"
        opened = f"{reading.verdict or 'nothing'} {asked if reading.verdict == 'resumed' else ''}".strip()
        count = f"{reading.frames - frames:>4} frames"
        self.say(f"{click.style(name, bold=True)}  {opened:<14}{count}  {excerpt:<{_EXCERPT_CHARACTERS}}  {ending}")
        return place is not None

    def _go_on(self) -> None:
        """Called between two reads: the clock, and the worker's fate."""
        if time.monotonic() > self._deadline:
            self._children.check()
            raise Failure(Exit.FAILED, f"no end after {_DEADLINE_SECONDS:g} s")
        if self._kill_at is not None and len(self._reading.text) >= self._kill_at:
            self._kill_at = None
            self._worker.kill()
            another = self._children.start("the other worker", "worker")
            said = f"   SIGKILL to the worker (pid {self._worker.pid}); another starts (pid {another.pid})"
            self.say(click.style(said, fg="yellow"))

    def _judge(self, generation: str, connections: int, cuts: int) -> dict[str, Any]:
        reading = self._reading
        state = self._call("GET", f"/v1/generations/{generation}")
        checks = [
            ("the text is what the sim generates for this seed", _difference(reading.text, self._expected)),
            ("the text is what GET /v1/generations/{id} gives", _difference(reading.text, str(state.get("text")))),
            ("nothing came twice", f"{reading.duplicates} events did" if reading.duplicates else ""),
            ("it completed", "" if state.get("status") == "completed" else f"it is {state.get('status')}"),
        ]
        resets = f", {reading.resets} reset" if reading.resets else ""
        self.say(
            f"\n{connections} connections, {cuts} cuts{resets}, {reading.deltas} deltas in {reading.frames} frames, "
            f"{reading.duplicates} duplicates, {len(reading.text):,} characters"
        )
        for name, problem in checks:
            mark = click.style("no ", fg="red") if problem else click.style("yes", fg="green")
            self.say(f"{mark}  {name}" + (f": {problem}" if problem else ""))
        return {
            "whole": not any(problem for _, problem in checks),
            "generation": generation,
            "tokens": self._tokens,
            "seed": self._seed,
            "connections": connections,
            "cuts": cuts,
            "resets": reading.resets,
            "deltas": reading.deltas,
            "frames": reading.frames,
            "duplicates": reading.duplicates,
            "characters": len(reading.text),
            "checks": [{"name": name, "problem": problem or None} for name, problem in checks],
        }


def _settings(store: str, *, kill_worker: bool) -> dict[str, str]:
    settings = {
        "LEGATO_REDIS_URL": store,
        "LEGATO_PREFIX": f"demo-{uuid4().hex[:8]}",
        "LEGATO_PROVIDERS": "sim",
        "LEGATO_DRAIN_SECONDS": "0",
    }
    return settings | ({"LEGATO_LEASE_SECONDS": str(_LEASE_SECONDS)} if kill_worker else {})


def _store(stack: ExitStack, folder: Path) -> str:
    """The URL that is set, or that of an embedded server that ends with the stack."""
    if url := os.environ.get("LEGATO_REDIS_URL"):
        return url
    try:
        return stack.enter_context(EmbeddedServer.start(folder / "store")).url
    except LegatoError as exc:
        raise Failure(Exit.FAILED, str(exc)) from exc


def _difference(text: str, other: str) -> str:
    """Where two texts part, in words; empty where they do not."""
    if text == other:
        return ""
    pairs = enumerate(zip(text, other, strict=False))
    at = next((index for index, (one, two) in pairs if one != two), min(len(text), len(other)))
    return f"{len(text):,} characters against {len(other):,}, different from character {at:,} on"


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """SIGTERM and SIGHUP leave by the same doors as Ctrl-C."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

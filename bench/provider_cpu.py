"""What one piece of a provider's stream costs a worker, from the socket to the append, in CPU.

    python -m bench.provider_cpu [--deltas 20000] [--rounds 5] [--arrival blocks chunks single] [--json FILE]

A server in another process streams a text over loopback. Each path reads it in this process (litellm in a process of
its own), is asked in turn, round by round, and is charged the CPU time of its process, system calls too:

- `bytes`: the SDK's request and nothing but reading the body: what everybody below pays as well;
- `legato, parsing`: provider, `SseReader` and mapper, whose events are only looked at: what compares with the SDKs;
- `legato, log in memory`: provider, `SseReader`, mapper, `Answer` and `Writer`, whose appends go nowhere;
- `legato`: the same, with every append in an embedded server (whose own CPU is not counted);
- `sdk`: the objects of `create(stream=True)`; `sdk helper`: those of `.stream()`;
- `litellm`: its `acompletion` or `aresponses`, installed below the system's temporary directory if need be.

How the bytes arrive decides much. `blocks`: HTTP chunks of 64 KiB, so that parsing is nearly all there is. `chunks`:
one HTTP chunk a delta, without a pause: several come in one read. `single`: one delta a read, as slow models send
them; of a tenth as many deltas, for it is paced. Prints a table; with `--json` writes the same figures to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import anthropic
import openai
import orjson
import uvloop

from broker.budget import Purse
from broker.embedded import EmbeddedServer
from broker.events import Completed, Delta, Entry
from broker.generation import Request
from broker.lease import Lease, Leases, new_owner
from broker.log import AppendAnswer, Appended, Log
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from worker.answer import Answer
from worker.facts import Facts
from worker.providers.anthropic import AnthropicProvider
from worker.providers.base import Call, Provider
from worker.providers.openai import OpenAIProvider
from worker.providers.openai_responses import OpenAIResponsesProvider
from worker.pulse import Pulse
from worker.turns import Progress, progress
from worker.watch import Watch
from worker.writer import Writer

WIRES: Final = ("openai", "openai_responses", "anthropic")
PATHS: Final = ("bytes", "legato, parsing", "legato, log in memory", "legato", "sdk", "sdk helper", "litellm")
ARRIVALS: Final = ("blocks", "chunks", "single")

#: Body bytes of one HTTP chunk where they come in blocks.
BLOCK_BYTES: Final = 64 * 1024
#: Between two deltas that come singly; one of this many deltas is sent then.
PAUSE_SECONDS: Final = 0.001
SINGLE_SHARE: Final = 10
#: No answer here takes longer.
ANSWER_SECONDS: Final = 600.0
LEASE_SECONDS: Final = 300.0
#: Deltas of the answer that each path reads before it is measured.
WARM_UP_DELTAS: Final = 50

LITELLM: Final = Path(tempfile.gettempdir()) / "legato-bench-litellm"
#: `mcp` is imported by its `aresponses`, though not asked for.
LITELLM_NEEDS: Final = ("litellm", "mcp", "uvloop")
MESSAGES: Final = [{"role": "user", "content": "Go on."}]
WORDS: Final = (" the", " answer", " runs", " on", " and", " – oh", ",", " café", " said", ".")


# --- the server ---


def frames(wire: str, deltas: int) -> list[bytes]:
    """An answer of so many deltas as the frames of one wire, in the shape in which its provider sends them."""
    words = [WORDS[at % len(WORDS)] for at in range(deltas)]
    match wire:
        case "openai":
            return _chat(words)
        case "openai_responses":
            return _responses(words)
        case _:
            return _messages(words)


def _sse(data: object, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + orjson.dumps(data) + b"\n\n"


def _chat(words: Sequence[str]) -> list[bytes]:
    same = {"id": "chatcmpl-CfK2yQ0vW9hT3xL1", "object": "chat.completion.chunk", "created": 1_795_000_000}
    same |= {"model": "gpt-4.1-2026-04-14", "service_tier": "default", "system_fingerprint": "fp_95d112f245"}

    def chunk(delta: object, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _sse(same | {"choices": [choice], "usage": None, "obfuscation": "kQ7xd2"})

    counts = {"prompt_tokens": 9, "completion_tokens": len(words), "total_tokens": 9 + len(words)}
    return [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": word}) for word in words),
        chunk({}, "stop"),
        _sse(same | {"choices": [], "usage": counts}),
        b"data: [DONE]\n\n",
    ]


def _responses(words: Sequence[str]) -> list[bytes]:
    response = {"id": "resp_68af4030592c81938ec0a5fb", "object": "response", "created_at": 1_795_000_000, "output": []}
    response |= {"status": "in_progress", "model": "gpt-5.2", "parallel_tool_calls": True, "tool_choice": "auto"}
    response |= {"tools": [], "usage": None, "error": None, "incomplete_details": None}
    item = {"id": "msg_68af40", "type": "message", "status": "in_progress", "role": "assistant", "content": []}
    place = {"item_id": "msg_68af40", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "".join(words), "annotations": [], "logprobs": []}
    done = item | {"status": "completed", "content": [part]}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    counts = {"input_tokens": 9, "output_tokens": len(words), "total_tokens": 9 + len(words)} | details
    said: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": response}),
        ("output_item.added", {"output_index": 0, "item": item}),
        ("content_part.added", place | {"part": part | {"text": ""}}),
        *(("output_text.delta", place | {"delta": word, "logprobs": [], "obfuscation": "hW2"}) for word in words),
        ("output_text.done", place | {"text": part["text"], "logprobs": []}),
        ("content_part.done", place | {"part": part}),
        ("output_item.done", {"output_index": 0, "item": done}),
        ("completed", {"response": response | {"status": "completed", "output": [done], "usage": counts}}),
    ]
    return [
        _sse({"type": f"response.{kind}", "sequence_number": number} | more, f"response.{kind}")
        for number, (kind, more) in enumerate(said)
    ]


def _messages(words: Sequence[str]) -> list[bytes]:
    message: dict[str, Any] = {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
    }
    message |= {"content": [], "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}}
    said: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        *(("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": word}}) for word in words),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": len(words)}}),
        ("message_stop", {}),
    ]
    return [_sse({"type": kind} | more, kind) for kind, more in said]


_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _serve(pipe: Connection) -> None:
    uvloop.run(_serve_all(pipe))


async def _serve_all(pipe: Connection) -> None:
    """Plays answers until the parent is done. A path is `/<arrival>/<deltas>/…`, as the clients' base URLs say."""
    answers: dict[tuple[str, str, int], list[bytes]] = {}

    def answer(path: str) -> list[bytes]:
        _, arrival, deltas, *rest = path.split("/")
        wire = {"completions": "openai", "responses": "openai_responses"}.get(rest[-1], "anthropic")
        key = arrival, wire, int(deltas)
        if key not in answers:
            whole = frames(wire, int(deltas))
            if arrival == "blocks":
                body = b"".join(whole)
                whole = [body[at : at + BLOCK_BYTES] for at in range(0, len(body), BLOCK_BYTES)]
            answers[key] = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in whole]
        return answers[key]

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                path = head.split(" ")[1]
                await reader.readexactly(int(head.partition("content-length:")[2].partition("\r\n")[0]))
                writer.write(_HEAD)
                for piece in answer(path):
                    writer.write(piece)
                    if path.startswith("/single/"):
                        await asyncio.sleep(PAUSE_SECONDS)
                    else:
                        await writer.drain()
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.recv)


# --- the paths ---

#: One answer, asked for and read to its end; how many characters it had, where the path can tell.
Read = Callable[[], Awaitable[int | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """The official SDKs, as workers use them."""

    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    def at(self, base: str) -> Clients:
        """The same clients for another server's address."""
        return Clients(
            openai=self.openai.with_options(base_url=f"{base}/v1"), anthropic=self.anthropic.with_options(base_url=base)
        )

    def arguments(self, wire: str) -> tuple[Any, dict[str, Any]]:
        """The resource whose `create` is asked, and what it is given."""
        match wire:
            case "openai":
                return self.openai.chat.completions, {"model": "bench", "messages": MESSAGES}
            case "openai_responses":
                return self.openai.responses, {"model": "bench", "input": MESSAGES}
            case _:
                return self.anthropic.messages, {"model": "bench", "messages": MESSAGES, "max_tokens": 4096}


async def read_bytes(clients: Clients, wire: str) -> None:
    resource, arguments = clients.arguments(wire)
    async with resource.with_streaming_response.create(**arguments, stream=True) as response:
        async for _ in response.http_response.aiter_bytes():
            pass


async def read_objects(clients: Clients, wire: str) -> int:
    resource, arguments = clients.arguments(wire)
    characters = 0
    async for item in await resource.create(**arguments, stream=True):
        match wire:
            case "openai":
                characters += len(item.choices[0].delta.content or "") if item.choices else 0
            case "openai_responses":
                characters += len(item.delta) if item.type == "response.output_text.delta" else 0
            case _:
                characters += len(item.delta.text) if item.type == "content_block_delta" else 0
    return characters


async def read_with_helper(clients: Clients, wire: str) -> int:
    resource, arguments = clients.arguments(wire)
    characters = 0
    async with resource.stream(**arguments) as stream:
        async for event in stream:
            match event.type:
                case "content.delta" | "response.output_text.delta":
                    characters += len(event.delta)
                case "text":
                    characters += len(event.text)
    return characters


async def read_events(clients: Clients, wire: str) -> int:
    request = Request(provider=wire, model="bench", messages=MESSAGES)
    characters = 0
    async for event in provider_of(clients, wire).stream(Call(request)):
        match event:
            case Delta(text=text):
                characters += len(text)
    return characters


def provider_of(clients: Clients, wire: str) -> Provider:
    """As a worker has it."""
    match wire:
        case "openai":
            return OpenAIProvider(client=clients.openai)
        case "openai_responses":
            return OpenAIResponsesProvider(client=clients.openai)
        case _:
            return AnthropicProvider(client=clients.anthropic)


class MemoryLog(Log):
    """Takes every append and stores nothing."""

    async def append(
        self,
        generation: str,
        epoch: int,
        owner: str,
        prev: str,
        entries: Sequence[Entry],
        notes: Mapping[str, str] = MappingProxyType({}),
    ) -> AppendAnswer:
        await asyncio.sleep(0)  # an append lets others run, and events gather meanwhile
        return Appended(head=entries[-1].position if entries else prev, stored=len(entries), cancel="")


class Legato:
    """A worker's path. What comes before the provider is asked is done by `prepare`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records = Records(store, Queue(store))
        self._leases = Leases(store)
        self._pulse = Pulse(tolerance=ANSWER_SECONDS)

    async def prepare(self, clients: Clients, wire: str, *, stored: bool) -> Read:
        """A claimed generation, about to ask."""
        request = Request(provider=wire, model="bench", messages=MESSAGES)
        submitted = await self._records.submit("dev", request)
        lease = await self._leases.claim(submitted.id, owner=new_owner())
        assert isinstance(lease, Lease)
        writer = Writer(
            lease,
            [],
            log=Log(self._store) if stored else MemoryLog(self._store),
            leases=self._leases,
            pulse=self._pulse,
            heal_seconds=ANSWER_SECONDS,
            on_cancel=lambda: None,
        )
        return partial(self._read, writer, provider_of(clients, wire), request)

    async def _read(self, writer: Writer, provider: Provider, request: Request) -> int:
        facts = Facts(queue_ms=0)
        answer = Answer(
            writer,
            request=request,
            facts=facts,
            purse=Purse(self._store, "dev"),
            pipeline=None,
            found=Progress(),
            usage_before=None,
        )
        writing = asyncio.create_task(writer.run())
        watch = Watch(end=time.monotonic() + ANSWER_SECONDS, stall_seconds=ANSWER_SECONDS)
        reason = await answer.read(provider, Call(request, meter=facts.asked()), watch, overlap=None)
        characters = progress(writer.entries).characters  # as every run does
        writer.add(Completed(finish_reason=reason, usage=answer.usage, characters=characters))
        await writing
        return characters


#: Runs in litellm's environment, which has nothing of ours: a line in names wire and address, a line out is the answer.
_LITELLM_CHILD: Final = """
import asyncio, gc, json, sys, time
import litellm, uvloop

ASK = {"messages": [{"role": "user", "content": "Go on."}], "stream": True, "api_key": "bench"}

async def read(wire, base):
    characters = 0
    if wire == "openai_responses":
        ask = {**ASK, "input": ASK["messages"], "model": "openai/gpt-5.2", "api_base": base + "/v1"}
        del ask["messages"]
        async for event in await litellm.aresponses(**ask):
            characters += len(event.delta) if event.type == "response.output_text.delta" else 0
        return characters
    where = {"model": "openai/gpt-4.1", "api_base": base + "/v1"}
    if wire == "anthropic":
        where = {"model": "anthropic/claude-sonnet-4-6", "api_base": base}
    async for chunk in await litellm.acompletion(**ASK, **where):
        characters += len(chunk.choices[0].delta.content or "") if chunk.choices else 0
    return characters

async def main():
    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        gc.collect(1)
        began = time.process_time()
        try:
            said = {"characters": await read(*line), "seconds": time.process_time() - began}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"[:200]}
        print("\\n@" + json.dumps(said), flush=True)

uvloop.run(main())
"""


class Litellm:
    """litellm, in an environment and a process of its own."""

    def __init__(self) -> None:
        self._python = LITELLM / "bin" / "python"
        self._child: asyncio.subprocess.Process | None = None
        self.version = ""
        self.missing = ""  # why it cannot be measured

    async def start(self) -> None:
        """Install it if need be. Sets `missing` where that does not work."""
        try:
            if not self._python.exists():
                await asyncio.to_thread(venv.create, LITELLM, with_pip=True)
            if not await asyncio.to_thread(self._find):
                pip = [str(self._python), "-m", "pip", "install", "--quiet", *LITELLM_NEEDS]
                await asyncio.to_thread(subprocess.run, pip, check=True, capture_output=True, timeout=ANSWER_SECONDS)
                assert await asyncio.to_thread(self._find)
        except (OSError, AssertionError, subprocess.SubprocessError) as exc:
            self.missing = f"litellm cannot be installed ({type(exc).__name__})"
            return
        self._child = await asyncio.create_subprocess_exec(
            str(self._python),
            *("-c", _LITELLM_CHILD),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PATH": "/usr/bin:/bin"},
        )

    def _find(self) -> bool:
        ask = "import importlib.metadata as m, uvloop, mcp, litellm; print(m.version('litellm'))"
        found = subprocess.run([str(self._python), "-c", ask], capture_output=True, text=True, check=False)
        self.version = found.stdout.strip()
        return not found.returncode

    async def measure(self, base: str, wire: str) -> tuple[float, int]:
        """CPU seconds, and characters. Raises `ValueError` with what it says where it fails."""
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{wire} {base}\n".encode())
        while line := await self._child.stdout.readline():
            if line.startswith(b"@"):
                said = json.loads(line[1:])
                if "error" in said:
                    raise ValueError(said["error"])
                return said["seconds"], said["characters"]
        raise ValueError("its process ended")

    async def aclose(self) -> None:
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            await self._child.wait()


# --- the figures ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a path costs. `times` is how many times Legato's cost, append and all (median over median)."""

    arrival: str
    wire: str
    path: str
    deltas: int
    us_per_delta: float | None = None  # median over the rounds
    least_us: float | None = None
    most_us: float | None = None
    times: float | None = None
    note: str = ""


class Bench:
    """All paths over one server; `run()` once."""

    def __init__(self, port: int, clients: Clients, legato: Legato, litellm: Litellm | None, *, rounds: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._clients = clients
        self._legato = legato
        self._litellm = litellm
        self._rounds = rounds

    async def run(self, arrival: str, wire: str, deltas: int) -> list[Row]:
        """Every path, in turn, so many rounds; behind an answer of each that does not count."""
        paths = [path for path in PATHS if self._litellm or path != "litellm"]
        spent: dict[str, list[float]] = {path: [] for path in paths}
        notes: dict[str, str] = {}
        for number in range(self._rounds + 1):
            count = deltas if number else min(deltas, WARM_UP_DELTAS)
            expected = sum(len(WORDS[at % len(WORDS)]) for at in range(count))
            gc.collect()
            for path in paths:
                if path in notes:
                    continue
                try:
                    seconds, characters = await self._measure(path, f"{self._url}/{arrival}/{count}", wire)
                except ValueError as exc:
                    notes[path] = str(exc)
                    continue
                if characters not in {None, expected}:
                    notes[path] = f"it got {characters} characters of {expected}"
                elif number:
                    spent[path].append(1e6 * seconds / count)
        rows = [_row(arrival, wire, path, deltas, spent[path], notes.get(path, "")) for path in paths]
        ours = next(row.us_per_delta for row in rows if row.path == "legato")
        return [replace(row, times=row.us_per_delta and ours and round(row.us_per_delta / ours, 2)) for row in rows]

    async def _measure(self, path: str, base: str, wire: str) -> tuple[float, int | None]:
        clients = self._clients.at(base)
        match path:
            case "litellm":
                assert self._litellm is not None
                if self._litellm.missing:
                    raise ValueError(self._litellm.missing)
                return await self._litellm.measure(base, wire)
            case "bytes":
                read: Read = partial(read_bytes, clients, wire)
            case "legato, parsing":
                read = partial(read_events, clients, wire)
            case "sdk":
                read = partial(read_objects, clients, wire)
            case "sdk helper":
                read = partial(read_with_helper, clients, wire)
            case _:
                read = await self._legato.prepare(clients, wire, stored=path == "legato")
        gc.collect(1)  # what the path before has left is not this one's to clear away
        began = time.process_time()
        characters = await read()
        return time.process_time() - began, characters


def _row(arrival: str, wire: str, path: str, deltas: int, spent: list[float], note: str) -> Row:
    row = Row(arrival=arrival, wire=wire, path=path, deltas=deltas, note=note)
    if note or not spent:
        return row
    return replace(
        row,
        us_per_delta=round(statistics.median(spent), 2),
        least_us=round(min(spent), 2),
        most_us=round(max(spent), 2),
    )


def table(rows: Sequence[Row]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| arrival | wire | path | µs/delta | spread | × legato |", "|---|---|---|---|---|---|"]
    for row in rows:
        head = f"| {row.arrival} | {row.wire} | {row.path} |"
        if row.us_per_delta is None:
            lines.append(f"{head} – | {row.note} | – |")
        else:
            lines.append(f"{head} {row.us_per_delta:.1f} | {row.least_us:.1f} to {row.most_us:.1f} | {row.times:.1f} |")
    return "\n".join(lines)


async def run(server: EmbeddedServer, port: int, options: argparse.Namespace) -> dict[str, Any]:
    store = Store(server.url, Settings(redis_url=server.url, lease_seconds=LEASE_SECONDS))
    litellm = None if options.no_litellm else Litellm()
    rows: list[Row] = []
    try:
        if litellm is not None:
            await litellm.start()
        async with openai.AsyncOpenAI(api_key="bench") as first, anthropic.AsyncAnthropic(api_key="bench") as second:
            clients = Clients(openai=first, anthropic=second)
            bench = Bench(port, clients, Legato(store), litellm, rounds=options.rounds)
            for arrival in options.arrival:
                deltas = max(1, options.deltas // SINGLE_SHARE) if arrival == "single" else options.deltas
                for wire in options.wire:
                    rows += await bench.run(arrival, wire, deltas)
    finally:
        if litellm is not None:
            await litellm.aclose()
        await store.aclose()
    versions = {name: version(name) for name in ("openai", "anthropic", "httpx2", "orjson")}
    versions |= {"python": sys.version.split()[0], "litellm": litellm.version if litellm else ""}
    return {"deltas": options.deltas, "rounds": options.rounds, "versions": versions, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deltas", type=int, default=20_000, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5, help="how often each path is measured")
    parser.add_argument("--arrival", nargs="+", choices=ARRIVALS, default=list(ARRIVALS))
    parser.add_argument("--wire", nargs="+", choices=WIRES, default=list(WIRES))
    parser.add_argument("--no-litellm", action="store_true", help="leave litellm out, and install nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    provider = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    provider.start()
    with EmbeddedServer.start() as server:
        figures = uvloop.run(run(server, ours.recv(), options))
    ours.send("stop")
    provider.join()
    print(table(figures["rows"]))
    print(", ".join(f"{name} {number}" for name, number in figures["versions"].items() if number))
    if options.json:
        options.json.write_text(json.dumps(figures, default=asdict, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

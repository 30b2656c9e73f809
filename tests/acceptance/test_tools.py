"""Tools between the model's turns, on real processes: run by a worker, or by the client while the generation waits.

The tools of these tests write down each time they are run, with what the log said at that moment, and wait for a file
where a call names one. So a test kills, cancels and drains at the place it means, and counts what ran.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio

from broker.calls import CallResult, Calls
from broker.embedded import EmbeddedServer
from broker.events import (
    Cancelled,
    Completed,
    Delta,
    Entry,
    Event,
    Failed,
    Reset,
    Started,
    Status,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    UsageReport,
    decode,
    encode,
)
from broker.generation import Request, ToolMode
from broker.lease import ClaimAnswer, Lease, Leases, Paused, new_owner
from broker.log import AppendAnswer, Appended
from broker.log import Log as BrokerLog
from broker.position import BEGINNING
from broker.queue import Hint, Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from tests.support.servers import free_port
from tests.support.sse_client import Ending, Frame, Reader, follow, open_stream, request
from tests.support.stack import Stack, eventually
from tests.support.wire_provider import Pause, Reply, Send, WireProvider, anthropic_stream, openai_stream
from worker.providers.sim import SimProvider
from worker.tools.base import Tool
from worker.tools.registry import Tools
from worker.worker import Worker

#: The tools of these tests, as a package writes them. `once` may not run twice.
MODULE: Final = '''
import asyncio
import json
import os
from pathlib import Path

import redis.asyncio as redis

from broker.keys import Keys
from worker.tools.base import ToolFailed

HERE = Path(__file__).parent


def write(**line):
    with (HERE / "runs").open("a") as file:
        file.write(json.dumps(line) + "\\n")


async def stored(generation):
    """What the log holds, as the tool begins."""
    key = Keys(os.environ["LEGATO_PREFIX"]).log(generation)
    async with redis.Redis.from_url(os.environ["LEGATO_REDIS_URL"], legacy_responses=False) as client:
        return [next(iter(fields.items())) for _, fields in await client.xrange(key)]


class Tool:
    parameters = {"type": "object", "required": ["say"]}

    def __init__(self, name, idempotent):
        self.name = name
        self.idempotent = idempotent

    async def run(self, arguments, *, call_id):
        generation, call = call_id.split(":", 1)
        ids = {(name, json.loads(payload).get("id")) for name, payload in await stored(generation) if name in
               (b"status", b"tool_result")}
        line = {"call_id": call_id, "tool": self.name}
        write(**line, what="begun", announced=(b"status", call) in ids, answered=(b"tool_result", call) in ids)
        try:
            while "hold" in arguments and not (HERE / arguments["hold"]).exists():
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            write(**line, what="stopped")
            raise
        write(**line, what="ended")
        if arguments.get("fail"):
            raise ToolFailed(arguments["say"])
        return "it said " + arguments["say"]


once = Tool("once", False)
again = Tool("again", True)
'''

#: What requests say of them.
DECLARED: Final = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("once", "again")
]

#: Longest wait for what must happen at all, however loaded the machine is.
SECONDS: Final = 60.0

Log = list[tuple[str, Event]]
Json = dict[str, Any]


class Bench:
    """Where the tools are and what they wrote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "runs").touch()
        (directory / "bench_tools.py").write_text(MODULE)
        info = directory / "bench_tools-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench_tools\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[legato.tools]\nonce = bench_tools:once\nagain = bench_tools:again\n")

    @property
    def environment(self) -> dict[str, str]:
        """What a worker needs to find them."""
        return {"PYTHONPATH": str(self.directory), "PYTHONDONTWRITEBYTECODE": "1"}

    def hold(self) -> str:
        """The name of a file that a call waits for."""
        return f"go-{uuid4().hex}"

    def release(self, hold: str) -> None:
        """Let the calls go on that wait for it."""
        (self.directory / hold).touch()

    def runs(self, generation: str, what: str = "begun") -> list[Json]:
        """What the tools wrote of a generation."""
        lines = [json.loads(line) for line in (self.directory / "runs").read_text().splitlines()]
        return [line for line in lines if line["what"] == what and line["call_id"].startswith(f"{generation}:")]

    def calls(self, generation: str, what: str = "begun") -> list[str]:
        """The ids of the calls that began, or ended, sorted: one for each run."""
        return sorted(line["call_id"].partition(":")[2] for line in self.runs(generation, what))

    def wait_begun(self, generation: str, count: int) -> None:
        eventually(lambda: len(self.runs(generation)) >= count, f"{count} tools have begun", seconds=SECONDS)


def call(say: str, *, tool: str = "again", id: str | None = None, **arguments: object) -> Json:
    """A call of the simulated model."""
    said = {"name": tool, "arguments": {"say": say, **arguments}}
    return said if id is None else said | {"id": id}


def turn(text: str, *calls: Json) -> Json:
    """A turn of the simulated model."""
    return {"text": text, "tool_calls": list(calls)}


def submit(stack: Stack, turns: Sequence[Json], *, mode: str = "server", fields: Json | None = None, **sim: Any) -> str:
    return stack.submit({"turns": list(turns), **sim}, tools=DECLARED, tool_mode=mode, **(fields or {}))


def of(kind: type, log: Log) -> list[Any]:
    return [event for _, event in log if isinstance(event, kind)]


def shown(log: Log) -> Log:
    """What stands behind the last reset."""
    resets = [at for at, (_, event) in enumerate(log) if isinstance(event, Reset)]
    return log[resets[-1] + 1 :] if resets else log


def text_of(log: Log) -> str:
    return "".join(event.text for event in of(Delta, shown(log)))


def results_of(log: Log) -> dict[str, tuple[str, bool]]:
    return {result.id: (result.content, result.is_error) for result in of(ToolResult, shown(log))}


def check_log(log: Log) -> None:
    """Dense; epochs never fall; one terminal event, the last; whole calls, counted from 0, each with an id of its own
    and at most one result."""
    assert [int(place.split("-")[0]) for place, _ in log] == list(range(1, len(log) + 1))
    epochs = [int(place.split("-")[1]) for place, _ in log]
    assert epochs == sorted(epochs)
    terminal = [number for number, (_, event) in enumerate(log) if isinstance(event, Completed | Failed | Cancelled)]
    assert terminal == [len(log) - 1]
    calls = of(ToolCallDone, shown(log))
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    fragments: dict[int, str] = {}
    for fragment in of(ToolCall, shown(log)):
        fragments[fragment.index] = fragments.get(fragment.index, "") + fragment.arguments
    for whole in calls:
        assert fragments[whole.index] == whole.arguments
    answered = [result.id for result in of(ToolResult, shown(log))]
    assert len(set(answered)) == len(answered)
    if isinstance(log[-1][1], Completed):
        assert log[-1][1].characters == len(text_of(log))


def check_shown(stack: Stack, generation: str) -> Json:
    """What GET says, what a snapshot says and what the log holds is one and the same; the answer to GET."""
    log, answer, frame = at_one_moment(stack, generation)
    calls = [
        {"index": c.index, "id": c.id, "name": c.name, "arguments": c.arguments} for c in of(ToolCallDone, shown(log))
    ]
    results = [
        {"id": r.id, "name": r.name, "content": r.content, "is_error": r.is_error} for r in of(ToolResult, shown(log))
    ]
    assert answer["text"] == text_of(log)
    assert answer["tool_calls"] == calls
    assert answer.get("tool_results", []) == results
    if frame.event == "snapshot":
        for name in ("text", "tool_calls", "tool_results", "status"):
            assert frame.data.get(name) == answer.get(name), name
    return answer


def at_one_moment(stack: Stack, generation: str) -> tuple[list[Event], Json, Frame]:
    """Log, answer to GET, and first frame of a snapshot, between which nothing happened: a running one goes on."""
    deadline = time.monotonic() + SECONDS
    log, answer = stack.log(generation), stack.get(f"/v1/generations/{generation}").json()
    while time.monotonic() < deadline:
        with open_stream(stack.urls[-1], generation, query="from=snapshot") as stream:
            frames = stream.frames()
            frame = next(frame for frame in frames if frame.event in ("snapshot", "completed", "failed", "cancelled"))
        before = log, answer["status"]
        log, answer = stack.log(generation), stack.get(f"/v1/generations/{generation}").json()
        if before == (log, answer["status"]) and stack.log(generation) == log:
            return log, answer, frame
    pytest.fail("it did not come to rest")


class Viewer:
    """Reads one generation in a thread, over one connection."""

    def __init__(self, url: str, generation: str) -> None:
        self.reader = Reader()
        self.ending: Ending | None = None
        self._stream = open_stream(url, generation)
        self._pool = ThreadPoolExecutor(1)
        self._reading: Future[None] = self._pool.submit(self._read)

    def result(self) -> Reader:
        """Its reader, once the body is over."""
        try:
            self._reading.result(SECONDS)
        finally:
            self._pool.shutdown(wait=False)
            self._stream.close()
        assert self.ending is Ending.CLEAN
        assert len(self.reader.opens) == 1
        return self.reader

    def _read(self) -> None:
        for frame in self._stream.frames():
            self.reader.take(frame)
        self.ending = self._stream.ending


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def deployment(redis_url: str, tmp_path_factory: pytest.TempPathFactory, bench: Bench) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("tools")
    with Stack.start(redis_url, directory, apis=2, workers=2, environment=bench.environment) as running:
        yield running


@pytest.fixture
def stack(deployment: Stack) -> Iterator[Stack]:
    """Two APIs and two workers; what a test ended is replaced after it."""
    yield deployment
    for process in list(deployment.workers):
        if not process.alive:
            deployment.remove(process)
    while len(deployment.workers) < 2:
        deployment.add_worker()


# --- server: what the worker does between turns ---


def test_tools_run_between_turns_and_everything_is_one_log(stack: Stack, bench: Bench) -> None:
    """Two turns with calls, one without: calls count on, texts join, usage adds up, and each is announced first."""
    turns = [
        turn("I look. ", call("one"), call("two", tool="once")),
        turn("And more. ", call("three")),
        turn("Done."),
    ]
    generation = submit(stack, turns)
    reader = Viewer(stack.urls[1], generation).result()
    assert reader.text == "I look. And more. Done."
    log = stack.log(generation)
    check_log(log)
    kinds = [type(event).__name__ for _, event in log if not isinstance(event, Delta | ToolCall | UsageReport)]
    assert kinds == [
        *("Started", "ToolCallDone", "ToolCallDone", "Status", "Status", "ToolResult", "ToolResult"),
        *("ToolCallDone", "Status", "ToolResult", "Completed"),
    ]
    assert [(event.phase, event.detail) for event in of(Status, log)] == [
        ("running_tool", {"id": "call_0_0", "name": "again"}),
        ("running_tool", {"id": "call_0_1", "name": "once"}),
        ("running_tool", {"id": "call_1_0", "name": "again"}),
    ]
    assert results_of(log) == {
        "call_0_0": ("it said one", False),
        "call_0_1": ("it said two", False),
        "call_1_0": ("it said three", False),
    }
    assert bench.calls(generation) == ["call_0_0", "call_0_1", "call_1_0"]
    assert all(run["announced"] and not run["answered"] for run in bench.runs(generation))
    # The sim counts the words of all messages, and its own chunks: 4 code points each, of texts and of arguments.
    pieces = [len(piece["text"]) for piece in turns]
    pieces += [len(json.dumps(c["arguments"], separators=(",", ":"))) for piece in turns for c in piece["tool_calls"]]
    output = sum(-(-length // 4) for length in pieces)
    said = [2, 2 + 2 + 3 + 3, 2 + 2 + 3 + 3 + 2 + 3]
    assert log[-1][1].usage.as_json() == {"input_tokens": sum(said), "output_tokens": output}  # type: ignore[union-attr]
    answer = check_shown(stack, generation)
    assert (answer["status"], answer["finish_reason"]) == ("completed", "stop")
    assert answer["usage"] == {"input_tokens": sum(said), "output_tokens": output}


def test_the_calls_of_a_turn_run_at_once_and_each_result_is_logged_as_it_comes(stack: Stack, bench: Bench) -> None:
    holds = [bench.hold() for _ in range(3)]
    turns = [turn("", *(call(str(number), hold=hold) for number, hold in enumerate(holds))), turn("Done.")]
    generation = submit(stack, turns)
    bench.wait_begun(generation, 3)
    assert check_shown(stack, generation)["status"] == "running"
    order = ["call_0_2", "call_0_0", "call_0_1"]
    for number, name in enumerate(order):
        bench.release(holds[int(name[-1])])
        eventually(lambda number=number: len(of(ToolResult, stack.log(generation))) > number, "a result")  # type: ignore[misc]
        check_shown(stack, generation)
    stack.wait_status(generation, "completed")
    log = stack.log(generation)
    check_log(log)
    assert [result.id for result in of(ToolResult, log)] == order


def test_whatever_goes_wrong_with_a_tool_is_a_result_for_the_model(stack: Stack, bench: Bench) -> None:
    calls = [
        call("no such luck", fail=True),
        call("x", tool="nothing_of_that_name"),
        {"name": "again", "arguments": {}},
        {"name": "again", "arguments": '{"say": '},
        call("fine"),
    ]
    generation = submit(stack, [turn("", *calls), turn("Done.")])
    stack.wait_status(generation, "completed")
    log = stack.log(generation)
    check_log(log)
    results = [results_of(log)[f"call_0_{number}"] for number in range(len(calls))]
    assert [is_error for _, is_error in results] == [True, True, True, True, False]
    assert results[0] == ("no such luck", True)
    assert "nothing_of_that_name" in results[1][0]
    assert bench.calls(generation) == ["call_0_0", "call_0_4"]


def test_a_model_that_never_stops_calling_ends_after_the_rounds_it_has(stack: Stack, bench: Bench) -> None:
    generation = submit(stack, [turn("Again. ", call("more"))], fields={"max_tool_rounds": 3})
    stack.wait_status(generation, "failed")
    log = stack.log(generation)
    check_log(log)
    end = log[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial, end.characters) == ("tool_error", True, len(text_of(log)))
    assert bench.calls(generation) == ["call_0_0", "call_1_0", "call_2_0"]
    assert set(results_of(log)) == set(bench.calls(generation))


@pytest.mark.parametrize(
    "turns",
    [
        [turn("", call("a", id="same")), turn("", call("b", id="same")), turn("", call("c", id="same"))],
        [turn("", call("a", id="same"), call("b", id="same"))],
        [turn("", call("a", id="x"), call("b", id="x_2")), turn("", call("c", id="x"))],
    ],
    ids=["in every turn", "within a turn", "and the new name is taken"],
)
def test_an_id_names_one_call_whatever_the_model_calls_it(stack: Stack, bench: Bench, turns: list[Json]) -> None:
    """Some servers count the calls of each answer anew, and some give all of them one id."""
    generation = submit(stack, [*turns, turn("Done.")])
    stack.wait_status(generation, "completed")
    log = stack.log(generation)
    check_log(log)
    said = sorted(content for content, _ in results_of(log).values())
    count = sum(len(piece["tool_calls"]) for piece in turns)
    assert said == [f"it said {letter}" for letter in "abc"[:count]]
    assert len(set(bench.calls(generation))) == count


def test_calls_that_are_left_to_the_reader_complete_the_generation(stack: Stack, bench: Bench) -> None:
    """`return`, which is the default: nothing runs."""
    turns = [turn("Look: ", call("one"), call("two")), turn("never")]
    generation = stack.submit({"turns": turns}, tools=DECLARED)
    reader = Viewer(stack.urls[0], generation).result()
    assert reader.ended is not None
    assert reader.ended.data["finish_reason"] == "tool_calls"
    assert reader.text == "Look: "
    assert [call["id"] for call in check_shown(stack, generation)["tool_calls"]] == ["call_0_0", "call_0_1"]
    assert not bench.runs(generation)
    results = {"tool_results": [{"tool_call_id": "call_0_0", "content": "x"}]}
    assert stack.post(f"/v1/generations/{generation}/tool_results", results).status == 409


# --- server: a worker is lost ---

#: Two rounds of tools and a last turn, long enough to be cut: 30 chunks each at 60 a second, where a test wants that.
LONG: Final = "Some words that take a while to say, and then some more. " * 2
PACE: Final = 60
#: The first attempt stands still in its first turn that has so many chunks, until its worker is killed.
STALLS: Final = [{"at_token": 16, "kind": "stall", "attempt": 1}]


def kill_holder(stack: Stack, generation: str) -> None:
    """SIGKILL to whoever holds it; somebody else is there."""
    holder = stack.holder(generation)
    holder.kill()
    stack.remove(holder)
    stack.add_worker()


def finished(stack: Stack, bench: Bench, generation: str) -> Log:
    """The log once it has completed; no tool began whose result was known, or that was not announced."""
    stack.wait_status(generation, "completed", "failed", "cancelled", seconds=SECONDS)
    log = stack.log(generation)
    check_log(log)
    assert all(run["announced"] and not run["answered"] for run in bench.runs(generation))
    check_shown(stack, generation)
    return log


def wait_text(stack: Stack, generation: str, length: int) -> None:
    eventually(lambda: len(text_of(stack.log(generation))) >= length, f"{length} characters", seconds=SECONDS)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_worker_lost_in_mid_text_leaves_the_finished_rounds(stack: Stack, bench: Bench, rounds: int) -> None:
    """The turn behind `rounds` whole ones was cut: `reset`, the whole ones once more, and nothing runs twice."""
    turns = [turn("Short. ", call(f"tool {number}", tool="once")) for number in range(rounds)]
    turns += [turn(LONG, call("the last", tool="once")), turn("Done.")]
    whole = "Short. " * rounds + LONG + "Done."
    generation = submit(stack, turns, tokens_per_second=PACE, faults=STALLS)
    viewers = [Viewer(url, generation) for url in stack.urls]
    wait_text(stack, generation, len("Short. " * rounds) + 30)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert [viewer.result().text for viewer in viewers] == [whole, whole]
    assert len(of(Reset, log)) == 1
    assert text_of(log) == whole
    names = [f"call_{number}_0" for number in range(rounds + 1)]
    assert bench.calls(generation) == names
    assert list(results_of(log)) == names
    undisturbed = finished(stack, bench, submit(stack, turns))
    assert log[-1][1] == undisturbed[-1][1], "usage and characters are as if nothing had happened"


def test_a_worker_lost_before_the_next_turn_said_anything_costs_no_reset(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, first_token_ms=3_000)
    viewer = Viewer(stack.urls[0], generation)
    eventually(lambda: of(ToolResult, stack.log(generation)), "the result is stored", seconds=SECONDS)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG
    assert not of(Reset, log)
    assert [event.attempt for event in of(Started, log)] == [1, 2]
    assert bench.calls(generation) == ["call_0_0"]


def test_a_worker_lost_in_the_middle_of_a_call_says_it_anew(stack: Stack, bench: Bench) -> None:
    """The arguments of the second round's call were being streamed."""
    turns = [turn("First. ", call("it", tool="once")), turn("", call(LONG, tool="once")), turn("Done.")]
    generation = submit(stack, turns, tokens_per_second=PACE, faults=STALLS)
    eventually(
        lambda: any(event.index == 1 for event in of(ToolCall, stack.log(generation))),
        "some of it",
        seconds=SECONDS,
    )
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert len(of(Reset, log)) == 1
    assert text_of(log) == "First. Done."
    assert results_of(log)["call_1_0"] == (f"it said {LONG}", False)
    assert bench.calls(generation) == ["call_0_0", "call_1_0"]


def test_a_cut_turn_that_can_be_read_on_is_neither_reset_nor_repeated(stack: Stack, bench: Bench) -> None:
    """The provider resumes: the second turn's text and its call come to their end behind what was shown."""
    turns = [turn("First. ", call("it", tool="once")), turn(LONG, call("two"), call("three")), turn("Done.")]
    generation = submit(stack, turns, tokens_per_second=PACE, resumable=True, faults=STALLS)
    viewer = Viewer(stack.urls[1], generation)
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG + "Done."
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0", "call_1_0", "call_1_1"]


def test_calls_of_one_name_are_told_apart_where_a_cut_turn_is_read_on(stack: Stack, bench: Bench) -> None:
    """Whoever reads on sees the second call alone; the first one has its id already."""
    turns = [turn("Look. ", call("a", id="same"), call(LONG, id="same"), call("c", id="same")), turn("Done.")]
    generation = submit(stack, turns, tokens_per_second=PACE, resumable=True, faults=STALLS)
    eventually(lambda: any(event.index == 1 for event in of(ToolCall, stack.log(generation))), "some", seconds=SECONDS)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert not of(Reset, log)
    assert sorted(content for content, _ in results_of(log).values()) == [
        f"it said {said}" for said in sorted([LONG, "a", "c"])
    ]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["tried again", "asked elsewhere"])
@pytest.mark.parametrize("at_token", [12, 40], ids=["in mid-text", "at its end"])
def test_a_later_turn_that_fails_is_asked_again_with_the_finished_ones(
    stack: Stack, bench: Bench, elsewhere: bool, at_token: int
) -> None:
    """By the next attempt, or at once by another model: no tool runs twice, and the text is whole."""
    turns = [turn("First. ", call("it", tool="once")), turn("x" * 4 * 40)]
    faults = [{"at_token": at_token, "kind": "error", "attempt": 1}]
    other = {"provider": "sim", "model": "sim-2", "provider_options": {"turns": turns}}
    generation = submit(stack, turns, faults=faults, fields={"fallbacks": [other]} if elsewhere else None)
    viewer = Viewer(stack.urls[0], generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + "x" * 160
    assert len(of(Reset, log)) == 1
    assert of(Started, log)[-1].model == ("sim-2" if elsewhere else "sim-1")
    assert bench.calls(generation) == ["call_0_0"]


def test_a_reader_that_is_cut_again_and_again_ends_with_one_text(stack: Stack, bench: Bench) -> None:
    turns = [turn(LONG, call(f"tool {number}"), call("b")) for number in range(4)] + [turn("Done.")]
    generation = submit(stack, turns, tokens_per_second=200)
    draw = random.Random(3)
    reader, connections = follow(stack.urls, generation, cuts=iter(lambda: draw.randint(200, 2_500), None))
    assert reader.text == text_of(finished(stack, bench, generation)) == LONG * 4 + "Done."
    assert connections > 2


def test_continue_goes_on_inside_a_later_turn(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE, faults=STALLS, fields={"recovery": "continue"})
    viewer = Viewer(stack.urls[1], generation)
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0"]


def test_recovery_fail_keeps_the_rounds_that_were_shown(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE, faults=STALLS, fields={"recovery": "fail"})
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    end = log[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial, end.characters) == ("worker_lost", True, len(text_of(log)))
    assert ("First. " + LONG).startswith(text_of(log))
    assert bench.calls(generation) == ["call_0_0"]


def test_a_tool_that_may_run_twice_does_when_its_worker_is_lost(stack: Stack, bench: Bench) -> None:
    """Under the same id; what was shown stays."""
    hold = bench.hold()
    generation = submit(stack, [turn("First. ", call("it", hold=hold)), turn("Done.")])
    viewer = Viewer(stack.urls[0], generation)
    bench.wait_begun(generation, 1)
    kill_holder(stack, generation)
    bench.wait_begun(generation, 2)
    bench.release(hold)
    log = finished(stack, bench, generation)
    assert viewer.result().text == "First. Done."
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0", "call_0_0"]
    assert bench.calls(generation, "ended") == ["call_0_0"]
    assert results_of(log) == {"call_0_0": ("it said it", False)}


def test_a_tool_that_may_not_run_twice_ends_the_generation(stack: Stack, bench: Bench) -> None:
    hold = bench.hold()
    generation = submit(stack, [turn("First. ", call("it", tool="once", hold=hold)), turn("Done.")])
    bench.wait_begun(generation, 1)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    end = log[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial, end.characters) == ("tool_error", True, len("First. "))
    assert text_of(log) == "First. "
    assert bench.calls(generation) == ["call_0_0"]


def test_of_two_tools_only_the_one_that_had_not_finished_runs_again(stack: Stack, bench: Bench) -> None:
    """The worker is lost between their results: the finished one may not even run twice."""
    hold = bench.hold()
    generation = submit(stack, [turn("", call("a", tool="once"), call("b", hold=hold)), turn("Done.")])
    bench.wait_begun(generation, 2)
    eventually(lambda: of(ToolResult, stack.log(generation)), "the first result", seconds=SECONDS)
    check_shown(stack, generation)
    kill_holder(stack, generation)
    bench.wait_begun(generation, 3)
    bench.release(hold)
    log = finished(stack, bench, generation)
    assert text_of(log) == "Done."
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0", "call_0_1", "call_0_1"]
    assert results_of(log) == {"call_0_0": ("it said a", False), "call_0_1": ("it said b", False)}


def test_two_workers_lost_in_two_turns_cost_two_resets_and_no_tool(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("a", tool="once")), turn(LONG, call("b", tool="once")), turn(LONG * 2)]
    # The second turn in the first attempt, the third one, which alone has so many chunks, in the second.
    faults = [*STALLS, {"at_token": 40, "kind": "stall", "attempt": 2}]
    generation = submit(stack, turns, tokens_per_second=PACE, faults=faults)
    viewer = Viewer(stack.urls[0], generation)
    wait_text(stack, generation, 40)
    kill_holder(stack, generation)
    eventually(lambda: len(results_of(stack.log(generation))) == 2, "the second tool's result", seconds=SECONDS)
    wait_text(stack, generation, len("First. " + LONG) + 20)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG + LONG * 2
    assert len(of(Reset, log)) == 2
    assert bench.calls(generation) == ["call_0_0", "call_1_0"]


def test_workers_lost_anywhere_at_all_leave_a_whole_text(stack: Stack, bench: Bench) -> None:
    """Many generations, and workers killed at random: each ends whole, and no tool runs whose result is known."""
    draw = random.Random(7)
    rounds = 4
    turns = [turn(f"Turn {number}, with words. ", call("a"), call("b")) for number in range(rounds)] + [turn("Done.")]
    whole = "".join(piece["text"] for piece in turns)
    generations = [
        submit(stack, turns, tokens_per_second=30, resumable=number % 3 == 0, fields={"max_attempts": 20})
        for number in range(12)
    ]
    for _ in range(4):
        time.sleep(draw.uniform(0.3, 1.5))
        victim = draw.choice(stack.workers)
        victim.kill()
        stack.remove(victim)
        stack.add_worker()
    for generation in generations:
        log = finished(stack, bench, generation)
        assert isinstance(log[-1][1], Completed)
        assert text_of(log) == whole
        assert len(results_of(log)) == 2 * rounds


# --- server: cancel and drain ---


@pytest.mark.parametrize("tool", ["once", "again"])
def test_a_cancel_stops_a_tool_that_runs(stack: Stack, bench: Bench, tool: str) -> None:
    generation = submit(stack, [turn("First. ", call("it", tool=tool, hold=bench.hold())), turn("Done.")])
    viewer = Viewer(stack.urls[1], generation)
    bench.wait_begun(generation, 1)
    assert stack.post(f"/v1/generations/{generation}/cancel").status == 202
    reader = viewer.result()
    assert reader.ended is not None
    assert (reader.ended.event, reader.ended.data["reason"]) == ("cancelled", "user")
    eventually(lambda: bench.calls(generation, "stopped"), "the tool is stopped")
    log = stack.log(generation)
    check_log(log)
    assert log[-1][1].usage is not None  # type: ignore[union-attr]
    assert not bench.calls(generation, "ended")
    assert check_shown(stack, generation)["status"] == "cancelled"


@pytest.mark.parametrize(("tool", "end"), [("again", "completed"), ("once", "failed")])
def test_a_leaving_worker_hands_a_running_tool_over(stack: Stack, bench: Bench, tool: str, end: str) -> None:
    """SIGTERM: after its time to drain the tool is stopped; the next worker runs it again only if it may."""
    hold = bench.hold()
    generation = submit(stack, [turn("First. ", call("it", tool=tool, hold=hold)), turn("Done.")])
    bench.wait_begun(generation, 1)
    holder = stack.holder(generation)
    holder.terminate()
    assert holder.wait() == 0
    bench.release(hold)
    log = finished(stack, bench, generation)
    assert stack.status(generation) == end
    assert bench.calls(generation, "stopped") == ["call_0_0"]
    assert len(bench.runs(generation)) == (2 if end == "completed" else 1)
    assert {event.attempt for event in of(Started, log)} == {1}, "a hand-over burns no attempt"


def test_a_tool_that_ends_while_its_worker_drains_is_not_run_again(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE)
    eventually(lambda: bench.runs(generation), "the tool has begun", seconds=SECONDS)
    holder = stack.holder(generation)
    holder.terminate()
    assert holder.wait() == 0
    log = finished(stack, bench, generation)
    assert text_of(log) == "First. " + LONG
    assert bench.calls(generation) == ["call_0_0"]


# --- server: what the model is told ---


@pytest_asyncio.fixture
async def wire() -> AsyncIterator[WireProvider]:
    async with WireProvider() as server:
        yield server


@pytest_asyncio.fixture
async def wired(redis_url: str, tmp_path: Path, wire: WireProvider, bench: Bench) -> AsyncIterator[Stack]:
    """One API and one worker, over a scripted provider."""
    environment = bench.environment | {
        "LEGATO_PROVIDERS": "openai,anthropic",
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": wire.openai_url,
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "ANTHROPIC_BASE_URL": wire.url,
    }
    stack = await asyncio.to_thread(Stack.start, redis_url, tmp_path, environment=environment)
    yield stack
    await asyncio.to_thread(stack.close)


async def ask(stack: Stack, provider: str, *, mode: str = "server") -> str:
    """Submit a job to a scripted provider; its id."""
    messages = [{"role": "user", "content": "Go on."}]
    body = {"provider": provider, "model": "m", "messages": messages, "tools": DECLARED, "tool_mode": mode}
    answer = await asyncio.to_thread(stack.post, "/v1/generations", body)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def openai_calls(*calls: tuple[str, str, Json]) -> list[list[Json]]:
    """Id, name and arguments of each call, one chunk a call."""
    return [
        [
            {
                "index": number,
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
        ]
        for number, (call_id, name, arguments) in enumerate(calls)
    ]


CALLS: Final = (("c1", "again", {"say": "one"}), ("c2", "once", {"say": "no luck", "fail": True}))


async def test_openai_is_given_the_turn_and_its_results(wired: Stack, wire: WireProvider) -> None:
    wire.script(
        Reply.events(openai_stream("I ", "look.", tool_calls=openai_calls(*CALLS), finish_reason="tool_calls")),
        Reply.events(openai_stream("Done.")),
    )
    generation = await ask(wired, "openai")
    reader, _ = await asyncio.to_thread(follow, wired.urls, generation)
    assert reader.text == "I look.Done."
    first, second = (received.body["messages"] for received in wire.requests)
    assert second[: len(first)] == first
    assistant, *results = second[len(first) :]
    assert (assistant["role"], assistant["content"]) == ("assistant", "I look.")
    functions = [(called["id"], called["function"]["name"]) for called in assistant["tool_calls"]]
    assert functions == [("c1", "again"), ("c2", "once")]
    assert [json.loads(called["function"]["arguments"]) for called in assistant["tool_calls"]] == [
        arguments for *_, arguments in CALLS
    ]
    told = {result["tool_call_id"]: result["content"] for result in results}
    assert told == {"c1": "it said one", "c2": "no luck"}
    assert {result["role"] for result in results} == {"tool"}


def anthropic_results(body: Json) -> dict[str, Json]:
    """The results in the last message, by the id of their call."""
    message = body["messages"][-1]
    assert message["role"] == "user"
    return {block["tool_use_id"]: block for block in message["content"] if block["type"] == "tool_result"}


async def test_anthropic_is_given_the_turn_with_its_thinking_and_which_results_are_errors(
    wired: Stack, wire: WireProvider
) -> None:
    tools = [(call_id, name, [json.dumps(arguments)]) for call_id, name, arguments in CALLS]
    wire.script(
        Reply.events(anthropic_stream("I look.", thinking=["Hm."], tools=tools, stop_reason="tool_use")),
        Reply.events(anthropic_stream("Done.")),
    )
    generation = await ask(wired, "anthropic")
    reader, _ = await asyncio.to_thread(follow, wired.urls, generation)
    assert reader.text == "I look.Done."
    _, second = (received.body for received in wire.requests)
    assistant = second["messages"][-2]
    assert [block["type"] for block in assistant["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert assistant["content"][0]["signature"] == "c2ln"
    assert [block["input"] for block in assistant["content"][2:]] == [arguments for *_, arguments in CALLS]
    results = anthropic_results(second)
    assert sorted(results) == ["c1", "c2"]
    assert not results["c1"].get("is_error")
    assert results["c2"].get("is_error") is True


async def test_anthropic_is_told_which_results_of_the_client_are_errors(wired: Stack, wire: WireProvider) -> None:
    wire.script(
        Reply.events(anthropic_stream(tools=[("c1", "once", ["{}"])], stop_reason="tool_use")),
        Reply.events(anthropic_stream("Done.")),
    )
    generation = await ask(wired, "anthropic", mode="interactive")
    await asyncio.to_thread(wired.wait_status, generation, "waiting_for_tools")
    body = {"tool_results": [{"tool_call_id": "c1", "content": "it broke", "is_error": True}]}
    answer = await asyncio.to_thread(wired.post, f"/v1/generations/{generation}/tool_results", body)
    assert answer.status == 202
    await asyncio.to_thread(follow, wired.urls, generation)
    assert anthropic_results(wire.requests[-1].body)["c1"].get("is_error") is True


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_the_next_worker_asks_with_the_finished_turns(wired: Stack, wire: WireProvider, provider: str) -> None:
    """The worker is lost while the second turn is said: the third request is the second one again."""
    if provider == "openai":
        first = openai_stream("I look.", tool_calls=openai_calls(*CALLS), finish_reason="tool_calls")
        second = openai_stream("Half a ", "word.")
    else:
        tools = [(call_id, name, [json.dumps(arguments)]) for call_id, name, arguments in CALLS]
        first = anthropic_stream("I look.", thinking=["Hm."], tools=tools, stop_reason="tool_use")
        second = anthropic_stream("Half a ", "word.")
    head, _, _ = second.partition(b"word.")
    cut = head[: head.rindex(b"\n\n") + 2]
    wire.script(Reply.events(first), Reply(actions=(Send(cut), Pause(asyncio.Event()))), Reply.events(second))
    generation = await ask(wired, provider)
    await asyncio.to_thread(wait_text, wired, generation, len("I look.Half a "))
    await asyncio.to_thread(kill_holder, wired, generation)
    reader, _ = await asyncio.to_thread(follow, wired.urls, generation)
    assert reader.text == "I look.Half a word."
    assert len(wire.requests) == 3
    assert wire.requests[2].body == wire.requests[1].body


# --- interactive: the client runs the tools ---


def results_body(results: Mapping[str, object], **more: object) -> Json:
    return {"tool_results": [{"tool_call_id": name, "content": said, **more} for name, said in results.items()]}


def give(
    stack: Stack, generation: str, results: Mapping[str, object], *, api: int = 0, **more: object
) -> tuple[int, Json]:
    """Post results; status and answer."""
    body = json.dumps(results_body(results, **more)).encode()
    answer = request(stack.urls[api], "POST", f"/v1/generations/{generation}/tool_results", body=body)
    return answer.status, answer.json()


def asked(stack: Stack, turns: Sequence[Json], *, fields: Json | None = None, **sim: Any) -> str:
    """A generation that waits for the client."""
    generation = submit(stack, turns, mode="interactive", fields=fields, **sim)
    stack.wait_status(generation, "waiting_for_tools")
    return generation


PAIR: Final = [turn("I look. ", call("a"), call("b")), turn("And " + "on. ", call("c")), turn("Done.")]


def test_the_client_runs_the_tools_and_the_same_stream_goes_on(stack: Stack, bench: Bench) -> None:
    """A reader that is attached all the time sees one text, the calls, its own results, and one end."""
    generation = submit(stack, PAIR, mode="interactive", fields={"tool_timeout_seconds": 120})
    viewer = Viewer(stack.urls[1], generation)
    stack.wait_status(generation, "waiting_for_tools")
    log = stack.log(generation)
    assert log[-1][1] == Status(
        phase="waiting_for_tools",
        detail={
            "calls": [{"id": "call_0_0", "name": "again"}, {"id": "call_0_1", "name": "again"}],
            "timeout_seconds": 120,
        },
    )
    answer = check_shown(stack, generation)
    assert (answer["status"], answer["finish_reason"], answer["ended_at"]) == ("waiting_for_tools", None, None)
    assert give(stack, generation, {"call_0_0": "A", "call_0_1": {"b": [1]}}) == (
        202,
        {"id": generation, "object": "generation", "accepted": 2, "owed": 0},
    )
    eventually(lambda: len(of(Status, stack.log(generation))) == 2, "it asks again", seconds=SECONDS)
    stack.wait_status(generation, "waiting_for_tools")
    assert [result["id"] for result in check_shown(stack, generation)["tool_results"]] == ["call_0_0", "call_0_1"]
    assert give(stack, generation, {"call_1_0": "C"}, api=1)[0] == 202
    reader = viewer.result()
    assert reader.text == "I look. And on. Done."
    log = finished(stack, bench, generation)
    assert results_of(log) == {"call_0_0": ("A", False), "call_0_1": ('{"b":[1]}', False), "call_1_0": ("C", False)}
    assert {event.attempt for event in of(Started, log)} == {1}
    assert not bench.runs(generation), "the worker runs none of them"


def test_a_worker_has_its_place_free_while_the_client_is_waited_for(redis_url: str, tmp_path: Path) -> None:
    environment = {"LEGATO_WORKER_CONCURRENCY": "1"}
    with Stack.start(redis_url, tmp_path, apis=1, workers=1, environment=environment) as stack:
        waiting = asked(stack, PAIR[1:])
        other = stack.submit({"text": "Meanwhile."})
        stack.wait_status(other, "completed")
        assert stack.status(waiting) == "waiting_for_tools"
        assert give(stack, waiting, {"call_0_0": "x"})[0] == 202
        stack.wait_status(waiting, "completed")


def test_another_worker_goes_on_where_the_first_one_asked(stack: Stack, bench: Bench) -> None:
    """The worker that asked is killed while nobody needs it. No take-over: nothing is reset, no attempt is used."""
    generation = asked(stack, PAIR)
    viewer = Viewer(stack.urls[0], generation)
    kill_holder(stack, generation)
    assert give(stack, generation, {"call_0_0": "A", "call_0_1": "B"})[0] == 202
    eventually(lambda: len(of(Status, stack.log(generation))) == 2, "it asks again", seconds=SECONDS)
    stack.wait_status(generation, "waiting_for_tools")
    assert give(stack, generation, {"call_1_0": "C"})[0] == 202
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "I look. And on. Done."
    assert not of(Reset, log)
    assert {event.attempt for event in of(Started, log)} == {1}


def test_a_worker_lost_as_it_asks_loses_no_result(stack: Stack, bench: Bench) -> None:
    """It is stopped as soon as a reader has the question, maybe before it gave its lease back, and never wakes."""
    generation = submit(stack, PAIR[1:], mode="interactive")
    with open_stream(stack.urls[0], generation) as stream:
        reader = Reader()
        for frame in stream.frames():
            reader.take(frame)
            if frame.event == "status":
                holder = stack.holder(generation)
                holder.pause()
                assert give(stack, generation, {"call_0_0": "C"})[0] == 202
                holder.kill()
    assert reader.text == "And on. Done."
    log = finished(stack, bench, generation)
    assert results_of(log) == {"call_0_0": ("C", False)}
    assert not of(Reset, log)


def test_a_later_turn_that_is_cut_does_not_ask_the_client_again(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("a"), call("b")), turn(LONG)]
    generation = asked(stack, turns, tokens_per_second=PACE, faults=STALLS)
    viewer = Viewer(stack.urls[1], generation)
    assert give(stack, generation, {"call_0_0": "A", "call_0_1": "B"})[0] == 202
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG
    assert len(of(Reset, log)) == 1
    assert results_of(log) == {"call_0_0": ("A", False), "call_0_1": ("B", False)}
    assert sum(event.phase == "waiting_for_tools" for event in of(Status, log)) == 1


def test_results_may_come_one_by_one_and_the_first_one_counts(stack: Stack, bench: Bench) -> None:
    generation = asked(stack, [turn("", call("a"), call("b"), call("c")), turn("Done.")])
    a, b, c = (f"call_0_{number}" for number in range(3))
    assert give(stack, generation, {b: "B"}) == (
        202,
        {"id": generation, "object": "generation", "accepted": 1, "owed": 2},
    )
    assert give(stack, generation, {b: "B"}, api=1)[0] == 200
    status, problem = give(stack, generation, {b: "another"})
    assert (status, problem["code"]) == (409, "result_conflict")
    assert give(stack, generation, {b: "B"}, is_error=True)[0] == 409, "a failure is another result"
    status, problem = give(stack, generation, {a: "A", "nobody_asked": "x"})
    assert (status, problem["errors"][0]["field"]) == (422, "tool_results.1.tool_call_id")
    assert give(stack, generation, {a: "A", b: "another"})[0] == 409
    assert stack.status(generation) == "waiting_for_tools"
    assert give(stack, generation, {a: "its first", b: "B"}) == (
        202,
        {"id": generation, "object": "generation", "accepted": 1, "owed": 1},
    ), "nothing was stored of what was refused"
    assert give(stack, generation, {c: ""})[1]["owed"] == 0
    log = finished(stack, bench, generation)
    assert results_of(log) == {a: ("its first", False), b: ("B", False), c: ("", False)}
    assert give(stack, generation, {a: "its first", b: "B", c: ""})[0] == 200, "also after the end"
    status, problem = give(stack, generation, {a: "another"})
    assert (status, problem["code"]) == (409, "result_conflict")
    assert give(stack, generation, {"nobody_asked": "x"})[0] == 409
    assert stack.log(generation) == log


def test_of_two_clients_that_answer_at_once_one_is_refused(stack: Stack, bench: Bench) -> None:
    generations = [asked(stack, [turn("", call("a")), turn("Done.")]) for _ in range(8)]
    with ThreadPoolExecutor(2) as pair:
        for generation in generations:
            posts = [pair.submit(give, stack, generation, {"call_0_0": f"of client {api}"}, api=api) for api in (0, 1)]
            statuses = [post.result()[0] for post in posts]
            assert sorted(statuses) == [202, 409]
            [(said, _)] = results_of(finished(stack, bench, generation)).values()
            assert said == f"of client {statuses.index(202)}"


def test_a_client_that_answers_at_once_is_never_refused_and_never_lost(stack: Stack) -> None:
    """Results are posted at the very moment of the question, many times over, before or after the lease is back."""
    rounds = 24
    turns = [turn(f"{number} ", call("a"), call("b")) for number in range(rounds)] + [turn("Done.")]
    generations = [submit(stack, turns, mode="interactive", fields={"max_tool_rounds": 64}) for _ in range(6)]

    def answer(number: int) -> Reader:
        generation, reader = generations[number], Reader()
        with open_stream(stack.urls[number % 2], generation) as stream:
            for frame in stream.frames():
                reader.take(frame)
                if frame.event == "status":
                    for part in (frame.data["calls"][:1], frame.data["calls"][1:]):
                        given = {named["id"]: named["id"] for named in part}
                        status, said = give(stack, generation, given, api=(number + 1) % 2)
                        assert status == 202, said
        return reader

    pool = ThreadPoolExecutor(len(generations))
    answering = [pool.submit(answer, number) for number in range(len(generations))]
    pool.shutdown(wait=False)
    for generation, done in zip(generations, answering, strict=True):
        reader = done.result(SECONDS)
        assert reader.text == "".join(piece["text"] for piece in turns)
        log = stack.log(generation)
        check_log(log)
        assert results_of(log) == {f"call_{n}_{m}": (f"call_{n}_{m}", False) for n in range(rounds) for m in (0, 1)}


@pytest.mark.parametrize("given", [{}, {"call_0_1": "B"}], ids=["nothing", "one of two"])
def test_a_client_that_gives_no_results_in_time_fails_the_generation(
    stack: Stack, bench: Bench, given: Mapping[str, str]
) -> None:
    turns = [turn("First. ", call("a"), call("b")), turn("never")]
    generation = asked(stack, turns, fields={"tool_timeout_seconds": 5})
    assert not given or give(stack, generation, given)[0] == 202
    log = finished(stack, bench, generation)
    end = log[-1][1]
    assert isinstance(end, Failed)
    assert (end.code.value, end.partial, end.characters) == ("tool_error", True, len("First. "))
    assert give(stack, generation, {"call_0_0": "late"})[0] == 409


def test_a_generation_that_waits_for_its_client_has_no_more_time_than_any_other(stack: Stack, bench: Bench) -> None:
    """`timeout_seconds` is of the whole: it ends then, though the client might have had longer."""
    turns = [turn("First. ", call("a")), turn("never")]
    generation = asked(stack, turns, fields={"timeout_seconds": 6, "tool_timeout_seconds": 3_600})
    end = finished(stack, bench, generation)[-1][1]
    assert isinstance(end, Failed)
    assert end.code.value == "timeout"


def test_a_client_that_is_asked_for_too_many_rounds_sees_it_fail(stack: Stack, bench: Bench) -> None:
    generation = asked(stack, [turn("", call("a"))], fields={"max_tool_rounds": 1})
    assert give(stack, generation, {"call_0_0": "A"})[0] == 202
    end = finished(stack, bench, generation)[-1][1]
    assert isinstance(end, Failed)
    assert end.code.value == "tool_error"


def test_a_cancel_ends_a_waiting_generation_at_once(stack: Stack, bench: Bench) -> None:
    generation = asked(stack, PAIR)
    viewer = Viewer(stack.urls[1], generation)
    answer = stack.post(f"/v1/generations/{generation}/cancel")
    assert (answer.status, answer.json()["status"]) == (202, "cancelled")
    reader = viewer.result()
    assert reader.ended is not None
    assert (reader.ended.event, reader.text) == ("cancelled", "I look. ")
    status, problem = give(stack, generation, {"call_0_0": "A"})
    assert (status, problem["code"]) == (409, "not_waiting_for_tools")
    assert isinstance(finished(stack, bench, generation)[-1][1], Cancelled)


def test_of_a_cancel_and_the_last_result_the_cancel_wins_once_it_is_accepted(stack: Stack, bench: Bench) -> None:
    """Both at once, many times over: after a 202 it is `cancelled`, whatever the results were told."""
    turns = [turn("First. ", call("a")), turn(LONG)]
    generations = [asked(stack, turns, tokens_per_second=PACE) for _ in range(12)]
    with ThreadPoolExecutor(2) as pair:
        for generation in generations:
            path = f"/v1/generations/{generation}/cancel"
            cancelling = pair.submit(request, stack.urls[1], "POST", path, body=b"")
            giving = pair.submit(give, stack, generation, {"call_0_0": "A"})
            assert cancelling.result().status == 202
            assert giving.result()[0] in (202, 409)
    for generation in generations:
        assert isinstance(finished(stack, bench, generation)[-1][1], Cancelled)


def test_a_waiting_generation_that_is_deleted_is_gone(stack: Stack) -> None:
    generation = asked(stack, PAIR)
    viewer = Viewer(stack.urls[1], generation)
    assert stack.delete(f"/v1/generations/{generation}").status == 204
    reader = viewer.result()
    assert reader.ended is not None
    assert reader.ended.data["reason"] == "deleted"
    status, problem = give(stack, generation, {"call_0_0": "A"})
    assert status == 410, problem
    assert not stack.log(generation)


def test_results_that_nobody_waits_for_are_refused(stack: Stack) -> None:
    assert give(stack, "gen_" + "0" * 32, {"x": "y"})[0] == 404
    assert give(stack, "no-id", {"x": "y"})[0] == 404
    running = stack.submit({"tokens": 500, "tokens_per_second": 50})
    stack.wait_status(running, "running")
    status, problem = give(stack, running, {"x": "y"})
    assert (status, problem["code"]) == (409, "not_waiting_for_tools")
    stack.post(f"/v1/generations/{running}/cancel")


ONE: Final = {"tool_call_id": "call_0_0", "content": "A"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 422, "(body)"),
        (b"{}", 422, "tool_results"),
        (b'{"tool_results": []}', 422, "tool_results"),
        (b'{"tool_results": {}}', 422, "tool_results"),
        (b'{"tool_results": [7]}', 422, "tool_results.0"),
        (b'{"tool_results": [{"content": "A"}]}', 422, "tool_results.0.tool_call_id"),
        (b'{"tool_results": [{"tool_call_id": "", "content": "A"}]}', 422, "tool_results.0.tool_call_id"),
        (b'{"tool_results": [{"tool_call_id": 7, "content": "A"}]}', 422, "tool_results.0.tool_call_id"),
        (b'{"tool_results": [{"tool_call_id": "call_0_0"}]}', 422, "tool_results.0.content"),
        (json.dumps({"tool_results": [ONE | {"is_error": "no"}]}).encode(), 422, "tool_results.0.is_error"),
        (json.dumps({"tool_results": [ONE | {"more": 1}]}).encode(), 422, "tool_results.0.more"),
        (json.dumps({"tool_results": [ONE, ONE]}).encode(), 422, "tool_results.1.tool_call_id"),
        (json.dumps({"tool_results": [ONE], "more": 1}).encode(), 422, "more"),
        (b'{"tool_results": [{"tool_call_id": "call_0_0", "content": ' + b"[" * 100 + b"]" * 100 + b"}]}", 422, None),
    ],
)
def test_results_of_the_wrong_shape_are_refused_and_named(
    stack: Stack, waiting: str, body: bytes, status: int, field: str | None
) -> None:
    answer = request(stack.urls[0], "POST", f"/v1/generations/{waiting}/tool_results", body=body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    if field is not None:
        assert [item["field"] for item in answer.json()["errors"]] == [field]
    assert stack.status(waiting) == "waiting_for_tools"


@pytest.fixture(scope="module")
def waiting(deployment: Stack) -> str:
    """One that nobody answers."""
    return asked(deployment, PAIR)


def test_results_are_taken_once_the_store_is_back(tmp_path: Path) -> None:
    """503 while it is away, nothing half stored, and the same post again goes through."""
    with (
        EmbeddedServer.start(tmp_path / "store", port=free_port()) as server,
        Stack.start(server.url, tmp_path, apis=1, workers=1) as stack,
    ):
        generation = asked(stack, PAIR[1:])
        server.kill()
        status, problem = give(stack, generation, {"call_0_0": "C"})
        assert (status, problem["code"]) == (503, "store_unavailable")
        server.restart()
        eventually(lambda: give(stack, generation, {"call_0_0": "C"})[0] != 503, "it is taken", seconds=SECONDS)
        assert give(stack, generation, {"call_0_0": "C"})[0] == 200
        stack.wait_status(generation, "completed", seconds=SECONDS)
        assert results_of(stack.log(generation)) == {"call_0_0": ("C", False)}


# --- interactive: between two steps of a worker ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A worker in this process, and what it works on."""

    records: Records
    queue: Queue
    calls: Calls
    log: BrokerLog
    leases: Leases

    async def submitted(self, *turns: Json, mode: ToolMode = ToolMode.INTERACTIVE) -> str:
        """The id of a generation that will wait for its client, or run its tools."""
        request = Request(
            provider="sim",
            model="sim-1",
            messages=[{"role": "user", "content": "Say something."}],
            tools=DECLARED,
            tool_mode=mode,
            provider_options={"turns": list(turns) or [turn("", call("a")), turn("Done.")]},
        )
        return (await self.records.submit("acme", request)).id

    async def give(self, generation: str) -> None:
        """Give the result that it waits for."""
        record = await self.records.get("acme", generation)
        await self.calls.give(record, [CallResult(call="call_0_0", content="A", is_error=False)])

    async def reached(self, generation: str, *states: str) -> None:
        """Wait until it is in one of these states."""
        async with asyncio.timeout(SECONDS):
            while (await self.records.get("acme", generation)).state.value not in states:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def working(store: Store, tools: Sequence[Tool] = ()) -> AsyncIterator[None]:
    """A worker is at work."""
    worker = Worker(store, providers={"sim": SimProvider()}, tools=Tools(tools), settings=store.settings)
    running = asyncio.create_task(worker.run())
    yield
    worker.drain()
    await running


@pytest_asyncio.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[Store]:
    # One place: whoever holds it takes no hint meanwhile.
    store = Store(redis_url, Settings(prefix=prefix, lease_seconds=1, drain_seconds=0, worker_concurrency=1))
    yield store
    await store.aclose()


@pytest.fixture
def inside(store: Store) -> Inside:
    queue = Queue(store)
    return Inside(
        records=Records(store, queue),
        queue=queue,
        calls=Calls(store, queue),
        log=BrokerLog(store),
        leases=Leases(store),
    )


async def test_results_between_the_pause_and_the_hint_s_delay_are_not_lost(
    inside: Inside, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is back and its worker has not yet said when to look again: the results say `now`, and it is now."""
    pause, given = Leases.pause, asyncio.Event()

    async def paused(self: Leases, lease: Lease, *, seconds: float) -> Paused | str:
        answer = await pause(self, lease, seconds=seconds)
        if not given.is_set():
            given.set()
            await inside.give(lease.generation)
        return answer

    monkeypatch.setattr(Leases, "pause", paused)
    async with working(store):
        generation = await inside.submitted()
        await given.wait()
        await inside.reached(generation, "completed")


async def test_results_between_a_look_and_the_hint_s_delay_are_not_lost(
    inside: Inside, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker looks at a generation that waits for its client, and learns that there is time. Then there is none."""
    async with working(store):
        generation = await inside.submitted()
        await inside.reached(generation, "waiting_for_tools")
        claim, given = Leases.claim, asyncio.Event()

        async def claimed(self: Leases, generation: str, *, owner: str, replacing: Lease | None = None) -> ClaimAnswer:
            answer = await claim(self, generation, owner=owner, replacing=replacing)
            if not given.is_set():
                given.set()
                await inside.give(generation)
            return answer

        monkeypatch.setattr(Leases, "claim", claimed)
        record = await inside.records.get("acme", generation)
        await inside.queue.look_again([Hint(record.id, record.tenant, record.priority)], 0)
        await given.wait()
        await inside.reached(generation, "completed")


class Counting:
    """A tool that may not run twice."""

    name = "once"
    idempotent = False

    def __init__(self) -> None:
        self.runs: list[str] = []

    async def run(self, arguments: Json, *, call_id: str) -> str:
        self.runs.append(call_id)
        return f"it said {arguments['say']}"


async def test_a_tool_runs_only_when_the_store_has_it_that_it_will(
    inside: Inside, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the store takes: else a worker could be lost in a tool of which nobody knows."""
    append, tool = BrokerLog.append, Counting()

    async def slowly(
        self: BrokerLog, generation: str, epoch: int, owner: str, prev: str, entries: list[Entry], *notes: Any
    ) -> AppendAnswer:
        for _ in range(100 * any(entry.field == b"status" for entry in entries)):
            await asyncio.sleep(0)
        ran = len(tool.runs)
        answer = await append(self, generation, epoch, owner, prev, entries, *notes)
        assert not ran or not any(entry.field == b"status" for entry in entries)
        return answer

    monkeypatch.setattr(BrokerLog, "append", slowly)
    async with working(store, [tool]):
        turns = [turn("", call("a", tool="once")), turn("Done.")]
        generation = await inside.submitted(*turns, mode=ToolMode.SERVER)
        await inside.reached(generation, "completed")
    assert tool.runs == [f"{generation}:call_0_0"]


@pytest.mark.parametrize("kept", range(11))
async def test_a_worker_lost_while_it_logs_finished_turns_anew_loses_none(
    inside: Inside, store: Store, kept: int
) -> None:
    """They can be more than one append holds. Here a worker of two appends stored the first alone, of any size."""
    turns = [turn("One. ", call("a", tool="once")), turn("Two. ", call("b", tool="once")), turn("Three.")]
    generation = await inside.submitted(*turns, mode=ToolMode.SERVER)
    lease = await inside.leases.claim(generation, owner=new_owner())
    assert isinstance(lease, Lease)
    usage = UsageReport(usage=Usage(input_tokens=3, output_tokens=7))
    begun = Started(attempt=1, provider="sim", model="sim-1")
    finished_turns: list[Event] = []
    for number, said in enumerate("ab"):
        whole = ToolCallDone(index=number, id=f"call_{number}_0", name="once", arguments=f'{{"say":"{said}"}}')
        finished_turns += [
            Delta(text=turns[number]["text"]),
            ToolCall(index=number, id=whole.id, name=whole.name, arguments=whole.arguments),
            whole,
            Status(phase="running_tool", detail={"id": whole.id, "name": whole.name}),
            ToolResult(id=whole.id, name=whole.name, content=f"it said {said}", is_error=False),
        ]
    lost = [begun, *finished_turns[:3], usage, *finished_turns[3:], Delta(text="Thr")]
    anew = [Reset(attempt=1, reason="upstream_error"), begun, *finished_turns[:kept]]
    entries = [Entry(f"{at}-{lease.epoch}", *encode(event)) for at, event in enumerate([*lost, *anew], 1)]
    assert isinstance(await inside.log.append(generation, lease.epoch, lease.owner, BEGINNING, entries), Appended)
    tool = Counting()
    async with working(store, [tool]):
        await inside.reached(generation, "completed", "failed")
    log = [(entry.position, decode(entry)) for entry in await inside.log.read_all(generation)]
    check_log(log)
    assert isinstance(log[-1][1], Completed)
    assert text_of(log) == "One. Two. Three."
    assert list(results_of(log)) == ["call_0_0", "call_1_0"]
    assert not tool.runs

"""Tools between the model's turns, on real processes: run by a worker, or by the client while the generation waits.

The tools of these tests write down each time they are run, with what the log said at that moment, and wait for a file
where a call names one. So a test kills, cancels and drains at the place it means, and counts what ran.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio
import redis

from broker.calls import CallResult, Calls
from broker.embedded import EmbeddedServer
from broker.events import (
    Cancelled,
    Completed,
    Delta,
    Event,
    Failed,
    Reset,
    Started,
    Status,
    ToolCall,
    ToolCallDone,
    ToolResult,
    UsageReport,
)
from broker.generation import Request, ToolMode
from broker.keys import Keys
from broker.lease import ClaimAnswer, Lease, Leases, Paused
from broker.queue import Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from tests.support.servers import free_port
from tests.support.sse_client import Ending, Frame, Reader, follow, open_stream, request
from tests.support.stack import Stack, eventually
from tests.support.wire_provider import Reply, WireProvider, anthropic_stream, openai_stream
from worker.providers.sim import SimProvider
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
    """Dense; epochs never fall; one terminal event, the last; whole calls, counted from 0, each with an id of its own and
    at most one result."""
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
    log = stack.log(generation)
    answer: Json = stack.get(f"/v1/generations/{generation}").json()
    calls = [{"index": c.index, "id": c.id, "name": c.name, "arguments": c.arguments} for c in of(ToolCallDone, shown(log))]
    results = [
        {"id": r.id, "name": r.name, "content": r.content, "is_error": r.is_error} for r in of(ToolResult, shown(log))
    ]
    assert answer["text"] == text_of(log)
    assert answer["tool_calls"] == calls
    assert answer.get("tool_results", []) == results
    with open_stream(stack.urls[-1], generation, query="from=snapshot") as stream:
        frames = stream.frames()
        frame = next(frame for frame in frames if frame.event in ("snapshot", "completed", "failed", "cancelled"))
    if frame.event == "snapshot":
        for name in ("text", "tool_calls", "tool_results", "status"):
            assert frame.data.get(name) == answer.get(name), name
    return answer


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
    generation = submit(stack, turns, tokens_per_second=PACE)
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


def test_a_worker_lost_before_the_next_turn_said_anything_costs_no_reset(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, first_token_ms=1_500)
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
    generation = submit(stack, turns, tokens_per_second=PACE)
    eventually(
        lambda: sum(event.index == 1 for event in of(ToolCall, stack.log(generation))) > 5, "some of it", seconds=SECONDS
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
    generation = submit(stack, turns, tokens_per_second=PACE, resumable=True)
    viewer = Viewer(stack.urls[1], generation)
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG + "Done."
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0", "call_1_0", "call_1_1"]


def test_continue_goes_on_inside_a_later_turn(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE, fields={"recovery": "continue"})
    viewer = Viewer(stack.urls[1], generation)
    wait_text(stack, generation, 60)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG
    assert not of(Reset, log)
    assert bench.calls(generation) == ["call_0_0"]


def test_recovery_fail_keeps_the_rounds_that_were_shown(stack: Stack, bench: Bench) -> None:
    turns = [turn("First. ", call("it", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE, fields={"recovery": "fail"})
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
    turns = [turn("First. ", call("a", tool="once")), turn(LONG, call("b", tool="once")), turn(LONG)]
    generation = submit(stack, turns, tokens_per_second=PACE)
    viewer = Viewer(stack.urls[0], generation)
    wait_text(stack, generation, 40)
    kill_holder(stack, generation)
    eventually(lambda: len(results_of(stack.log(generation))) == 2, "the second tool's result", seconds=SECONDS)
    wait_text(stack, generation, len("First. " + LONG) + 20)
    kill_holder(stack, generation)
    log = finished(stack, bench, generation)
    assert viewer.result().text == text_of(log) == "First. " + LONG + LONG
    assert len(of(Reset, log)) == 2
    assert bench.calls(generation) == ["call_0_0", "call_1_0"]


def test_workers_lost_anywhere_at_all_leave_a_whole_text(stack: Stack, bench: Bench) -> None:
    """Many generations at once, and workers killed at random: each ends whole, and no tool runs whose result is known."""
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

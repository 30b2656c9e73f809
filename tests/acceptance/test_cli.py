"""The client commands and the demo, as a user runs them: real processes against `legato dev`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.bad_reader import BadReader, Reading, plan
from cli.children import Child, Children
from cli.main import main
from tests.support.servers import free_port, wait_until
from worker.providers.sim import sim_text

#: Longest run of one command.
SECONDS = 60.0

#: A command that Ctrl-C reaches even where the tests were started with SIGINT ignored (in a script's background).
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from cli.main import main; main(prog_name='legato')"
)


class Dev:
    """`legato dev` on a port and a directory of its own, to kill and to start again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._data = folder / "data"
        self._children = Children(folder, {"LEGATO_LEASE_SECONDS": "1", "LEGATO_DRAIN_SECONDS": "0"})
        self._child: Child | None = None

    def start(self) -> None:
        self._child = self._children.start("dev", "dev", "--port", str(self.port), "--data", str(self._data))
        assert self._child.port() == self.port

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()

    @contextmanager
    def running(self) -> Iterator[Dev]:
        with self._children:
            self.start()
            yield self

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """`legato <arguments>`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            input=stdin,
            env=self.environment | environment,
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The same, without waiting."""
        command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def submit(self, *arguments: str, **options: Any) -> str:
        """Submit to the sim; the id."""
        pairs = [part for name, value in options.items() for part in ("--option", f"{name}={json.dumps(value)}")]
        told = self.run("submit", "Say something.", *arguments, *pairs)
        assert told.returncode == 0, told.stderr
        return told.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LEGATO_", "PYTHONIO"))}
        return inherited | {"LEGATO_URL": self.url}


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A server that no test stops."""
    with Dev(tmp_path_factory.mktemp("cli")).running() as dev:
        yield dev


def one_line(text: str) -> bool:
    return text.startswith("legato: ") and text.count("\n") == 1 and text.endswith("\n")


# --- sim


def test_sim_prints_exactly_the_text_that_is_generated(dev: Dev) -> None:
    """No line end behind it in a pipe, UTF-8 whatever the locale; the same as a generation of these options."""
    told = dev.run("sim", "--tokens", "50", "--seed", "3", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert told.stdout == sim_text(50, 3)
    assert json.loads(dev.run("sim", "--tokens", "50", "--seed", "3", "--json").stdout) == {
        "text": sim_text(50, 3),
        "tokens": 50,
    }
    assert dev.run("tail", dev.submit(tokens=50, seed=3)).stdout == told.stdout


# --- submit


def test_submit_prints_the_id_or_with_json_the_answer(dev: Dev) -> None:
    """So that `id=$(legato submit …)` works."""
    told = dev.run("submit", "Hello", "--option", "tokens=3")
    assert told.stdout.startswith("gen_")
    assert told.stdout.count("\n") == 1
    answer = json.loads(dev.run("submit", "Hello", "--option", "tokens=3", "--json").stdout)
    assert answer["status"] == "queued"


def test_submit_follows_and_ends_as_the_generation_does(dev: Dev) -> None:
    """Text on stdout and nothing else; the id on stderr."""
    told = dev.run("submit", "Hello", "--option", "tokens=40", "--option", "seed=8", "--follow")
    assert (told.returncode, told.stdout) == (0, sim_text(40, 8))
    assert told.stderr.startswith("legato: gen_")


def test_submit_reads_prompt_and_body_from_stdin(dev: Dev) -> None:
    """`-` in either place; what the request says arrives."""
    told = dev.run("submit", "-", "--system", "Be brief.", "--option", "tokens=2", "--json", stdin="one two three")
    state = inspected(dev, json.loads(told.stdout)["id"], ended=True)
    assert state["usage"]["input_tokens"] == 5
    body = {
        "provider": "sim",
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "provider_options": {"text": "verbatim ü"},
    }
    assert dev.run("submit", "--body", "-", "--follow", stdin=json.dumps(body)).stdout == "verbatim ü"


def test_the_same_idempotency_key_gives_the_same_generation(dev: Dev) -> None:
    """And another request under it is refused."""
    first, second = (dev.run("submit", "Hello", "--idempotency-key", "key-1") for _ in range(2))
    assert first.stdout == second.stdout
    assert "before" in second.stderr
    other = dev.run("submit", "Something else", "--idempotency-key", "key-1")
    assert other.returncode == 2
    assert one_line(other.stderr)


# --- tail


def test_tail_prints_text_as_it_comes(dev: Dev) -> None:
    """Into a pipe too: the first words are there long before the last."""
    generation = dev.submit(tokens=200, tokens_per_second=20)
    with dev.popen("tail", generation) as process:
        assert process.stdout is not None
        first = process.stdout.read(20)
        assert process.poll() is None
        assert (first + process.stdout.read()).decode() == sim_text(200, 0)
    assert process.returncode == 0


def test_tail_goes_on_from_a_position_and_knows_the_end(dev: Dev) -> None:
    """Two halves make the text; behind the last event there is nothing, and the exit code still says how it ended."""
    generation = dev.submit(tokens=60, tokens_per_second=60)
    events = [json.loads(line) for line in dev.run("tail", generation, "--json").stdout.splitlines()]
    assert events[0]["id"] is None
    assert events[0]["event"] == "open"
    assert events[-1]["event"] == "completed"
    deltas = [event for event in events if event["event"] == "delta"]
    assert "".join(event["data"]["text"] for event in deltas) == sim_text(60, 0)
    middle = len(deltas) // 2
    head = "".join(event["data"]["text"] for event in deltas[: middle + 1])
    rest = dev.run("tail", generation, "--from", deltas[middle]["id"])
    assert head + rest.stdout == sim_text(60, 0)
    nothing = dev.run("tail", generation, "--from", events[-1]["id"])
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert dev.run("tail", generation, "--from", "snapshot").stdout == sim_text(60, 0)


def test_a_position_that_never_was_gives_the_whole_text(dev: Dev) -> None:
    """And a word about it on stderr: what the caller has is not what the server has."""
    generation = dev.submit(tokens=10)
    wait_until(lambda: inspected(dev, generation)["status"] == "completed", "it ends")
    told = dev.run("tail", generation, "--from", "5-7")
    assert (told.returncode, told.stdout) == (0, sim_text(10, 0))
    assert "does not hold" in told.stderr


@pytest.mark.parametrize("arguments", [(), ("--whole",)])
def test_an_attempt_that_begins_the_text_anew_is_not_printed_twice(dev: Dev, arguments: tuple[str, ...]) -> None:
    """The second attempt says the same words again: stdout is the text. `--whole` promises it for other words too."""
    fault = [{"at_token": 10, "kind": "error", "attempt": 1}]
    generation = dev.submit(tokens=30, tokens_per_second=100, faults=fault)
    told = dev.run("tail", generation, *arguments)
    assert (told.returncode, told.stdout) == (0, sim_text(30, 0))
    assert "attempt 2" in told.stderr


def test_a_tail_survives_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """SIGKILL of everything, store included, in mid-text: the tail waits, comes back by itself, and its text is whole;
    the events of `--json` have no hole but for what the store itself had not yet written."""
    with Dev(tmp_path).running() as dev:
        stall = {"at_token": 150, "kind": "stall", "attempt": 1}  # it does not end before it is killed
        generation = dev.submit(tokens=200, seed=4, tokens_per_second=50, faults=[stall])
        with dev.popen("tail", generation) as text, dev.popen("tail", "--json", generation) as events:
            assert text.stdout is not None
            start = text.stdout.read(300)
            dev.kill()
            time.sleep(1.0)
            assert (text.poll(), events.poll()) == (None, None)
            dev.start()
            assert (start + text.stdout.read()).decode() == sim_text(200, 4)
            assert text.wait(SECONDS) == 0
            assert events.stdout is not None
            assert client_text(events.stdout.read()) == sim_text(200, 4)
            assert events.wait(SECONDS) == 0


def test_ctrl_c_leaves_the_generation_alone_and_says_how_to_go_on(dev: Dev) -> None:
    """130, a hint with the place, and the generation still runs."""
    generation = dev.submit(tokens=400, tokens_per_second=20)
    with dev.popen("tail", generation) as process:
        assert process.stdout is not None
        read = process.stdout.read(20)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        read += process.stdout.read()
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert process.returncode == 130
    assert sim_text(400, 0).startswith(read.decode())
    assert "goes on" in told
    place = told.split("--from ")[1].split()[0]
    assert inspected(dev, generation)["status"] == "running"
    assert dev.run("cancel", generation).returncode == 0
    rest = dev.run("tail", generation, "--from", place)
    assert rest.returncode == 3
    assert sim_text(400, 0).startswith(read.decode() + rest.stdout)


def test_a_reader_that_closes_the_pipe_ends_the_tail_quietly(dev: Dev) -> None:
    """`legato tail … | head -c 20`."""
    generation = dev.submit(tokens=10_000, tokens_per_second=50)
    with dev.popen("tail", generation) as process:
        assert process.stdout is not None
        process.stdout.read(20)
        process.stdout.close()
        assert process.wait(SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert dev.run("cancel", generation).returncode == 0


# --- cancel, inspect


def test_cancel_and_inspect(dev: Dev) -> None:
    """0 for a cancel, also when repeated; 3 for whoever reads the cancelled one; its text so far stays."""
    generation = dev.submit(tokens=10_000, tokens_per_second=50)
    wait_until(lambda: inspected(dev, generation)["text"] != "", "there is text")
    assert dev.run("cancel", generation).stdout.strip() in ("cancelling", "cancelled")
    told = dev.run("tail", generation)
    assert told.returncode == 3
    assert "cancelled (user)" in told.stderr
    assert sim_text(10_000, 0).startswith(told.stdout)
    again = dev.run("cancel", generation, "--json")
    assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "cancelled")
    shown = dev.run("inspect", generation)
    assert shown.returncode == 0
    assert "cancelled" in shown.stdout
    assert inspected(dev, generation)["text"] == told.stdout


def test_a_failed_generation_ends_with_1_and_its_partial_text(dev: Dev) -> None:
    """The reason is on stderr, by its code."""
    generation = dev.submit("--recovery", "fail", tokens=30, faults=[{"at_token": 10, "kind": "truncate"}])
    told = dev.run("tail", generation)
    assert (told.returncode, told.stdout) == (1, sim_text(10, 0))
    assert "upstream_incomplete" in told.stderr
    assert "upstream_incomplete" in dev.run("inspect", generation).stdout


# --- errors

UNKNOWN = "gen_" + "0" * 32


@pytest.mark.parametrize(
    ("code", "arguments", "stdin"),
    [
        (4, ("tail", UNKNOWN), ""),
        (4, ("tail", "no/such id"), ""),
        (4, ("inspect", UNKNOWN), ""),
        (4, ("cancel", UNKNOWN), ""),
        (2, ("submit", "Hello", "--provider", "nobody", "--model", "m"), ""),
        (2, ("submit", "--body", "-"), "not JSON"),
        (2, ("submit", "--body", "-"), '{"provider": "sim", "colour": 1}'),
        (2, ("submit", "-"), "a" * 1_100_000),
        (2, ("inspect", UNKNOWN, "--url", "ftp://127.0.0.1"), ""),
        (2, ("inspect", UNKNOWN, "--url", "http://[::"), ""),
        (5, ("inspect", UNKNOWN, "--url", "http://127.0.0.1:9", "--timeout", "0"), ""),
        (5, ("submit", "Hello", "--url", "http://127.0.0.1:9", "--timeout", "0"), ""),
        (5, ("tail", UNKNOWN, "--url", "http://127.0.0.1:9", "--timeout", "0.3"), ""),
    ],
)
def test_an_error_is_one_line_and_a_code(dev: Dev, code: int, arguments: tuple[str, ...], stdin: str) -> None:
    """No traceback, nothing on stdout."""
    told = dev.run(*arguments, stdin=stdin)
    assert told.returncode == code, told.stderr
    assert one_line(told.stderr), told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit",),
        ("submit", "Hello", "--body", "-"),
        ("submit", "Hello", "--option", "tokens"),
        ("submit", "Hello", "--idempotency-key", "ü"),
        ("submit", "Hello", "--provider", "openai"),
        ("submit", "Hello", "--whole"),
        ("tail", UNKNOWN, "--from", "5"),
        ("tail", UNKNOWN, "--from", "$"),
        ("tail",),
        ("sim", "--tokens", "-1"),
        ("nonsense",),
    ],
)
def test_wrong_arguments_are_told_before_any_request(dev: Dev, arguments: tuple[str, ...]) -> None:
    """2, and how it is called."""
    told = dev.run(*arguments, LEGATO_URL="http://127.0.0.1:9")
    assert told.returncode == 2
    assert told.stderr.startswith("Usage: legato")
    assert "Traceback" not in told.stderr


def test_a_command_waits_for_a_server_that_is_just_starting(tmp_path: Path) -> None:
    """`legato dev & legato submit …` works: no connection is tried again until --timeout."""
    dev = Dev(tmp_path)
    with dev.popen("submit", "Hello", "--timeout", "60") as process:
        assert process.stderr is not None
        assert b"trying" in process.stderr.readline()
        with dev.running():
            assert process.wait(SECONDS) == 0


# --- the servers


@pytest.mark.parametrize("port", ["65536", "99999", "-1", "http"])
@pytest.mark.parametrize("command", ["dev", "api"])
def test_a_port_that_is_none_is_a_wrong_argument(dev: Dev, command: str, port: str) -> None:
    told = dev.run(command, "--port", port, LEGATO_REDIS_URL="redis://127.0.0.1:1")
    assert told.returncode == 2
    assert "Invalid value for '--port'" in told.stderr
    assert "Traceback" not in told.stderr


def test_servers_say_in_json_where_they_are(tmp_path: Path, dev: Dev) -> None:
    for command, folder in (("dev", "one"), ("api", "two")):
        environment = dev.environment | ({"LEGATO_REDIS_URL": "redis://127.0.0.1:1"} if command == "api" else {})
        arguments = [command, "--port", "0", "--json"]
        if command == "dev":
            arguments += ["--data", str(tmp_path / folder)]
        with subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            process.kill()
        assert told["url"].startswith("http://127.0.0.1:")
        assert "sim" in told.get("providers", ["sim"])


# --- demo


def demo(*arguments: str) -> tuple[int, str]:
    """In this process, so that it can be tampered with; its servers are real processes all the same."""
    result = CliRunner().invoke(main, ["demo", *arguments])
    return result.exit_code, result.output


def test_the_demo_shows_that_the_text_is_whole() -> None:
    """As many cuts as asked for, nothing twice, no colour in a pipe. Tokens that had to wait are one delta."""
    code, said = demo("--seed", "1", "--cuts", "8")
    assert code == 0, said
    assert "9 connections, 8 cuts, " in said
    assert "0 duplicates" in said
    assert "\x1b" not in said


def test_the_demo_says_how_it_went_in_json_and_nothing_else() -> None:
    code, said = demo("--seed", "1", "--tokens", "100", "--cuts", "2", "--json")
    assert code == 0, said
    told = json.loads(said)
    assert (told["whole"], told["connections"], told["cuts"], told["duplicates"]) == (True, 3, 2, 0)
    assert 1 <= told["deltas"] <= 100
    assert [check["problem"] for check in told["checks"]] == [None] * 4


def test_a_reader_that_comes_late_is_cut_as_often(dev: Dev) -> None:
    """However slow the machine: where all of the text comes in one frame, that frame is cut again and again."""
    generation = dev.submit(tokens=600, seed=4)
    inspected(dev, generation, ended=True)
    whole = sim_text(600, 4)
    cuts = plan(len(whole), 8, random.Random(4))
    reading = Reading()
    reader = BadReader(reading, f"/v1/generations/{generation}/events")
    connections = 0
    while reading.end is None:
        reader.read(dev.port, cuts.pop(0) if cuts else None, lambda: None)
        connections += 1
    assert (connections, cuts) == (9, [])
    assert (reading.text, reading.duplicates) == (whole, 0)
    assert 1 <= reading.deltas <= 600


def test_the_demo_with_a_killed_worker_shows_the_reset_and_the_whole_text() -> None:
    """Another worker takes over; the text begins anew and is the same."""
    code, said = demo("--seed", "2", "--tokens", "300", "--cuts", "4", "--kill-worker")
    assert code == 0, said
    assert "SIGKILL" in said
    assert "1 reset" in said


def test_the_demo_notices_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that cannot fail shows nothing."""
    monkeypatch.setattr("cli.demo.sim_text", lambda tokens, seed: sim_text(tokens, seed)[:-1] + "!")
    code, said = demo("--seed", "3", "--tokens", "100", "--cuts", "1")
    assert code == 1
    assert "different from character" in said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children outlive a killed parent")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_the_demo_outlives_it(number: signal.Signals, tmp_path: Path) -> None:
    """However it ends, in mid-text; all its processes are found by the directory they work in."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEGATO_")}
    command = [sys.executable, "-u", "-c", INTERRUPTIBLE, "demo"]
    with subprocess.Popen(
        command, env=environment | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for _ in range(4):  # until the first cut is told
            process.stdout.readline()
        assert len(of(tmp_path)) >= 4
        process.send_signal(number)
        process.stdout.read()
        process.wait(SECONDS)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    wait_until(lambda: not of(tmp_path), "every process is gone")
    if number is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def of(folder: Path) -> list[int]:
    """Processes that work in or were told of the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
                if str(folder) in words or os.readlink(entry / "cwd").startswith(str(folder)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# --- helpers


def inspected(dev: Dev, generation: str, *, ended: bool = False) -> dict[str, Any]:
    """What `inspect --json` says, now or once it has ended."""
    while True:
        state: dict[str, Any] = json.loads(dev.run("inspect", generation, "--json").stdout)
        if not ended or state["ended_at"] is not None:
            return state


def client_text(lines: bytes) -> str:
    """The text that the least of clients has after these events; a hole or a repetition fails."""
    text, last = "", 0
    for line in lines.splitlines():
        event = json.loads(line)
        if event["id"] is not None:
            seq = int(event["id"].partition("-")[0])
            assert event["event"] == "snapshot" or seq > last
            last = seq
        match event["event"]:
            case "delta":
                text += event["data"]["text"]
            case "reset":
                text = ""
            case "snapshot":
                text = event["data"]["text"]
    return text

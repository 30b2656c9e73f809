"""The client commands' pure parts, and how they follow a stream over connections that break."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace

import click
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.bad_reader import Reading, plan
from cli.client import Client, backoff
from cli.eventsource import EventReader, Frame
from cli.exits import EXIT_HELP, Exit, Failure, harmless
from cli.follow import Follower
from cli.main import COMMANDS, main
from cli.manage import describe
from cli.shown import Shown, Write
from cli.submit import check_options
from cli.wire import NotHttp, Place, Wire

# --- the event reader

STREAM = (
    b'event: open\nretry: 1500\ndata: {"verdict":"start"}\n\n'
    b'event: delta\nid: 1-1\ndata: {"text":"na\xc3\xafve \xf0\x9f\x9a\x80"}\n\n: ping\n'
    b'event: completed\r\nid: 2-1\r\ndata: {}\r\n\r\nevent: delta\nid: 3-1\ndata: {"text":"unfinished"}\n'
)


def feed(*chunks: bytes) -> tuple[list[Frame], EventReader]:
    reader = EventReader()
    return [frame for chunk in chunks for frame in reader.feed(chunk)], reader


def test_events_come_with_their_own_id_and_the_servers_retry() -> None:
    """An event without `id:` has none; a block that was never finished, and its id, are discarded."""
    frames, reader = feed(STREAM)
    assert [(frame.id, frame.event) for frame in frames] == [(None, "open"), ("1-1", "delta"), ("2-1", "completed")]
    assert frames[1].data == {"text": "naïve 🚀"}
    assert reader.retry_ms == 1500


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_their_bytes_are_cut(cuts: list[int]) -> None:
    """Bytes arrive in any pieces, also in the middle of a character or of a CR LF."""
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert feed(*pieces)[0] == feed(STREAM)[0]


# --- what is shown

TEXTS = st.text(alphabet="ab", max_size=6)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "clear", "replace"]), TEXTS), max_size=12)


@given(whole=st.booleans(), steps=STEPS)
def test_what_was_written_since_it_last_began_anew_is_the_text(whole: bool, steps: list[tuple[str, str]]) -> None:
    """Whatever the generation takes back, the reader of stdout ends with its text, after the last `anew`."""
    shown, text, written = Shown(whole=whole), "", ""
    for step, piece in [*steps, ("end", "")]:
        write: Write | None
        match step:
            case "add" if piece:
                text += piece
                write = shown.add(piece)
            case "clear":
                text = ""
                write = shown.clear()
            case "replace":
                text = piece
                write = shown.replace(piece)
            case _:
                write = shown.end() if step == "end" else None
        if write is not None:
            written = write.text if write.anew else written + write.text
    assert written == text


def test_a_text_that_begins_anew_with_the_same_words_is_not_written_twice() -> None:
    """The simulated provider, or a model at temperature 0, says the same again: stdout just goes on."""
    shown = Shown(whole=True)
    assert shown.add("one two ") == Write("one two ")
    assert shown.clear() is None
    assert shown.add("one ") is None
    assert shown.add("two three") == Write("three")
    assert shown.end() is None


def test_a_text_that_turns_out_different_is_written_from_its_beginning() -> None:
    """What was the same before the difference belongs to the new text too."""
    shown = Shown(whole=True)
    shown.add("one two")
    shown.clear()
    shown.add("one")
    assert shown.add(" three") == Write("one three", anew=True)


def test_a_tail_from_the_middle_never_takes_a_new_text_for_what_it_has_shown() -> None:
    """What it has shown is not the beginning of the text, so it cannot be compared."""
    shown = Shown(whole=False)
    shown.add("b")
    assert shown.clear() == Write("", anew=True)
    assert shown.add("b") == Write("b")


# --- following

Handler = Callable[[httpx.Request], httpx.Response]


class Cut(httpx.SyncByteStream):
    """A body that breaks off, or ends."""

    def __init__(self, *chunks: bytes, breaks: bool = True) -> None:
        self._chunks, self._breaks = chunks, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._breaks:
            raise httpx.RemoteProtocolError("incomplete chunked read")


def stream(*chunks: bytes, breaks: bool = True) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Cut(*chunks, breaks=breaks))


def problem(status: int, detail: str = "so it is", **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json={"detail": detail}, headers={"content-type": "application/problem+json", **headers}
    )


OPEN = b'event: open\nretry: 2000\ndata: {"verdict":"resumed"}\n\n'
FAULT = b'event: open\nretry: 2000\ndata: {"verdict":null}\n\nevent: error\ndata: {"code":"store_unavailable"}\n\n'
DELTA = b'event: delta\nid: %d-1\ndata: {"text":"x"}\n\n'
END = b"event: completed\nid: 9-1\ndata: {}\n\n"


class World:
    """A server that gives the answers in turn, the last one for ever, and a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Callable[[], httpx.Response]) -> None:
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.now = 1000.0
        self._answers = list(answers)
        monkeypatch.setattr("cli.follow.time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return (self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])()

    def client(self, timeout_seconds: float = 30.0) -> Client:
        return Client("http://legato", timeout_seconds=timeout_seconds, transport=httpx.MockTransport(self._answer))

    def follow(self, *, timeout_seconds: float = 30.0, cursor: str | None = None, snapshot: bool = False) -> list[str]:
        """The ids and names of all events."""
        with self.client(timeout_seconds) as client:
            follower = Follower(client, "gen_1", cursor=cursor, snapshot=snapshot)
            return [frame.id or frame.event for batch in follower.batches() for frame in batch]

    @property
    def cursors(self) -> list[str | None]:
        return [request.headers.get("last-event-id") for request in self.requests]


def refuse() -> httpx.Response:
    raise httpx.ConnectError("refused")


def test_a_cut_is_followed_by_a_connection_with_the_last_whole_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor is the last event that was complete; a body that ends without the end is a cut too."""
    world = World(
        monkeypatch,
        lambda: stream(OPEN, DELTA % 1, (DELTA % 2)[:-1]),
        lambda: stream(OPEN, DELTA % 2, breaks=False),
        lambda: stream(OPEN, END + DELTA % 10, breaks=False),
    )
    assert world.follow() == ["open", "1-1", "open", "2-1", "open", "9-1"]
    assert world.cursors == [None, "1-1", "2-1"]


def test_the_servers_retry_is_the_least_pause_and_failures_lengthen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`retry: 2000` stays for later cuts; every connection that brings nothing doubles the pause."""
    world = World(monkeypatch, lambda: stream(OPEN), refuse, refuse, lambda: stream(OPEN, END))
    world.follow()
    assert [2.0 * 2**n <= pause <= 2.5 * 2**n for n, pause in enumerate(world.pauses)] == [True] * 3


def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 503 or a 429 is no end; what it asks for is the least pause."""
    world = World(monkeypatch, lambda: problem(503, **{"retry-after": "7"}), lambda: stream(OPEN, END))
    world.follow()
    assert world.pauses[0] >= 7


@pytest.mark.parametrize("answer", [refuse, lambda: problem(503), lambda: stream(FAULT)])
def test_it_gives_up_when_no_good_connection_came_for_the_whole_timeout(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], httpx.Response]
) -> None:
    """Refused, unavailable, or told so in the stream: exit code 5, not before the time and soon after it."""
    world = World(monkeypatch, lambda: stream(OPEN, DELTA % 1), answer)
    with pytest.raises(Failure) as failure:
        world.follow(timeout_seconds=30)
    assert failure.value.exit_code == Exit.UNAVAILABLE
    assert sum(world.pauses) == pytest.approx(30)


def test_good_connections_in_between_start_the_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream over a bad line is not given up for the sum of its cuts."""
    answers: list[Callable[[], httpx.Response]] = [lambda: stream(OPEN, DELTA % 1)] * 20
    world = World(monkeypatch, *answers, lambda: stream(OPEN, END))
    world.follow(timeout_seconds=3)
    assert sum(world.pauses) > 30


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, Exit.USAGE), (401, Exit.USAGE), (404, Exit.NOT_FOUND), (410, Exit.NOT_FOUND)],
)
def test_a_refusal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch, status: int, code: Exit) -> None:
    """What the server will say again is not asked again."""
    world = World(monkeypatch, lambda: problem(status, "the reason"))
    with pytest.raises(Failure, match="the reason") as failure:
        world.follow()
    assert failure.value.exit_code == code
    assert len(world.requests) == 1


def test_204_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor was the terminal event."""
    world = World(monkeypatch, lambda: httpx.Response(204, headers={"content-type": "text/event-stream"}))
    assert world.follow(cursor="9-1") == []
    assert world.cursors == ["9-1"]


def test_a_snapshot_is_asked_for_only_while_there_is_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later connections resume."""
    snapshot = b"event: snapshot\nid: 4-1\ndata: {}\n\n"
    world = World(monkeypatch, refuse, lambda: stream(OPEN, snapshot), lambda: stream(OPEN, END))
    world.follow(snapshot=True)
    assert [request.url.query for request in world.requests] == [b"from=snapshot", b"from=snapshot", b""]
    assert world.cursors == [None, None, "4-1"]


def test_an_answer_that_is_no_event_stream_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A captive portal, or another server on that port."""
    world = World(monkeypatch, lambda: httpx.Response(200, html="<p>Log in</p>"))
    with pytest.raises(Failure) as failure:
        world.follow()
    assert failure.value.exit_code == Exit.UNAVAILABLE


def test_a_refusal_names_the_fields_and_a_stranger_is_not_believed() -> None:
    """problem+json in one line; a 404 that is not ours is no word on the generation."""
    with Client("http://legato", timeout_seconds=0) as client:
        ours = problem(422, "wrong")
        ours = httpx.Response(
            422, headers=ours.headers, json={"detail": "wrong", "errors": [{"field": "model", "message": "missing"}]}
        )
        assert client.failure_of(ours).message == "wrong (model: missing)"
        assert client.failure_of(ours).exit_code == Exit.USAGE
        assert client.failure_of(httpx.Response(404, html="nginx")).exit_code == Exit.UNAVAILABLE
        assert client.failure_of(problem(429)).exit_code == Exit.UNAVAILABLE


def test_pauses_double_up_to_a_limit_and_are_never_shorter_than_the_first() -> None:
    """Also for a server that asks for a pause above the limit, and after very many tries."""
    assert all(1 <= backoff(0, first_seconds=1) <= 1.25 for _ in range(50))
    assert backoff(10_000, first_seconds=1) <= 15 * 1.25
    assert backoff(3, first_seconds=40) >= 40


# --- the demo's reader

BODY = "event: delta\nid: 1-1\ndata: ü🚀\n\n".encode()
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"%x\r\n%b\r\n" % (20, BODY[:20])
    + b"%X\r\n%b\r\n" % (len(BODY) - 20, BODY[20:])
    + b"0\r\n\r\n"
)


def test_the_wire_gives_the_body_and_knows_where_every_byte_is() -> None:
    """Byte by byte, with the places the demo cuts in; what follows the last chunk is not looked at."""
    wire, body, places = Wire(), b"", {}
    for number in RESPONSE:
        byte = wire.feed(bytes((number,)))
        body += byte
        places.setdefault(wire.place, b"")
        places[wire.place] += byte
    assert body == BODY
    assert wire.ended
    assert wire.status == 200
    assert wire.headers == {"transfer-encoding": "chunked"}
    assert set(places) == set(Place)
    assert places[Place.CHARACTER] == "ü".encode()[:1] + "🚀".encode()[:3]
    assert places[Place.FRAMES] == b"\n"


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nzz\r\n"])
def test_the_wire_refuses_what_is_not_http(answer: bytes) -> None:
    """Rather than waiting for ever."""
    wire = Wire()
    for number in answer[:-1]:
        wire.feed(bytes((number,)))
    with pytest.raises(NotHttp):
        wire.feed(answer[-1:])


@given(cuts=st.integers(0, 30), seed=st.integers(0, 1000))
def test_cuts_are_spread_in_order_and_end_before_the_text_does(cuts: int, seed: int) -> None:
    """Every planned cut comes while there is text left to go on with."""
    planned = plan(1000, cuts, random.Random(seed))
    assert len(planned) == cuts
    assert [cut.after for cut in planned] == sorted(cut.after for cut in planned)
    assert all(0 <= cut.after < 900 for cut in planned)


def test_the_demo_counts_what_comes_twice() -> None:
    """An event at or before the last one is a duplicate; a merged frame counts for the deltas in it."""
    reading = Reading()
    for place in ("1-1", "4-1", "4-1"):
        reading.take(Frame(place, "delta", b'{"text":"x"}'))
    assert (reading.deltas, reading.frames, reading.duplicates, reading.text) == (4, 3, 1, "xxx")


# --- arguments, help, start-up


def test_options_are_json_or_a_bare_string() -> None:
    """What looks like JSON and is not is an error, not a string."""
    given_ = ("tokens=5", "text=hello", "faults=[]", 'quoted="5"', "a=b=c")
    wanted = {"tokens": 5, "text": "hello", "faults": [], "quoted": "5", "a": "b=c"}
    context, parameter = click.Context(main), click.Option(["--option"])
    assert check_options(context, parameter, given_) == wanted
    for wrong in ("tokens", "=5", "faults=[{", 'text="x'):
        with pytest.raises(click.BadParameter):
            check_options(context, parameter, (wrong,))


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    """An escape sequence could retitle, recolour or type into it."""
    assert harmless("a\x1b]0;x\x07\n\tb\x9b") == "a�]0;x�\n\tb�"


def test_inspect_describes_what_has_not_begun_and_what_failed() -> None:
    """No field is taken for granted."""
    queued = dict(describe({"id": "gen_1", "status": "queued", "created_at": 1.0, "started_at": None}))
    assert queued["status"] == "queued"
    assert "ran" not in queued
    failed = {"code": "stalled", "message": "silent", "retryable": True}
    assert dict(describe({"status": "failed", "error": failed}))["error"] == "stalled: silent, retryable"


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    """Its lines stand in a table, so that listing imports nothing; here they are compared."""
    context = click.Context(main)
    for name, (_, line) in COMMANDS.items():
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").split("\n")[0].startswith(line), name
    assert main.get_command(context, "nonsense") is None


def test_every_exit_code_is_in_the_help() -> None:
    """But for the one that nobody is left to read."""
    documented = {int(line.split()[0]) for line in EXIT_HELP.splitlines() if line.strip()[:1].isdigit()}
    assert documented == {code.value for code in Exit} - {Exit.BROKEN_PIPE}


@pytest.mark.parametrize("command", ["tail", "submit", "inspect", "sim"])
def test_a_client_command_imports_nothing_of_the_server(command: str) -> None:
    """They start in a tenth of a second, and without Redis."""
    code = (
        "import sys, click, cli.main as m; m.main.get_command(click.Context(m.main), sys.argv[1]); "
        "print(*({'fastapi', 'uvicorn', 'openai', 'anthropic', 'redis', 'uvloop'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ""


@pytest.mark.parametrize(
    ("command", "others"), [("api", "worker openai anthropic httpx2"), ("worker", "api fastapi uvicorn")]
)
def test_api_and_worker_load_nothing_of_one_another(command: str, others: str) -> None:
    """Each starts sooner for it, and a worker holds no web framework in memory."""
    code = (
        "import sys, click, cli.main as m; m.main.get_command(click.Context(m.main), sys.argv[1]); "
        "print(*(set(sys.argv[2].split()) & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code, command, others], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == ""

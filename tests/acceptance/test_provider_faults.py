"""Every fault at every chunk of an answer, on every wire: no character is lost or doubled, and nothing cut is whole.

The table of faults below is what is tested, and what `python -m tests.acceptance.test_provider_faults` writes into
docs/explanation/provider-faults.md.

All cases of one wire and one fault run at once. Each is a model of its own; its name says what the first call of it
gets, and every later call gets the whole answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from broker.events import Status
from tests.support.sse_client import Reader, follow
from tests.support.stack import Stack, eventually
from tests.support.wire_provider import (
    Action,
    Cut,
    End,
    Pause,
    Received,
    Reply,
    Rst,
    Send,
    WireProvider,
    anthropic_event,
    anthropic_stream,
    openai_chunk,
    openai_stream,
    responses_event,
    responses_frames,
    responses_stream,
    sse,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "explanation" / "provider-faults.md"
TEXTS: Final = ("Über ", "die 🌉 Brü", "cke,\n\n", "e\u0301 東京.")
WHOLE: Final = "".join(TEXTS)
BOM: Final = b"\xef\xbb\xbf"
LONG: Final = "long " * 2_000_000
#: Silence that is a stall: long enough that a busy machine does not make one of its own.
STALL_SECONDS: Final = 3.0
AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One wire: its answer, cut into chunks, and what else it may say."""

    name: str
    path: str
    frames: list[bytes]
    says: bytes  # stands in every chunk that holds text
    unknown: bytes
    error: bytes
    long: bytes
    takes_long: bool = False  # the line fits: the last events of this wire repeat the whole answer
    whole_from: int = 0  # a clean end behind so many chunks is the end of the answer; 0: only the marker is

    def texts(self) -> list[str]:
        """What each chunk says."""
        texts = iter(TEXTS)
        return [next(texts) if self.says in frame else "" for frame in self.frames]

    def shown(self, at: int) -> str:
        """What the first `at` chunks say."""
        return "".join(self.texts()[:at])


def _frames(stream: bytes) -> list[bytes]:
    return [frame + b"\n\n" for frame in stream.removesuffix(b"\n\n").split(b"\n\n")]


_OPENAI: Final = _frames(openai_stream(*TEXTS, usage={"prompt_tokens": 3, "completion_tokens": 4}))

WIRES: Final = [
    Wire(
        name="openai",
        path="/v1/chat/completions",
        frames=_OPENAI,
        says=b'"delta": {"content": ',
        unknown=sse({"object": "chat.completion.weather", "sky": "blue"}, event="weather"),
        error=sse({"error": {"type": "server_error", "message": "it broke"}}),
        long=openai_chunk({"content": LONG}),
        whole_from=len(_OPENAI) - 2,
    ),
    Wire(
        name="openai_responses",
        path="/v1/responses",
        frames=responses_frames(responses_stream(*TEXTS)),
        says=b"response.output_text.delta",
        unknown=responses_event("response.weather", sky="blue"),
        error=responses_event("error", code="server_error", message="it broke", param=None),
        long=responses_event("response.output_text.delta", output_index=0, content_index=0, delta=LONG),
        takes_long=True,
    ),
    Wire(
        name="anthropic",
        path="/v1/messages",
        frames=_frames(anthropic_stream(*TEXTS)),
        says=b"text_delta",
        unknown=anthropic_event("weather", sky="blue"),
        error=anthropic_event("error", error={"type": "overloaded_error", "message": "it broke"}),
        long=anthropic_event("content_block_delta", index=0, delta={"type": "text_delta", "text": LONG}),
    ),
]
BY_NAME: Final = {wire.name: wire for wire in WIRES}
BY_PATH: Final = {wire.path: wire for wire in WIRES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. `code` is None where it does no harm."""

    name: str
    what: str
    reply: Callable[[Wire, int], Reply]
    code: str | None = None
    retryable: bool = True
    places: Callable[[Wire], range] = lambda wire: range(len(wire.frames))
    in_stream: bool = True
    exact: bool = True  # all that was sent before it is shown; else a beginning of it

    def outcome(self, wire: Wire, at: int) -> tuple[str | None, str]:
        """The failure code of an attempt that meets it, and the text that it shows."""
        texts = wire.texts()
        match self.name:
            case "repeated":
                return None, "".join([*texts[: at + 1], *texts[at:]])
            case "long_line" if wire.takes_long:
                return None, "".join([*texts[:at], LONG, *texts[at:]])
            case "clean_end" if wire.whole_from and at >= wire.whole_from:
                return None, WHOLE
        return self.code, (WHOLE if self.code is None else wire.shown(at) if self.in_stream else "")


def _then(*more: Action) -> Callable[[Wire, int], Reply]:
    """The first chunks, and then these."""
    return lambda wire, at: Reply(actions=(Send(b"".join(wire.frames[:at])), *more))


def _among(noise: Callable[[Wire, int], bytes], *, piece_bytes: int = 0) -> Callable[[Wire, int], Reply]:
    """The whole answer, with something among its chunks."""

    def reply(wire: Wire, at: int) -> Reply:
        data = b"".join([*wire.frames[:at], noise(wire, at), *wire.frames[at:]])
        return Reply.events(data, piece_bytes=piece_bytes)

    return reply


def _torn(wire: Wire, at: int) -> Reply:
    """Cut in the middle of a chunk, inside a character where it holds one of several bytes."""
    frame = wire.frames[at]
    wide = [place for place, byte in enumerate(frame) if byte >= 0x80]
    half = wide[0] + 1 if wide else len(frame) // 2
    return Reply(actions=(Send(b"".join(wire.frames[:at]) + frame[:half]), Cut()))


def _refused(status: int, **headers: str) -> Callable[[Wire, int], Reply]:
    return lambda wire, at: Reply.error(status, {"error": {"message": "not today"}}, **headers)


def _once(wire: Wire) -> range:
    return range(1)


def _among_text(wire: Wire) -> range:
    first = wire.texts().index(TEXTS[1])
    return range(first, first + 1)


_NEVER: Final = asyncio.Event()

FAULTS: Final = [
    Fault(name="reset", what="connection reset", reply=_then(Rst()), code="upstream_incomplete", exact=False),
    Fault(name="cut", what="connection closed without the body's end", reply=_then(Cut()), code="upstream_incomplete"),
    Fault(name="torn", what="the same, inside a chunk", reply=_torn, code="upstream_incomplete"),
    Fault(
        name="clean_end",
        what="body ends cleanly, without the terminal marker",
        reply=_then(End()),
        code="upstream_incomplete",
    ),
    Fault(name="stall", what="silence for `stall_seconds`", reply=_then(Pause(_NEVER)), code="stalled"),
    Fault(
        name="error_event",
        what="an error inside the stream (of the kind that passes)",
        reply=lambda wire, at: Reply.events(b"".join([*wire.frames[:at], wire.error])),
        code="upstream_error",
    ),
    Fault(
        name="bad_json",
        what="a chunk that is not JSON",
        reply=_among(lambda wire, at: b'data: {"a": \n\n'),
        code="upstream_error",
    ),
    Fault(
        name="long_line",
        what="a line of 10 MB",
        reply=_among(lambda wire, at: wire.long),
        code="upstream_error",
        places=_among_text,
    ),
    Fault(name="unknown", what="an event nobody knows", reply=_among(lambda wire, at: wire.unknown)),
    Fault(name="repeated", what="a chunk twice", reply=_among(lambda wire, at: wire.frames[at])),
    Fault(name="bom", what="a byte order mark at the start", reply=_among(lambda wire, at: BOM), places=_once),
    Fault(
        name="bom_in_bytes",
        what="the same, and every chunk of the body holds one byte",
        reply=_among(lambda wire, at: BOM, piece_bytes=1),
        places=_once,
    ),
    Fault(
        name="bytes",
        what="every chunk of the body holds one byte",
        reply=_among(lambda wire, at: b"", piece_bytes=1),
        places=_once,
    ),
    *(
        Fault(
            name=f"http_{status}",
            what=f"HTTP {status}" + (", with Retry-After" if headers else ""),
            reply=_refused(status, **headers),
            code=code,
            retryable=retryable,
            places=_once,
            in_stream=False,
        )
        for status, code, retryable, headers in (
            (429, "rate_limited", True, {"retry_after": "1"}),
            (529, "upstream_error", True, {}),
            (500, "upstream_error", True, {}),
            (503, "upstream_error", True, {}),
            (401, "upstream_auth", False, {}),
            (400, "invalid_request", False, {}),
        )
    ),
]
FAULT_OF: Final = {fault.name: fault for fault in FAULTS}


class Provider:
    """The fake. A model's name is `fault/place/attempts`."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()

    def __call__(self, request: Received) -> Reply:
        wire, model = BY_PATH[request.path], str(request.body["model"])
        self.calls[wire.name, model] += 1
        fault, place, _ = model.split("/")
        if fault in FAULT_OF and self.calls[wire.name, model] == 1:
            return FAULT_OF[fault].reply(wire, int(place))
        return Reply.events(b"".join(wire.frames))


def environment(url: str) -> dict[str, str]:
    """No breaker, retries without end, and leases that a busy worker keeps: each generation shall meet its own fault
    and no other's."""
    return {
        "LEGATO_PROVIDERS": ",".join(BY_NAME),
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": f"{url}/v1",
        "ANTHROPIC_API_KEY": "sk-ant-test",
        "ANTHROPIC_BASE_URL": url,
        "LEGATO_BREAKER_MIN_CALLS": "1000000",
        "LEGATO_RETRY_FLOOR": "1000000",
        "LEGATO_RETRY_BASE_SECONDS": "0.02",
        "LEGATO_RETRY_CAP_SECONDS": "1",
        "LEGATO_LEASE_SECONDS": "30",
    }


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture(scope="module")
def stack(redis_url: str, tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Stack]:
    with (
        WireProvider(provider) as server,
        Stack.start(redis_url, tmp_path_factory.mktemp("faults"), environment=environment(server.url)) as stack,
    ):
        for wire in WIRES:  # the first call of a process builds its client
            run(stack, wire, "none/0/1", attempts=1)
        yield stack


def submit(stack: Stack, wire: Wire, model: str, **fields: object) -> str:
    body = {"provider": wire.name, "model": model, "messages": [{"role": "user", "content": "Go on."}], **fields}
    answer = stack.post("/v1/generations", body)
    assert answer.status == 202, answer.body
    return str(answer.json()["id"])


def run(stack: Stack, wire: Wire, model: str, *, attempts: int) -> tuple[Reader, str]:
    """Submit, and follow live to the end."""
    stalls = {"stall_seconds": STALL_SECONDS} if model.startswith("stall/") else {}
    generation = submit(stack, wire, model, max_attempts=attempts, **stalls)
    return follow(stack.urls, generation)[0], generation


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
@pytest.mark.parametrize("wire", WIRES, ids=[wire.name for wire in WIRES])
def test_no_fault_loses_a_character_or_makes_a_cut_answer_whole(
    stack: Stack, provider: Provider, wire: Wire, name: str
) -> None:
    fault = FAULT_OF[name]
    cases = [(at, attempts) for at in fault.places(wire) for attempts in (1, 2)]
    workers = [worker.pid for worker in stack.workers]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = pool.map(lambda case: run(stack, wire, f"{name}/{case[0]}/{case[1]}", attempts=case[1]), cases)
        for (at, attempts), (reader, generation) in zip(cases, played, strict=True):
            check(stack, fault, wire, at, attempts, reader, generation)
            again = attempts > 1 and fault.retryable and fault.outcome(wire, at)[0] is not None
            assert provider.calls[wire.name, f"{name}/{at}/{attempts}"] == 1 + again
    assert [worker.pid for worker in stack.workers if worker.alive] == workers


def check(stack: Stack, fault: Fault, wire: Wire, at: int, attempts: int, reader: Reader, generation: str) -> None:
    code, text = fault.outcome(wire, at)
    where = f"{wire.name}, {fault.name} at {at} of {len(wire.frames)}, {attempts} attempts: {reader.ended}"
    assert reader.ended is not None
    end = reader.ended.data
    assert reader.errors == [], where
    assert end["characters"] == len(reader.text), where
    said = [event for _, event in stack.log(generation) if isinstance(event, Status)]
    retried = [status.detail for status in said if status.phase == "retrying"]
    if code is None or (attempts > 1 and fault.retryable):
        assert reader.ended.event == "completed", where
        assert end["finish_reason"] == "stop", where
        assert reader.text == (text if code is None else WHOLE), where
        if fault.exact:
            assert reader.events.count("reset") == (code is not None and text != ""), where
        assert [detail["code"] for detail in retried] == ([] if code is None else [code]), where
        if fault.name == "http_429":
            assert retried[0]["delay_ms"] >= 1000
        return
    assert reader.ended.event == "failed", where
    assert (end["code"], end["retryable"]) == (code, fault.retryable), where
    assert end["partial"] == (reader.text != ""), where
    assert reader.text == text if fault.exact else text.startswith(reader.text), where
    assert retried == [], where


def test_a_provider_that_refuses_connections_is_asked_again_until_it_is_there(redis_url: str, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, and a connection is refused
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with Stack.start(redis_url, tmp_path, environment=environment(f"http://127.0.0.1:{port}")) as stack:
            for wire in WIRES:
                reader, _ = run(stack, wire, "none/0/1", attempts=1)
                assert reader.ended is not None
                end = reader.ended.data
                assert (reader.ended.event, end["code"], end["retryable"]) == ("failed", "upstream_error", True)
                assert (end["partial"], end["characters"], reader.text) == (False, 0, "")
            waiting = {wire.name: submit(stack, wire, "none/0/20", max_attempts=20) for wire in WIRES}
            for generation in waiting.values():
                eventually(lambda it=generation: stack.status(it) == "retrying", "a try has failed")  # type: ignore[misc]
            taken.close()
            with WireProvider(Provider(), port=port):
                for generation in waiting.values():
                    reader, _ = follow(stack.urls, generation)
                    assert (reader.text, reader.ended and reader.ended.event) == (WHOLE, "completed")
                    assert "reset" not in reader.events


def test_a_wait_that_no_clock_could_count_is_not_waited_for(redis_url: str, tmp_path: Path) -> None:
    headers = {"openai": "retry_after", "openai_responses": "retry_after_ms", "anthropic": "retry_after"}

    def answer(request: Received) -> Reply:
        named = {headers[BY_PATH[request.path].name]: "1e306"}
        return Reply.error(429, {"error": {"message": "not today"}}, **named)

    with (
        WireProvider(answer) as server,
        Stack.start(redis_url, tmp_path, environment=environment(server.url)) as stack,
    ):
        for wire in WIRES:
            reader, _ = run(stack, wire, "none/0/2", attempts=2)
            assert reader.ended is not None
            end = reader.ended.data
            assert (reader.ended.event, end["code"], end["retryable"]) == ("failed", "rate_limited", True)


#: What a broken server may say of the tokens that an answer took.
ODD_COUNTS: Final = ("-7", "1e30", str(10**30), str(2**63), '"many"', "[]", "{}", "true", "7.5", "null")
COUNTS: Final = {"input": 111111, "output": 222222, "cached": 333333}


def counted(wire: Wire) -> bytes:
    """A whole answer that says these `COUNTS`."""
    given, output, cached = COUNTS.values()
    match wire.name:
        case "openai":
            usage = {"prompt_tokens": given, "completion_tokens": output}
            return openai_stream(*TEXTS, usage=usage | {"prompt_tokens_details": {"cached_tokens": cached}})
        case "openai_responses":
            usage = {"input_tokens": given, "output_tokens": output}
            return responses_stream(*TEXTS, usage=usage | {"input_tokens_details": {"cached_tokens": cached}})
        case _:
            usage = {"input_tokens": given, "output_tokens": 1, "cache_read_input_tokens": cached}
            return anthropic_stream(*TEXTS, input_usage=usage, output_tokens=output)


def test_counts_that_cannot_be_right_are_shown_to_nobody(redis_url: str, tmp_path: Path) -> None:
    """What is counted are whole numbers, none below nothing; or it fails, at once, as what a broken provider said."""

    def answer(request: Received) -> Reply:
        name, odd = str(request.body["model"]).split("=")
        said = counted(BY_PATH[request.path])
        assert said.count(b": %d" % COUNTS[name]) == 1
        return Reply.events(said.replace(b": %d" % COUNTS[name], f": {odd}".encode()))

    models = [f"{name}={odd}" for name in COUNTS for odd in ODD_COUNTS]
    priced = {"LEGATO_PRICES": '{"*": {"input": 1, "cached_input": 0.5, "output": 2}}'}
    wrong = []
    with (
        WireProvider(answer) as server,
        Stack.start(redis_url, tmp_path, environment=environment(server.url) | priced) as stack,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for wire in WIRES:
            submitted = [submit(stack, wire, model, max_attempts=1) for model in models]
            for generation in submitted:
                stack.wait_status(generation, "completed", "failed")
            for model, (reader, _) in zip(models, pool.map(lambda it: follow(stack.urls, it), submitted), strict=True):
                assert reader.ended is not None
                assert reader.text == WHOLE or (reader.ended.event == "failed" and WHOLE.startswith(reader.text))
                usage = reader.ended.data.get("usage") or {}
                sane = all(type(count) is int and 0 <= count < 2**53 for count in usage.values())
                broken = reader.ended.event == "failed" and reader.ended.data["code"] == "upstream_error"
                if not broken and (reader.ended.event != "completed" or not sane):
                    wrong.append((wire.name, model, reader.ended.event, reader.ended.data))
    assert wrong == []


SECRET_PROMPT: Final = 'Dear diary,\nmy name is Ada "Lace" Lovelace, called naïve.\nMy card is 4111 1111 1111.'
SECRET_RESULT: Final = "The patient of room twelve has the flu."
SECRET_KEY: Final = "sk-proj-0123456789abcdefghijklmnop"
SECRETS: Final = ("diary", "Lovelace", "Lace", "4111 1111", "patient", "twelve", "0123456789", "abcdefghij")
SECRET_TALK: Final = [
    {"role": "user", "content": SECRET_PROMPT},
    {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": SECRET_RESULT},
]


def test_a_provider_that_echoes_prompt_and_key_leaks_them_to_nobody(redis_url: str, tmp_path: Path) -> None:
    """Not in an event, not in GET, not in a log: neither the prompt nor what a tool of this conversation gave back."""

    def answer(request: Received) -> Reply:
        wire, (how, where) = BY_PATH[request.path], str(request.body["model"]).split("/")
        key = request.headers.get("authorization") or request.headers["x-api-key"]
        message = {
            "raw": f"You said {SECRET_PROMPT} and {SECRET_RESULT}",
            "json": f"Bad body: {json.dumps(SECRET_TALK)}",
            "repr": f"Bad body: {SECRET_TALK!r}",
            "key": f"Incorrect API key provided: {SECRET_KEY}. You sent {key!r}",
        }[how]
        error = {"type": "server_error", "message": message}
        if where == "refused":
            return Reply.error(500, {"type": "error", "error": error})
        said = {
            "openai": sse({"error": error}),
            "openai_responses": responses_event("error", code="server_error", message=message, param=None),
            "anthropic": anthropic_event("error", error=error),
        }
        return Reply.events(said[wire.name])

    models = [f"{how}/{where}" for how in ("raw", "json", "repr", "key") for where in ("refused", "streamed")]
    keys = {"OPENAI_API_KEY": SECRET_KEY, "ANTHROPIC_API_KEY": SECRET_KEY, "LEGATO_LOG_LEVEL": "debug"}
    keys |= {"OPENAI_LOG": "debug", "ANTHROPIC_LOG": "debug"}  # then the SDKs log each request, body and all
    leaks = []
    with WireProvider(answer) as server:
        with Stack.start(redis_url, tmp_path, environment=environment(server.url) | keys) as stack:
            asked = [(wire, model) for wire in WIRES for model in models]
            submitted = [submit(stack, *case, messages=SECRET_TALK, max_attempts=2) for case in asked]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                readers = [reader for reader, _ in pool.map(lambda it: follow(stack.urls, it), submitted)]
            for (wire, model), generation, reader in zip(asked, submitted, readers, strict=True):
                assert reader.ended is not None
                assert reader.ended.data["code"] == "upstream_error"
                told = [str(event) for _, event in stack.log(generation)]
                told += [stack.get(f"/v1/generations/{generation}").body.decode(), str(reader.ended.data)]
                leaks += [(wire.name, model, text) for text in told if any(secret in text for secret in SECRETS)]
        logs = [process.log for process in [*stack.workers, *stack.apis]]
    assert leaks == []
    assert [secret for secret in SECRETS for log in logs if secret in log] == []
    assert len(server.requests) == 2 * len(WIRES) * len(models)


def test_the_page_says_what_is_tested() -> None:
    assert PAGE.read_text() == page()


# --- the page ---


def page() -> str:
    """docs/explanation/provider-faults.md."""
    rows = [_row(fault) for fault in FAULTS]
    refused = "| connection refused | `upstream_error` | yes | nothing |"
    first_status = next(at for at, fault in enumerate(FAULTS) if not fault.in_stream)
    rows.insert(first_status, refused)
    return "\n".join([*_HEAD, *rows, ""])


_HEAD: Final = (
    "# What becomes of a provider's faults",
    "",
    "<!-- Made by `python -m tests.acceptance.test_provider_faults`. Do not edit. -->",
    "",
    "Each fault is played at every chunk of an answer, on each wire, against real processes",
    "(`tests/acceptance/test_provider_faults.py`). With an attempt left the generation ends as `completed`, and the",
    "text is exactly that of the second answer: what was shown before is taken back by a `reset`. Without one it ends",
    "as `failed` with this `code`; `retryable` says the same as the third column, `partial` and `characters` say what",
    "the reader has.",
    "",
    "A repeated chunk cannot be told from a text that says the same twice, so it is shown as it came; a repeated",
    "terminal chunk is not read.",
    "",
    "| the provider | code | another attempt | text of the failed attempt |",
    "|---|---|---|---|",
)


def _row(fault: Fault) -> str:
    if fault.code is None:
        text = "whole, that chunk's text twice" if fault.name == "repeated" else "whole"
        return f"| {fault.what} | – | not needed | {text} |"
    except_for = [wire.name for wire in WIRES if wire.takes_long] if fault.name == "long_line" else []
    code = f"`{fault.code}`" + "".join(f"; `{name}` takes it" for name in except_for)
    before = "all that came before it" if fault.exact else "what had arrived before it"
    text = before if fault.in_stream else "nothing"
    if fault.name == "clean_end":
        ended = [f"`{wire.name}`" for wire in WIRES if wire.whole_from]
        code += f"; whole on {', '.join(ended)} behind a `finish_reason`"
    return f"| {fault.what} | {code} | {'yes' if fault.retryable else 'no'} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page())

"""How a stream ends: whole only with the provider's own marker; everything else has a name, and never looks whole."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, FinishReason
from tests.providers.wires import API_KEY, OPENAI, Wire, collect, request, text_of
from tests.support.loop_clock import move_on
from tests.support.wire_provider import Cut, End, Pause, Reply, Rst, Send, WireProvider, openai_stream
from worker.providers.base import Call, Finish, Mark, ProviderEvent

HTML = {"content-type": "text/html"}


async def play(
    server: WireProvider, wire: Wire, reply: Reply, **settings: float
) -> tuple[list[ProviderEvent], ProviderError | None]:
    server.script(reply)
    async with wire.connect(server, **settings) as provider:
        return await collect(provider.stream(Call(request())))


async def test_a_stream_with_its_marker_is_whole(server: WireProvider, wire: Wire) -> None:
    events, error = await play(server, wire, Reply.events(wire.whole("Hel", "lo")))
    assert error is None
    assert text_of(events) == "Hello"
    assert isinstance(events[-1], Finish)
    assert events[-1].finish_reason is FinishReason.STOP
    assert sum(isinstance(event, Finish) for event in events) == 1


async def test_an_empty_answer_is_whole(server: WireProvider, wire: Wire) -> None:
    """The marker came: that nothing was said is no error."""
    events, error = await play(server, wire, Reply.events(wire.whole()))
    assert error is None
    assert not any(isinstance(event, Delta) for event in events)
    assert isinstance(events[-1], Finish)
    assert events[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("in_one", [True, False], ids=["in one piece", "in pieces of their own"])
async def test_what_comes_behind_the_marker_is_not_read(server: WireProvider, wire: Wire, in_one: bool) -> None:
    """Neither the marker again, nor another answer, nor an error: the answer was whole."""
    marker = wire.whole("Hello").rstrip().rpartition(b"\n\n")[2] + b"\n\n"
    behind = (marker, wire.whole("more"), wire.error("server_error"))
    sends = (Send(wire.whole("Hello") + b"".join(behind)),) if in_one else map(Send, (wire.whole("Hello"), *behind))
    events, error = await play(server, wire, Reply(actions=(*sends, End())))
    assert error is None
    assert text_of(events) == "Hello"
    assert sum(isinstance(event, Finish) for event in events) == 1


async def test_a_mark_is_yielded_by_nobody_who_was_not_asked_for_it(server: WireProvider, wire: Wire) -> None:
    events, _ = await play(server, wire, Reply.events(wire.whole("Hel", "lo"), piece_bytes=7))
    assert not any(isinstance(event, Mark) for event in events)


@pytest.mark.parametrize(
    ("end", "chunked"),
    [(End(), True), (End(), False), (Cut(), True), (Rst(), True), (Rst(), False)],
    ids=["clean end", "close-delimited end", "cut chunked body", "reset", "reset of a close-delimited body"],
)
async def test_a_stream_without_its_marker_is_incomplete(
    server: WireProvider, wire: Wire, end: End | Cut | Rst, chunked: bool
) -> None:
    """What came before the end is passed on; a `Finish` is not."""
    reply = Reply.events(wire.unfinished("Hel", "lo"), end=end, chunked=chunked)
    events, error = await play(server, wire, reply)
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_INCOMPLETE, True)
    assert not any(isinstance(event, Finish) for event in events)
    if not isinstance(end, Rst):  # a reset may overtake what was sent before it
        assert text_of(events) == "Hello"


@pytest.mark.parametrize("end", [End(), Cut(), Rst()], ids=["clean end", "cut", "reset"])
async def test_a_stream_is_incomplete_wherever_it_is_cut(
    server: WireProvider, wire: Wire, end: End | Cut | Rst
) -> None:
    """At every frame boundary and inside frames, the text is a prefix and there is no `Finish`."""
    whole = wire.whole("Hello ", "wörld")
    marker = whole.rindex(b"data:")
    steps = sorted({at + 2 for at in range(marker) if whole[at : at + 2] == b"\n\n"} | set(range(0, marker, 97)))
    for at in steps:
        last_word_said = b'"finish_reason": "stop"' in whole[:at] and whole[:at].endswith(b"\n\n")
        if wire.name == "openai" and last_word_said and isinstance(end, End):
            continue  # whole: some servers leave [DONE] out
        events, error = await play(server, wire, Reply.events(whole[:at], end=end))
        assert error is not None, whole[:at]
        assert error.failure is FailureCode.UPSTREAM_INCOMPLETE
        assert "Hello wörld".startswith(text_of(events))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(headers=HTML, actions=(Send(b"<html>\n\n<p>data: sorry</p>\n\n"), End())),
        Reply(status=204, headers={}),
        Reply(),
        Reply(actions=(Cut(),)),
        Reply(actions=(Send(b": ping\n\n" * 3), End())),
        Reply(headers={"content-type": "application/json"}, actions=(Send(b'{"choices": []}'), End())),
    ],
    ids=["200 text/html", "204", "empty body", "empty cut body", "comments only", "200 JSON"],
)
async def test_an_answer_that_is_no_stream_is_incomplete(server: WireProvider, wire: Wire, reply: Reply) -> None:
    events, error = await play(server, wire, reply)
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_INCOMPLETE, True)


@pytest.mark.parametrize(
    "noise",
    [b": ping\n", b": ping\n\n", b"id: 7\n\n: ping\n\n", b"retry: 10\n\n", b"\xef\xbb\xbf", b"\r\n\r\n"],
    ids=["comment", "comment block", "id then comment block", "lone retry", "byte order mark", "empty lines"],
)
async def test_noise_changes_nothing(server: WireProvider, wire: Wire, noise: bytes) -> None:
    """Frames that make the SDKs' own readers raise, or lose an event."""
    whole = wire.whole("Hel", "lo")
    noisy = noise + (whole if noise[:1] == b"\xef" else whole.replace(b"\n\n", b"\n\n" + noise))
    events, error = await play(server, wire, Reply.events(noisy))
    assert error is None
    assert text_of(events) == "Hello"
    assert isinstance(events[-1], Finish)


async def test_crlf_and_compression_change_nothing(server: WireProvider, wire: Wire) -> None:
    body = gzip.compress(wire.whole("Hel", "lo").replace(b"\n", b"\r\n"))
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    events, error = await play(server, wire, Reply(headers=headers, actions=(Send(body, 3), End())))
    assert error is None
    assert text_of(events) == "Hello"


@pytest.mark.parametrize("frame", [b"data: {nonsense\n\n", b"data: 7\n\n", b"data: " + b"[" * 90_000 + b"\n\n"])
async def test_frames_that_are_not_the_protocol_are_an_error(server: WireProvider, wire: Wire, frame: bytes) -> None:
    events, error = await play(server, wire, Reply.events(wire.unfinished("Hello") + frame))
    assert text_of(events) == "Hello"
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)


@pytest.mark.parametrize(
    ("kind", "code", "retry"),
    [
        ("overloaded_error", FailureCode.UPSTREAM_ERROR, True),
        ("server_error", FailureCode.UPSTREAM_ERROR, True),
        ("api_error", FailureCode.UPSTREAM_ERROR, True),
        ("rate_limit_error", FailureCode.RATE_LIMITED, True),
        ("insufficient_quota", FailureCode.RATE_LIMITED, False),
        ("authentication_error", FailureCode.UPSTREAM_AUTH, False),
        ("invalid_request_error", FailureCode.INVALID_REQUEST, False),
        ("context_length_exceeded", FailureCode.CONTEXT_LENGTH, False),
        ("content_filter", FailureCode.CONTENT_FILTER, False),
        ("something_new", FailureCode.UPSTREAM_ERROR, True),
    ],
)
async def test_an_error_inside_the_stream_is_told_by_its_type(
    server: WireProvider, wire: Wire, kind: str, code: FailureCode, retry: bool
) -> None:
    """The HTTP status says 200; text before the error is passed on."""
    events, error = await play(server, wire, Reply.events(wire.unfinished("Hel") + wire.error(kind)))
    assert text_of(events) == "Hel"
    assert error is not None
    assert (error.failure, error.retryable) == (code, retry)
    assert "it broke" in error.message


async def test_a_silent_provider_runs_into_the_clients_timeout(
    server: WireProvider, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has said something."""
    server.script(Reply(actions=(Send(wire.unfinished("Hel")), Pause(asyncio.Event()))))
    said = asyncio.Event()

    async def noted(stream: AsyncGenerator[ProviderEvent, None]) -> AsyncGenerator[ProviderEvent, None]:
        async for event in stream:
            if isinstance(event, Delta):
                said.set()
            yield event

    async with wire.connect(server, timeout=60) as provider:
        reading = asyncio.create_task(collect(noted(provider.stream(Call(request())))))
        await said.wait()
        await move_on(60, monkeypatch)
        events, error = await reading
    assert text_of(events) == "Hel"
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)


async def test_nothing_listening_is_an_upstream_error(wire: Wire) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        async with wire.connect(WireProvider(port=taken.getsockname()[1])) as provider:
            events, error = await collect(provider.stream(Call(request())))
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)
    assert error.message.startswith(f"{provider.name} cannot be reached")


async def test_a_connection_that_is_closed_before_the_head_broke_and_did_not_time_out(wire: Wire) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = WireProvider()
    server._accept = rude  # type: ignore[assignment, method-assign]
    async with server, wire.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)
    assert error.message.startswith(f"{provider.name} broke the connection")


async def test_an_error_carries_neither_credentials_nor_a_chain_that_could(server: WireProvider, wire: Wire) -> None:
    """A traceback of it shows nothing of the request."""
    body = wire.error_body("authentication_error", f"Incorrect API key provided: {API_KEY}.")
    events, error = await play(server, wire, Reply.error(401, body))
    assert events == []
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_AUTH
    assert "Incorrect API key provided" in error.message
    assert API_KEY[:12] not in error.message
    assert error.__cause__ is None
    assert error.__suppress_context__


async def test_a_refused_request_is_not_repeated(server: WireProvider, wire: Wire) -> None:
    """Retries are the worker's; the SDK's own are off, also in a client that came with them on."""
    limited = Reply.error(429, wire.error_body("rate_limit_error", "slow down"), retry_after_ms="1500")
    server.script(limited, Reply.events(wire.whole("late")))
    async with wire.connect(server, max_retries=5) as provider:
        _, error = await collect(provider.stream(Call(request())))
    assert error is not None
    assert (error.failure, error.retryable, error.retry_after) == (FailureCode.RATE_LIMITED, True, 1.5)
    assert len(server.requests) == 1


async def test_closing_the_generator_closes_the_connection(server: WireProvider, wire: Wire) -> None:
    """In the middle of a body that would never end."""
    server.script(Reply(actions=(Send(wire.unfinished("Hel")), Pause(asyncio.Event()))))
    async with wire.connect(server) as provider:
        stream = provider.stream(Call(request()))
        while not isinstance(await anext(stream), Delta):
            pass
        assert not server.requests[0].gone.is_set()
        await stream.aclose()
        await asyncio.wait_for(server.requests[0].gone.wait(), 10)


@pytest.mark.parametrize("before_head", [True, False], ids=["before the head", "in the body"])
async def test_cancelling_the_reader_closes_the_connection(server: WireProvider, wire: Wire, before_head: bool) -> None:
    never = asyncio.Event()
    server.script(Reply(actions=(Send(wire.unfinished()), Pause(never)), hold=never if before_head else None))
    async with wire.connect(server) as provider:
        reading = asyncio.create_task(collect(provider.stream(Call(request()))))
        while not server.requests:
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(server.requests[0].gone.wait(), 10)


async def test_the_end_of_the_body_is_not_waited_for(server: WireProvider, wire: Wire) -> None:
    """`Finish` comes with the marker, and the generator ends soon after, though the server keeps the body open."""
    server.script(Reply(actions=(Send(wire.whole("Hello")), Pause(asyncio.Event()))))
    async with wire.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
        assert error is None
        assert isinstance(events[-1], Finish)
        await asyncio.wait_for(server.requests[0].gone.wait(), 10)


async def test_a_connection_is_used_again_after_a_whole_answer(server: WireProvider, wire: Wire) -> None:
    server.script(*[Reply.events(wire.whole("Hello"))] * 3)
    async with wire.connect(server) as provider:
        for _ in range(3):
            await collect(provider.stream(Call(request())))
    assert [received.connection for received in server.requests] == [1, 1, 1]


async def test_a_connection_is_used_again_by_who_stops_at_finish(server: WireProvider, wire: Wire) -> None:
    """That is how the worker reads: it asks for nothing behind the end, and closes the generator."""
    server.script(*[Reply.events(wire.whole("Hello"))] * 3)
    async with wire.connect(server) as provider:
        for _ in range(3):
            async with aclosing(provider.stream(Call(request()))) as events:
                async for event in events:
                    if isinstance(event, Finish):
                        break
    assert [received.connection for received in server.requests] == [1, 1, 1]


async def test_a_reader_that_pauses_stops_the_reading(server: WireProvider, wire: Wire) -> None:
    """Backpressure reaches the server: it cannot send a body that fits no buffer until the reader goes on."""
    texts = ["x" * 1000] * 20_000
    server.script(Reply.events(wire.whole(*texts)))
    async with wire.connect(server) as provider:
        stream = provider.stream(Call(request()))
        first = await anext(stream)
        await asyncio.sleep(0.2)
        assert not server.requests[0].gone.is_set()
        assert server.replied == 0, "20 MB cannot all be under way"
        events, error = await collect(stream)
    assert error is None
    assert text_of([first, *events]) == "x" * 20_000_000
    assert server.replied == 1


async def test_openai_done_without_a_finish_reason_is_incomplete(server: WireProvider) -> None:
    events, error = await play(server, OPENAI, Reply.events(openai_stream("Hello", finish_reason=None)))
    assert text_of(events) == "Hello"
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_INCOMPLETE


@pytest.mark.parametrize("chunked", [True, False])
async def test_openai_may_leave_out_done(server: WireProvider, chunked: bool) -> None:
    """A `finish_reason` and a clean end are enough, for some compatible servers send no more."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    reply = Reply.events(openai_stream("Hello", done=False, usage=usage), chunked=chunked)
    events, error = await play(server, OPENAI, reply)
    assert error is None
    assert isinstance(events[-1], Finish)
    assert events[-1].usage is not None


@pytest.mark.parametrize("end", [Cut(), Rst()])
async def test_openai_broken_after_its_finish_reason_is_incomplete(server: WireProvider, end: Cut | Rst) -> None:
    events, error = await play(server, OPENAI, Reply.events(openai_stream("Hello", done=False), end=end))
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_INCOMPLETE
    assert not any(isinstance(event, Finish) for event in events)


async def test_openai_finish_reason_error_is_an_error(server: WireProvider) -> None:
    _, error = await play(server, OPENAI, Reply.events(openai_stream("Hello", finish_reason="error")))
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_ERROR, True)

"""Answers that go on at the provider: marks, reading on behind one, and letting go."""

from __future__ import annotations

import asyncio
import socket
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, Json, ToolCall, ToolCallDone
from tests.providers.wires import RESPONSES, collect, request, text_of
from tests.support.loop_clock import move_on
from tests.support.wire_provider import (
    Cut,
    End,
    Pause,
    Reply,
    Send,
    WireProvider,
    responses_event,
    responses_frames,
    responses_stream,
)
from worker.providers import openai_responses
from worker.providers.base import Call, Finish, Mark, ProviderEvent, ResumeImpossible
from worker.providers.openai_responses import OpenAIResponsesProvider

BACKGROUND = {"background": True}
TOKEN = {"response_id": "resp_1", "sequence_number": 4, "calls": []}

#: Reasoning, text with a character that is cut in two, calls, usage: 40 events.
WHOLE = responses_frames(
    responses_stream(
        "Hel",
        "lo @",
        "§ you",
        reasoning=["h", "m"],
        summary=["in short"],
        tools=[("c1", "f", ('{"a":', "[1,", "2]}")), ("c2", "g", ()), ("c3", "h", ("[", "]"))],
        usage={"input_tokens": 1, "output_tokens": 2},
    )
)
WHOLE = [frame.replace(b"@", rb"\ud83d").replace("§".encode(), rb"\ude00") for frame in WHOLE]


def asked(options: Json = BACKGROUND, **call: Any) -> Call:
    return Call(request(provider_options=options), **call)


async def play(server: WireProvider, call: Call, *replies: Reply) -> tuple[list[ProviderEvent], ProviderError | None]:
    server.script(*replies)
    async with RESPONSES.connect(server) as provider:
        return await collect(provider.stream(call))


def reply(frames: list[bytes], *, end: Cut | End = End()) -> Reply:  # noqa: B008
    """One HTTP chunk a frame."""
    return Reply(actions=(*map(Send, frames), end))


def said(events: list[ProviderEvent]) -> list[ProviderEvent]:
    return [event for event in events if not isinstance(event, Mark)]


def up_to_last_mark(events: list[ProviderEvent]) -> tuple[list[ProviderEvent], Json | None]:
    at = max((at for at, event in enumerate(events) if isinstance(event, Mark)), default=None)
    if at is None:
        return [], None
    mark = events[at]
    assert isinstance(mark, Mark)
    return said(events[:at]), mark.token


async def test_only_what_goes_on_in_the_background_has_marks(server: WireProvider) -> None:
    events, _ = await play(server, asked({}), reply(WHOLE))
    assert not any(isinstance(event, Mark) for event in events)
    marked, error = await play(server, asked(), reply(WHOLE))
    assert error is None
    assert said(marked) == events
    assert any(isinstance(event, Mark) for event in marked)
    assert isinstance(marked[-1], Finish), "a mark behind the end is of no use"


async def test_a_mark_stands_at_once_so_that_nothing_is_paid_twice(server: WireProvider) -> None:
    """Behind `response.created`, before any text; a pause of the server changes nothing about it."""
    server.script(Reply(actions=(Send(WHOLE[0]), Pause(asyncio.Event()))))
    async with RESPONSES.connect(server) as provider:
        stream = provider.stream(asked())
        assert await anext(stream) == Mark(token={"response_id": "resp_1", "sequence_number": 0, "calls": []})
        await stream.aclose()


async def test_marks_stand_at_clean_points_only(server: WireProvider) -> None:
    """Never inside a call or a character; and behind every piece of body that ends at such a point."""
    server.script(reply(WHOLE))
    async with RESPONSES.connect(server) as provider:
        events, _ = await collect(provider.stream(asked()))
    open_calls: set[int] = set()
    text = ""
    for event in events:
        match event:
            case ToolCall(index=index):
                open_calls.add(index)
            case ToolCallDone(index=index):
                open_calls.discard(index)
            case Delta():
                text += event.text
            case Mark():
                assert not open_calls
    assert "Hello 😀 you" in text
    numbers = [event.token["sequence_number"] for event in events if isinstance(event, Mark)]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("cut", range(1, len(WHOLE)))
async def test_marks_and_what_follows_them_are_the_whole(server: WireProvider, cut: int) -> None:
    """Cut behind every event, inside calls and characters too: nothing twice, nothing missing, calls counted on."""
    events, _ = await play(server, asked({}), reply(WHOLE))
    first, error = await play(server, asked(), reply(WHOLE[:cut], end=Cut()))
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_INCOMPLETE
    before, token = up_to_last_mark(first)
    assert token is not None
    place = token["sequence_number"]
    rest, error = await play(server, asked(resume=token, attempt=2), reply(WHOLE[place + 1 :]))
    assert error is None
    assert before + said(rest) == events
    sent = server.requests[-1]
    url = urlsplit(sent.path)
    assert (sent.method, url.path) == ("GET", "/v1/responses/resp_1")
    assert parse_qs(url.query) == {"stream": ["true"], "starting_after": [str(place)]}


async def test_a_stream_that_is_cut_again_and_again_is_whole(server: WireProvider) -> None:
    """One more event each time."""
    events, _ = await play(server, asked({}), reply(WHOLE))
    got: list[ProviderEvent] = []
    token: Json | None = None
    reached = 0
    while not (got and isinstance(got[-1], Finish)):
        place = -1 if token is None else token["sequence_number"]
        reached = max(reached, place) + 1
        frames = WHOLE[place + 1 : reached + 1]
        part, _ = await play(server, asked(resume=token), reply(frames, end=Cut()))
        before, fresh = up_to_last_mark(part)
        got += said(part) if part and isinstance(part[-1], Finish) else before
        token = fresh or token
    assert got == events


@pytest.mark.parametrize("cut", range(3, len(WHOLE), 2))
async def test_a_server_that_repeats_everything_repeats_nothing_here(server: WireProvider, cut: int) -> None:
    """Some ignore `starting_after`: what stands before the mark is passed over."""
    events, _ = await play(server, asked({}), reply(WHOLE))
    first, _ = await play(server, asked(), reply(WHOLE[:cut], end=Cut()))
    before, token = up_to_last_mark(first)
    rest, error = await play(server, asked(resume=token), reply(WHOLE))
    assert error is None
    assert before + said(rest) == events


async def test_a_server_that_does_not_count_has_no_marks(server: WireProvider) -> None:
    frames = responses_stream("Hello", named=False).replace(b'"sequence_number": 0, ', b"")
    events, error = await play(server, asked(), Reply.events(frames))
    assert error is None
    assert not any(isinstance(event, Mark) for event in events)
    assert text_of(events) == "Hello"


async def test_too_many_calls_to_remember_are_not_marked(server: WireProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token stays short."""
    monkeypatch.setattr(openai_responses, "_MOST_MARKED_CALLS", 1)
    events, error = await play(server, asked(), reply(WHOLE))
    assert error is None
    marks = [event.token for event in events if isinstance(event, Mark)]
    assert marks
    assert all(len(token["calls"]) <= 1 for token in marks)


async def test_what_the_request_needs_to_get_through_it_needs_again(server: WireProvider) -> None:
    options = BACKGROUND | {"extra_headers": {"x-gate": "g"}, "extra_query": {"v": "2"}, "include": ["a"]}
    await play(server, asked(options, resume=TOKEN), reply(WHOLE))
    assert server.requests[0].headers["x-gate"] == "g"
    query = parse_qs(urlsplit(server.requests[0].path).query)
    assert (query["v"], query["starting_after"]) == (["2"], ["4"])
    assert "a" in str(query)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
async def test_an_answer_that_is_gone_cannot_be_resumed(server: WireProvider, status: int) -> None:
    """Which is told apart, so that the worker may start anew."""
    gone = Reply.error(status, {"error": {"message": "no such response", "type": "invalid_request_error"}})
    events, error = await play(server, asked(resume=TOKEN), gone)
    assert events == []
    assert isinstance(error, ResumeImpossible)
    assert (error.failure, error.retryable) == (FailureCode.UPSTREAM_INCOMPLETE, True)
    assert "does not know this answer any more" in error.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, FailureCode.UPSTREAM_AUTH), (429, FailureCode.RATE_LIMITED), (503, FailureCode.UPSTREAM_ERROR)],
)
async def test_other_trouble_does_not_end_the_hope(server: WireProvider, status: int, code: FailureCode) -> None:
    refused = Reply.error(status, {"error": {"message": "not now", "type": "x"}})
    events, error = await play(server, asked(resume=TOKEN), refused)
    assert events == []
    assert error is not None
    assert error.failure is code
    assert not isinstance(error, ResumeImpossible)


@pytest.mark.parametrize(
    "token",
    [{}, {"shown": 3}, TOKEN | {"response_id": ""}, TOKEN | {"sequence_number": "4"}, TOKEN | {"calls": ["a"]}],
)
async def test_a_token_of_somebody_else_is_not_sent(server: WireProvider, token: Json) -> None:
    events, error = await play(server, asked(resume=token))
    assert events == []
    assert isinstance(error, ResumeImpossible)
    assert server.requests == []


async def test_a_failure_behind_the_mark_is_a_failure(server: WireProvider) -> None:
    failed = responses_event(
        "response.failed", response={"error": {"code": "server_error", "message": "it broke"}}
    ).replace(b'"sequence_number": 0', b'"sequence_number": 9')
    events, error = await play(server, asked(resume=TOKEN), Reply.events(failed))
    assert events == []
    assert error is not None
    assert error.failure is FailureCode.UPSTREAM_ERROR
    assert not isinstance(error, ResumeImpossible)


async def test_what_nobody_reads_is_cancelled_there(server: WireProvider) -> None:
    server.script(Reply.error(200, {"id": "resp_1", "object": "response", "status": "cancelled"}))
    async with RESPONSES.connect(server) as provider:
        await provider.abandon(TOKEN)
    assert [(sent.method, sent.path) for sent in server.requests] == [("POST", "/v1/responses/resp_1/cancel")]


async def test_letting_go_never_raises_and_never_waits_long(
    server: WireProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses, one that says nothing, none at all, a token that is none, no key."""
    server.script(Reply.error(500, {}), Reply(hold=asyncio.Event()))
    async with RESPONSES.connect(server) as provider:
        await provider.abandon(TOKEN)
        leaving = asyncio.create_task(provider.abandon(TOKEN))
        while len(server.requests) < 2:
            await asyncio.sleep(0.001)
        await move_on(openai_responses.ABANDON_SECONDS, monkeypatch)
        await leaving
        await provider.abandon({})
    assert len(server.requests) == 2, "and is not repeated"
    await OpenAIResponsesProvider().abandon(TOKEN)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        async with RESPONSES.connect(WireProvider(port=taken.getsockname()[1])) as provider:
            await provider.abandon(TOKEN)

"""The `sim` provider: deterministic text, faults where they were asked for."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, FinishReason, ToolCall, ToolCallDone, Usage, UsageReport
from broker.generation import Request
from worker.providers.base import Call, Finish, Mark, ProviderEvent, ResumeImpossible
from worker.providers.sim import DEFAULT_TOKENS, RETRY_AFTER_SECONDS, SimProvider, sim_text, sim_tokens


def ask(options: dict[str, Any], *, messages: list[dict[str, Any]] | None = None) -> Request:
    return Request(
        provider="sim", model="sim", messages=messages or [{"role": "user", "content": "hi"}], provider_options=options
    )


async def collect(options: dict[str, Any], *, attempt: int = 1) -> tuple[list[ProviderEvent], ProviderError | None]:
    events: list[ProviderEvent] = []
    try:
        async for event in SimProvider().stream(Call(ask(options), attempt=attempt)):
            events.append(event)
    except ProviderError as exc:
        return events, exc
    return events, None


def texts(events: list[ProviderEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, Delta)]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), chunk_chars=st.integers(1, 7))
async def test_text_comes_back_verbatim_in_chunks_of_code_points(text: str, chunk_chars: int) -> None:
    """Cut anywhere between code points, joined it is the same."""
    events, error = await collect({"text": text, "chunk_chars": chunk_chars})
    assert error is None
    assert "".join(texts(events)) == text
    assert all(len(chunk) == chunk_chars for chunk in texts(events)[:-1])
    assert all(texts(events))


async def test_text_comes_in_chunks_of_four_where_nothing_is_said() -> None:
    events, _ = await collect({"text": "abcdefghi"})
    assert texts(events) == ["abcd", "efgh", "i"]


async def test_the_same_seed_gives_the_text_that_the_command_line_prints() -> None:
    """One token a chunk; another seed, another text."""
    events, _ = await collect({"tokens": 50, "seed": 7})
    assert texts(events) == list(sim_tokens(50, 7))
    assert "".join(texts(events)) == sim_text(50, 7)
    assert sim_text(50, 8) != sim_text(50, 7)
    assert sim_text(60, 7).startswith(sim_text(50, 7))


def test_generated_text_never_changes_between_versions() -> None:
    """Benchmarks and client tests hold on to it; a new word list is a breaking change."""
    digest = hashlib.sha256(sim_text(1000, 42).encode()).hexdigest()
    assert digest == "43fb38ba40a8c864daca587417a1248c870f3d159cb2c8bfe9f88e4fd6279b7d"


async def test_chunk_chars_regroups_generated_text() -> None:
    events, _ = await collect({"tokens": 20, "seed": 1, "chunk_chars": 3})
    assert "".join(texts(events)) == sim_text(20, 1)
    assert {len(chunk) for chunk in texts(events)[:-1]} == {3}


async def test_no_options_give_the_default_text() -> None:
    events, _ = await collect({})
    assert "".join(texts(events)) == sim_text(DEFAULT_TOKENS, 0)


async def test_an_answer_ends_with_usage_and_finish() -> None:
    """Input tokens are the words of all messages, typed parts too; output tokens are the chunks."""
    parts = [{"type": "text", "text": "four five"}, {"type": "image_url", "image_url": {"url": "u"}}]
    messages: list[dict[str, Any]] = [{"role": "system", "content": "one two three"}]
    messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    stream = SimProvider().stream(Call(ask({"text": "abcdef"}, messages=messages)))
    events = [event async for event in stream]
    usage = Usage(input_tokens=5, output_tokens=2)
    assert events[2:] == [UsageReport(usage=usage), Finish(finish_reason=FinishReason.STOP, usage=usage)]


@pytest.mark.parametrize(
    ("kind", "code", "retry_after"),
    [
        ("error", FailureCode.UPSTREAM_ERROR, None),
        ("rate_limit", FailureCode.RATE_LIMITED, RETRY_AFTER_SECONDS),
        ("truncate", FailureCode.UPSTREAM_INCOMPLETE, None),
    ],
)
@pytest.mark.parametrize("at_token", [0, 2, 5])
async def test_a_fault_comes_instead_of_its_chunk(
    kind: str, code: FailureCode, retry_after: float | None, at_token: int
) -> None:
    """Exactly `at_token` chunks come before it; the number of all chunks means before the end marker."""
    events, error = await collect({"tokens": 5, "faults": [{"at_token": at_token, "kind": kind}]})
    assert error is not None
    assert (error.failure, error.retryable, error.retry_after) == (code, True, retry_after)
    assert texts(events) == list(sim_tokens(5, 0))[:at_token]
    assert len(events) == at_token


async def test_a_fault_behind_the_end_never_comes() -> None:
    events, error = await collect({"tokens": 5, "faults": [{"at_token": 6, "kind": "error"}]})
    assert error is None
    assert isinstance(events[-1], Finish)


async def test_a_fault_of_one_attempt_spares_the_others() -> None:
    options = {"tokens": 5, "faults": [{"at_token": 3, "kind": "error", "attempt": 1}]}
    assert (await collect(options, attempt=1))[1] is not None
    assert (await collect(options, attempt=2))[1] is None


async def test_the_first_fault_that_is_due_wins() -> None:
    faults = [
        {"at_token": 4, "kind": "truncate"},
        {"at_token": 1, "kind": "error", "attempt": 2},
        {"at_token": 2, "kind": "rate_limit"},
    ]
    events, error = await collect({"tokens": 9, "faults": faults}, attempt=1)
    assert error is not None
    assert (error.failure, len(events)) == (FailureCode.RATE_LIMITED, 2)


async def test_a_stall_lasts_until_the_reader_gives_up() -> None:
    stream = SimProvider().stream(Call(ask({"text": "abcdefgh", "faults": [{"at_token": 1, "kind": "stall"}]})))
    assert await anext(stream) == Delta(text="abcd")
    waiting = asyncio.ensure_future(anext(stream))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.aclose()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"text": 1}, "provider_options.text"),
        ({"tokens": -1}, "provider_options.tokens"),
        ({"tokens": "9"}, "provider_options.tokens"),
        ({"tokens": 10**9}, "provider_options.tokens"),
        ({"tokens_per_second": -1}, "provider_options.tokens_per_second"),
        ({"tokens_per_second": float("nan")}, "provider_options.tokens_per_second"),
        ({"first_token_ms": -1}, "provider_options.first_token_ms"),
        ({"chunk_chars": 0}, "provider_options.chunk_chars"),
        ({"speed": 1}, "provider_options.speed"),
        ({"faults": [{"at_token": 0, "kind": "boom"}]}, "provider_options.faults.0.kind"),
        ({"faults": [{"at_token": 0, "kind": "error", "attempt": 0}]}, "provider_options.faults.0.attempt"),
        ({"faults": [{"kind": "error"}]}, "provider_options.faults.0.at_token"),
        ({"text": "a", "tokens": 1}, "text, tokens and turns"),
    ],
)
async def test_bad_options_are_refused_by_name(options: dict[str, Any], field: str) -> None:
    """And are not worth another try. What was sent is not repeated in the message."""
    events, error = await collect(options)
    assert events == []
    assert error is not None
    assert (error.failure, error.retryable) == (FailureCode.INVALID_REQUEST, False)
    assert field in error.message


class FakeClock:
    """Stands in for the loop's clock and for sleeping; time passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr("worker.providers.sim.asyncio.sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_chunks_follow_an_absolute_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late reader does not shift what comes after: no drift."""
    clock = FakeClock(monkeypatch)
    times: list[float] = []
    options = {"tokens": 6, "tokens_per_second": 10, "first_token_ms": 500}
    async for event in SimProvider().stream(Call(ask(options))):
        if isinstance(event, Delta):
            times.append(clock.now - 1000.0)
            if len(times) == 2:
                clock.now += 0.25  # the reader was busy
    assert times == pytest.approx([0.5, 0.6, 0.85, 0.85, 0.9, 1.0])


async def test_full_speed_still_lets_others_run() -> None:
    """A counter task gets its turns while 1000 tokens go by."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    await collect({"tokens": 1000})
    counter.cancel()
    assert turns >= 100


# --- turns ---


def turns(*messages: str) -> list[dict[str, Any]]:
    """`u` a message of the user, `c` an assistant's turn with a call and its result, `a` one without."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    kinds: dict[str, list[dict[str, Any]]] = {
        "u": [{"role": "user", "content": "hi"}],
        "a": [{"role": "assistant", "content": "ok"}],
        "c": [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "done"},
        ],
    }
    return [message for kind in messages for message in kinds[kind]]


async def play(options: dict[str, Any], messages: list[dict[str, Any]] | None = None, **call: Any) -> list[Any]:
    stream = SimProvider().stream(Call(ask(options, messages=messages), **call))
    return [event async for event in stream]


LOOP = {
    "turns": [
        {"text": "I look.", "tool_calls": [{"name": "weather", "arguments": {"city": "Bern"}}, {"name": "now"}]},
        {"tool_calls": [{"name": "weather", "arguments": "no JSON", "id": "mine"}]},
        {"text": "Rain."},
    ]
}


async def test_a_turn_with_calls_streams_them_and_ends_in_them() -> None:
    """Arguments in fragments, as real models send them; ids of their own for each turn and call."""
    events = await play(LOOP)
    usage = Usage(input_tokens=1, output_tokens=7)
    assert events == [
        Delta(text="I lo"),
        Delta(text="ok."),
        ToolCall(index=0, id="call_0_0", name="weather", arguments='{"ci'),
        ToolCall(index=0, arguments='ty":'),
        ToolCall(index=0, arguments='"Ber'),
        ToolCall(index=0, arguments='n"}'),
        ToolCallDone(index=0, id="call_0_0", name="weather", arguments='{"city":"Bern"}'),
        ToolCall(index=1, id="call_0_1", name="now", arguments="{}"),
        ToolCallDone(index=1, id="call_0_1", name="now", arguments="{}"),
        UsageReport(usage=usage),
        Finish(finish_reason=FinishReason.TOOL_CALLS, usage=usage),
    ]


@pytest.mark.parametrize(
    ("messages", "played"),
    [("u", 0), ("uc", 1), ("ucc", 2), ("uccc", 2), ("uca", 1), ("ucu", 0), ("uccauc", 1), ("", 0)],
)
async def test_the_turn_is_told_by_the_calls_behind_the_last_word_of_the_user(messages: str, played: int) -> None:
    """The last one is repeated, so a loop that never ends can be had."""
    events = await play(LOOP, turns(*messages))
    said = ["I look.", "", "Rain."][played]
    assert "".join(texts(events)) == said
    ids = [event.id for event in events if isinstance(event, ToolCallDone)]
    assert ids == [["call_0_0", "call_0_1"], ["mine"], []][played]
    finish = FinishReason.STOP if played == 2 else FinishReason.TOOL_CALLS
    assert events[-1].finish_reason is finish


async def test_an_empty_turn_is_a_whole_answer() -> None:
    events = await play({"turns": [{}]})
    assert [type(event) for event in events] == [UsageReport, Finish]


async def test_a_partial_text_is_gone_on_from_in_a_turn() -> None:
    events = await play(LOOP, partial="I look")
    assert events[0] == Delta(text=".")
    assert sum(isinstance(event, ToolCallDone) for event in events) == 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"turns": []}, "provider_options.turns"),
        ({"turns": [{"say": "x"}]}, "provider_options.turns.0.say"),
        ({"turns": [{"tool_calls": [{"name": ""}]}]}, "provider_options.turns.0.tool_calls.0.name"),
        ({"turns": [{"tool_calls": [{"arguments": {}}]}]}, "provider_options.turns.0.tool_calls.0.name"),
        ({"turns": [{"text": "a"}], "text": "b"}, "text, tokens and turns"),
        ({"resumable": 1}, "provider_options.resumable"),
    ],
)
async def test_bad_turns_are_refused_by_name(options: dict[str, Any], field: str) -> None:
    events, error = await collect(options)
    assert events == []
    assert error is not None
    assert error.failure is FailureCode.INVALID_REQUEST
    assert field in error.message


# --- marks ---


@pytest.mark.parametrize("options", [{"tokens": 9}, {"text": "abcdefghi", "chunk_chars": 2}, LOOP])
async def test_what_follows_a_mark_is_what_was_missing(options: dict[str, Any]) -> None:
    """Behind every mark, in text and between calls; the marks change nothing of what is said."""
    plain = await play(options)
    marked = await play(options | {"resumable": True})
    assert [event for event in marked if not isinstance(event, Mark)] == plain
    assert not any(isinstance(event, Mark) for event in plain)
    places = [at for at, event in enumerate(marked) if isinstance(event, Mark)]
    assert places
    for at in places:
        before = [event for event in marked[:at] if not isinstance(event, Mark)]
        assert not isinstance(before[-1], ToolCall), "a call is half-way"
        rest = await play(options | {"resumable": True}, resume=marked[at].token, attempt=2)
        assert before + [event for event in rest if not isinstance(event, Mark)] == plain


async def test_a_mark_counts_what_was_shown() -> None:
    events = await play({"text": "abcdef", "chunk_chars": 4, "resumable": True})
    assert events[:4] == [
        Delta(text="abcd"),
        Mark(token={"shown": 1}),
        Delta(text="ef"),
        Mark(token={"shown": 2}),
    ]


async def test_resuming_is_not_going_on_from_a_text() -> None:
    """The mark says it all."""
    events = await play({"text": "abcdef", "resumable": True}, resume={"shown": 1}, partial="abcdef")
    assert "".join(texts(events)) == "ef"


@pytest.mark.parametrize("token", [{}, {"shown": -1}, {"shown": "1"}, {"response_id": "resp_1"}])
async def test_a_mark_of_somebody_else_cannot_be_resumed(token: dict[str, Any]) -> None:
    with pytest.raises(ResumeImpossible):
        await play({"text": "abcdef", "resumable": True}, resume=token)


async def test_a_fault_before_a_mark_is_over() -> None:
    options = {"tokens": 6, "resumable": True, "faults": [{"at_token": 3, "kind": "error"}]}
    with pytest.raises(ProviderError):
        await play(options)
    events = await play(options, resume={"shown": 4})
    assert texts(events) == list(sim_tokens(6, 0))[4:]


async def test_what_was_skipped_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    options = {"tokens": 6, "tokens_per_second": 10, "resumable": True}
    async for event in SimProvider().stream(Call(ask(options), resume={"shown": 4})):
        if isinstance(event, Delta):
            assert clock.now - 1000.0 == pytest.approx(0.0)
            break

"""The `sim` provider: deterministic text, faults where they were asked for."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProviderError
from broker.events import Delta, FailureCode, FinishReason, Usage, UsageReport
from broker.generation import Request
from worker.providers.base import Call, Finish, ProviderEvent
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
        ({"text": "a", "tokens": 1}, "text and tokens"),
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

"""A provider's throttle under several workers at random: they ask, call, ask twice, end, end twice, wait and vanish.

Time is the schedule's: the scripts go by a clock that stands still between its steps. What is checked is counted
here, from the answers alone: who runs, what went in each minute, who tries while the circuit is not closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.declared import ProviderLimits
from broker.embedded import EmbeddedServer
from broker.settings import Settings
from broker.store import Store
from broker.throttle import LEASES, MOST_PROBES, Admitted, Circuit, Outcome, Refused, Throttle, Wait
from tests.property.schedules import TIMEOUT_SECONDS, schedules
from tests.support.servers import ExternalServer
from tests.support.still_clock import StillClock

PROVIDER: Final = "openai"
MINUTE_MS: Final = 60_000
LEASE_MS: Final = LEASES * 10_000
OPEN_MS: Final = 20_000
WINDOW_MS: Final = 60_000
MIN_CALLS: Final = 4
RETRY_FLOOR, RETRY_RATIO = 3, 0.5
#: The minute of the retry budget is counted in parts of this.
PART_MS: Final = 10_000
#: Holders that wait at once before others ask.
MOST_WAITING: Final = 5
#: Rounds in the end, for each who waits: the largest request needs a full bucket, and that pays for another's debt.
PLENTY: Final = 100
#: Those who wait come back so much later than they were told; they keep their turns.
LATE_MS: Final = 2000
#: So many rounds of them see others come, too.
LATE_ROUNDS: Final = 10

T = TypeVar("T")

picks = st.integers(0, 10**6)
sizes = st.sampled_from([0, 1, 50, 300, 300, 1000, 1500])
outcomes = st.sampled_from([Outcome.OK, Outcome.OK, Outcome.FAILED, Outcome.FAILED, Outcome.NEUTRAL])
#: Pauses of the schedule, in ms.
pauses = st.sampled_from([100, 1000, 5000, 5000, 12_000, 12_000])
limits = st.builds(
    ProviderLimits,
    concurrency=st.sampled_from([None, 2, 3, 5]),
    requests_per_minute=st.sampled_from([None, None, 4]),
    tokens_per_minute=st.sampled_from([None, 1000]),
)


@dataclass(slots=True)
class Holder:
    """One call, or somebody who wants to make it."""

    name: str
    tokens: int
    retry: bool
    began_ms: int = -1
    probe: bool = False


class Stage:
    """Connections to the throttle under test."""

    def __init__(self, url: str, prefix: str) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self._loop = asyncio.new_event_loop()
        settings = Settings(
            prefix=prefix,
            lease_seconds=LEASE_MS / LEASES / 1000,
            breaker_window_seconds=WINDOW_MS / 1000,
            breaker_min_calls=MIN_CALLS,
            breaker_open_seconds=OPEN_MS / 1000,
            retry_floor=RETRY_FLOOR,
            retry_ratio=RETRY_RATIO,
        )
        self._store = self.call(_open(url, settings))
        self.keys = self._store.keys
        self.clock = StillClock(self._store)
        self.ids = count(1)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def throttle(self, chosen: ProviderLimits) -> Throttle:
        """A new one, of a provider that nobody has used yet."""
        self.redis.delete(*self.names())
        self._store.settings = self._store.settings.model_copy(update={"provider_limits": {PROVIDER: chosen}})
        return Throttle(self._store)

    def names(self) -> list[str]:
        keys = self.keys
        all_of_it = (keys.throttle, keys.running, keys.calls, keys.probes, keys.waiting, keys.asked)
        return [key(PROVIDER) for key in all_of_it]

    def counted(self) -> dict[bytes, bytes]:
        """Buckets, circuit and budget: everything that a repeated call could change for others, but slots."""
        return dict(self.redis.hgetall(self.keys.throttle(PROVIDER)))

    def slots(self) -> int:
        """Slots that are taken."""
        return int(self.redis.zcount(self.keys.running(PROVIDER), f"({self.clock.ms}", "+inf"))

    def close(self) -> None:
        self.call(self._store.aclose())
        self._loop.close()
        self.redis.close()


async def _open(url: str, settings: Settings) -> Store:
    return Store(url, settings)


@pytest.fixture
def stage(redis_server: EmbeddedServer | ExternalServer, prefix: str) -> Iterator[Stage]:
    stage = Stage(redis_server.url, prefix)
    yield stage
    stage.close()


class Schedule(RuleBasedStateMachine):
    """Several workers and one provider."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.limits = ProviderLimits()
        self.throttle = stage.throttle(self.limits)
        self.waiting: list[Holder] = []
        self.running: list[Holder] = []
        self.vanished: list[Holder] = []
        self.ended: list[Holder] = []
        self.spent: list[tuple[int, int]] = []  # when, tokens: estimates at their start, corrections at their end
        self.started: list[tuple[int, bool]] = []  # when, whether it was a retry
        self.verdicts: list[tuple[int, bool]] = []  # when, whether it failed; since the circuit closed
        self.closed_at_ms = self.now_ms

    @property
    def now_ms(self) -> int:
        return self.stage.clock.ms

    @property
    def circuit(self) -> Circuit:
        return self.stage.call(self.throttle.state(PROVIDER)).circuit

    # Rules.

    @initialize(chosen=limits)
    def it_is_configured(self, chosen: ProviderLimits) -> None:
        self.limits = chosen
        self.throttle = self.stage.throttle(chosen)

    @precondition(lambda self: len(self.waiting) < MOST_WAITING)
    @rule(tokens=sizes, retry=st.sampled_from([False, False, True]), times=st.integers(1, 3))
    def somebody_asks(self, tokens: int, retry: bool, times: int) -> None:
        for _ in range(times):
            self.ask(Holder(f"h{next(self.stage.ids)}", tokens, retry))

    @precondition(lambda self: self.waiting)
    @rule(which=picks, times=st.integers(1, 4))
    def those_who_wait_ask_again(self, which: int, times: int) -> None:
        for at in range(times):
            if self.waiting:
                self.ask(self.waiting[(which + at) % len(self.waiting)])

    @precondition(lambda self: self.waiting)
    @rule(which=picks)
    def one_who_waits_gives_up(self, which: int) -> None:
        holder = self.waiting.pop(which % len(self.waiting))
        before = self.stage.counted()
        self.stage.call(self.throttle.settle(PROVIDER, holder.name, Outcome.NEUTRAL))
        assert self.stage.counted() == before, "what never ran costs nothing"

    @precondition(lambda self: self.waiting)
    @rule(which=picks)
    def one_who_waits_vanishes(self, which: int) -> None:
        self.waiting.pop(which % len(self.waiting))

    @precondition(lambda self: self.running)
    @rule(which=picks)
    def an_answer_was_lost_and_it_asks_again(self, which: int) -> None:
        holder = self.running[which % len(self.running)]
        before, slots = self.stage.counted(), self.stage.slots()
        admit = self.throttle.admit(PROVIDER, holder.name, tokens=holder.tokens, retry=holder.retry)
        assert self.stage.call(admit) == Admitted(), "it was"
        assert self.stage.counted() == before, "and pays nothing again"
        assert self.stage.slots() <= slots

    @precondition(lambda self: self.running)
    @rule(which=picks, outcome=outcomes, used=st.sampled_from([None, 0, 1, 300, 1500]), times=st.integers(1, 3))
    def a_call_ends(self, which: int, outcome: Outcome, used: int | None, times: int) -> None:
        for _ in range(times):
            if self.running:
                self.end(self.running[which % len(self.running)], outcome, used)

    @precondition(lambda self: self.ended)
    @rule(which=picks, outcome=outcomes)
    def an_end_is_reported_again(self, which: int, outcome: Outcome) -> None:
        before = self.stage.counted(), self.stage.slots()
        holder = self.ended[which % len(self.ended)]
        self.stage.call(self.throttle.settle(PROVIDER, holder.name, outcome, tokens=0, hold_ms=50_000))
        counted, slots = self.stage.counted(), self.stage.slots()
        assert counted == before[0], "it counts once"
        assert slots <= before[1]

    @precondition(lambda self: self.running)
    @rule(which=picks)
    def a_worker_vanishes(self, which: int) -> None:
        self.vanished.append(self.running.pop(which % len(self.running)))

    @rule(ms=pauses)
    def time_passes(self, ms: int) -> None:
        """The workers that are there keep their slots."""
        self.stage.clock.ms += ms
        self.stage.call(self.throttle.keep(PROVIDER, [holder.name for holder in self.running]))

    # What is always so.

    @invariant()
    def no_more_run_than_may(self) -> None:
        if most := self.limits.concurrency:
            assert len(self.running) <= most
            assert self.stage.slots() <= most
        state = self.stage.call(self.throttle.state(PROVIDER))
        assert len(self.running) <= state.in_flight <= len(self.running) + len(self.vanished)

    def teardown(self) -> None:
        """In the end everybody who keeps asking is admitted, though others come later and ask before it."""
        patient = [*self.waiting]
        for at in range(PLENTY * len(patient)):
            if not self.waiting:
                break
            if at < LATE_ROUNDS:
                self.ask(Holder(f"h{next(self.stage.ids)}", 1, False))
            told_ms = [self.ask(holder) for holder in reversed([*self.waiting])]
            for holder in [*self.running]:
                self.end(holder, Outcome.OK, None)
            self.time_passes(min(told_ms) + LATE_MS)
        assert not self.waiting, "a turn comes for everybody"

    # What the rules are made of.

    def ask(self, holder: Holder) -> int:
        """How long it is to wait, in ms; 0 if it has an answer."""
        before, before_ms = self.circuit, self.now_ms
        answer = self.stage.call(self.throttle.admit(PROVIDER, holder.name, tokens=holder.tokens, retry=holder.retry))
        circuit = self.circuit
        if holder in self.waiting:
            self.waiting.remove(holder)
        match answer:
            case Wait(wait_ms=wait_ms, reason=reason):
                assert wait_ms > 0
                assert self.limits != ProviderLimits() or reason == "circuit_open", "nothing else to wait for"
                self.waiting.append(holder)
                return wait_ms
            case Refused():
                assert holder.retry, "a first call is never refused"
                return 0
        holder.began_ms = self.now_ms
        holder.probe = circuit is not Circuit.CLOSED
        assert not before is circuit is Circuit.OPEN, "an open circuit admits nobody"
        if circuit is Circuit.HALF_OPEN:
            trying = [one for one in (*self.running, *self.vanished) if one.probe]
            young = [one for one in trying if self.now_ms - one.began_ms < OPEN_MS]
            assert len(young) < MOST_PROBES, "a few try, and nobody else"
        self.running.append(holder)
        self.spent.append((holder.began_ms, holder.tokens))
        self.started.append((holder.began_ms, holder.retry))
        self.check_budget()
        self.check_requests(before_ms)
        self.check_tokens(before_ms, holder.tokens)
        return 0

    def end(self, holder: Holder, outcome: Outcome, used: int | None) -> None:
        before = self.circuit
        self.stage.call(self.throttle.settle(PROVIDER, holder.name, outcome, tokens=used))
        circuit = self.circuit
        self.running.remove(holder)
        self.ended.append(holder)
        if used is not None:
            self.spent.append((self.now_ms, used - holder.tokens))
        if before is not Circuit.CLOSED:
            if circuit is Circuit.CLOSED:
                assert outcome is Outcome.OK, "a probe that was well closes it"
                self.verdicts, self.closed_at_ms = [], self.now_ms
            return
        if outcome is not Outcome.NEUTRAL and holder.began_ms >= self.closed_at_ms and not holder.probe:
            self.verdicts.append((self.now_ms, outcome is Outcome.FAILED))
        ages = [self.now_ms - at_ms for at_ms, _ in self.verdicts]
        if any(WINDOW_MS * 0.8 < age < WINDOW_MS * 1.2 for age in ages):
            if circuit is Circuit.OPEN:
                self.verdicts = []
            return  # too close to tell
        failed = [failed for (_, failed), age in zip(self.verdicts, ages, strict=True) if age < WINDOW_MS]
        should = len(failed) >= MIN_CALLS and sum(failed) >= len(failed) / 2 and outcome is not Outcome.NEUTRAL
        judged = bool(self.verdicts) and ages[-1] == 0 and holder.began_ms >= self.closed_at_ms
        if judged and not holder.probe:
            assert (circuit is Circuit.OPEN) == should, f"{failed} of the window"
        if circuit is Circuit.OPEN:
            self.verdicts = []

    def check_requests(self, before_ms: int) -> None:
        """A minute that ends now saw no more than twice the quota."""
        if quota := self.limits.requests_per_minute:
            minute = sum(at_ms > before_ms - MINUTE_MS for at_ms, _ in self.started)
            assert minute <= 2 * quota

    def check_tokens(self, before_ms: int, tokens: int) -> None:
        """The same; the one that has just begun may be larger than the quota."""
        if quota := self.limits.tokens_per_minute:
            minute = sum(some for at_ms, some in self.spent if at_ms > before_ms - MINUTE_MS)
            assert minute <= 2 * quota + max(0, tokens - quota)

    def check_budget(self) -> None:
        """Retries are paid for by first calls; the minute of both is counted in parts, so it may be off by two."""
        now_ms = self.now_ms
        retries = sum(retry for at_ms, retry in self.started if at_ms > now_ms - MINUTE_MS + 2 * PART_MS)
        firsts = sum(not retry for at_ms, retry in self.started if at_ms > now_ms - MINUTE_MS - 2 * PART_MS)
        if self.started[-1][1]:
            assert retries <= RETRY_FLOOR + RETRY_RATIO * firsts


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_provider_is_never_asked_more_than_it_may_and_everybody_gets_a_turn(stage: Stage) -> None:
    run_state_machine_as_test(lambda: Schedule(stage), settings=schedules(50, steps=40))

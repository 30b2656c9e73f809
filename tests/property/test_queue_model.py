"""The queue's promises, on the real scripts: no hint is lost, none is in two hands, and everybody gets a turn.

Time is the schedule's: a lease is so long that none ends by itself, and what is in flight comes back when the test
moves its deadline into the past.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from itertools import count
from typing import Any, Final, TypeVar

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from broker.embedded import EmbeddedServer
from broker.generation import Priority
from broker.queue import Hint, Queue, Taken
from broker.settings import Settings
from broker.store import Store
from tests.property.schedules import TIMEOUT_SECONDS, schedules
from tests.support.servers import ExternalServer

#: Longer than any test.
LEASE_SECONDS: Final = 300.0
#: While both classes wait, one turn in this many is batch's.
BATCH_EVERY: Final = 8
#: A name with everything in it that a key or a hint is made of.
TENANTS: Final = ("acme", "b:c:d", "{queue}", "ü t")

T = TypeVar("T")

tenants = st.sampled_from(TENANTS)
priorities = st.sampled_from(Priority)
weights = st.sampled_from([0.5, 1.0, 1.0, 3.0])
picks = st.integers(0, 10**6)


class Stage:
    """Connections to the queue under test, empty at first."""

    def __init__(self, url: str, prefix: str) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self._loop = asyncio.new_event_loop()
        self._store = self.call(_open(url, Settings(prefix=prefix, lease_seconds=LEASE_SECONDS)))
        self.keys = self._store.keys
        self.queue = Queue(self._store)
        self._ids = count(1)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def hint(self, tenant: str, priority: Priority = Priority.INTERACTIVE) -> Hint:
        """A new one. Later ones sort before earlier ones, so that the order of names never looks like fairness."""
        return Hint(f"gen_{10**8 - next(self._ids):032x}", tenant, priority)

    def add(self, hint: Hint, *, weight: float = 1.0) -> bool:
        return self.call(self.queue.add(hint, weight=weight))

    def take(self, most: int) -> list[Hint]:
        return self.call(self.queue.take(most)).hints

    def let_time_pass(self, hints: list[Hint]) -> None:
        """The time of these hints in flight is over."""
        if hints:
            self.redis.zadd(self.keys.later(), {hint.encode(): 0 for hint in hints}, xx=True)

    def empty(self) -> None:
        keys = self.keys
        ready = [keys.ready(priority.value) for priority in Priority]
        self.redis.delete(*ready, keys.later(), keys.tags(), keys.clock(), keys.wake())

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
    """Every hint is at one place: waiting, in a worker's hands, due to come back, or forgotten."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        stage.empty()
        self.stage = stage
        self.ready: set[Hint] = set()
        self.flight: set[Hint] = set()
        self.due: set[Hint] = set()
        self.dropped: set[Hint] = set()

    @property
    def known(self) -> list[Hint]:
        return sorted(self.ready | self.flight | self.due, key=Hint.encode)

    @rule(tenant=tenants, priority=priorities, weight=weights, times=st.integers(1, 4))
    def somebody_submits(self, tenant: str, priority: Priority, weight: float, times: int) -> None:
        for _ in range(times):
            hint = self.stage.hint(tenant, priority)
            assert self.stage.add(hint, weight=weight)
            self.ready.add(hint)

    @precondition(lambda self: self.known)
    @rule(which=picks, weight=weights)
    def a_hint_is_added_again(self, which: int, weight: float) -> None:
        """Whoever meets a generation may put its hint back; the queue has it."""
        assert not self.stage.add(self.known[which % len(self.known)], weight=weight)

    @rule(most=st.integers(1, 6))
    def a_worker_takes(self, most: int) -> None:
        taken: Taken = self.stage.call(self.stage.queue.take(most))
        assert len(set(taken.hints)) == len(taken.hints), "a hint is handed out once"
        assert not set(taken.hints) & self.flight, "what one worker holds no other gets"
        assert not set(taken.hints) & self.dropped, "what was dropped is gone"
        assert set(taken.hints) <= self.ready | self.due, "only what was added is handed out"
        assert len(taken.hints) == min(most, len(self.ready | self.due)), "a worker gets as much as there is"
        before = self.ready | self.due
        self.flight |= set(taken.hints)
        moved = self.in_ready() if self.due else set()  # due hints that were called back, and not handed out yet
        self.ready = (self.ready | (self.due & moved)) - set(taken.hints)
        self.due -= self.ready | set(taken.hints)
        assert self.ready | self.due == before - set(taken.hints)
        assert self.stage.redis.llen(self.stage.keys.wake()) <= len(self.ready), "nobody is woken for nothing"
        if self.flight or self.due:
            assert taken.next_due_ms is not None, "a worker that sleeps knows when to look again"
            assert 0 <= taken.next_due_ms <= LEASE_SECONDS * 1000
            assert bool(self.due) <= (taken.next_due_ms == 0), "what is due is due now"
        else:
            assert taken.next_due_ms is None

    @precondition(lambda self: self.flight)
    @rule(which=picks)
    def a_worker_asks_for_a_hint_back_at_once(self, which: int) -> None:
        hint = self.some_in_flight(which)
        self.stage.call(self.stage.queue.look_again([hint], 0))
        self.flight.remove(hint)
        self.due.add(hint)

    @precondition(lambda self: self.known)
    @rule(which=picks)
    def a_worker_delays_a_hint(self, which: int) -> None:
        """Any hint: its generation is held, or a retry waits. One that waited is taken out of the waiting."""
        hint = self.known[which % len(self.known)]
        self.stage.call(self.stage.queue.look_again([hint], round(LEASE_SECONDS * 1000)))
        self.ready.discard(hint)
        self.due.discard(hint)
        self.flight.add(hint)

    @precondition(lambda self: self.flight)
    @rule(which=picks)
    def a_worker_dies(self, which: int) -> None:
        hint = self.some_in_flight(which)
        self.stage.let_time_pass([hint])
        self.flight.remove(hint)
        self.due.add(hint)

    @precondition(lambda self: self.known)
    @rule(which=picks, times=st.integers(1, 3))
    def hints_are_dropped(self, which: int, times: int) -> None:
        chosen = {self.known[(which + at) % len(self.known)] for at in range(times)}
        self.stage.call(self.stage.queue.drop([*chosen]))
        self.ready, self.flight, self.due = self.ready - chosen, self.flight - chosen, self.due - chosen
        self.dropped |= chosen

    @precondition(lambda self: self.known)
    @rule(which=picks, priority=priorities)
    def the_queue_loses_a_hint_and_its_holder_puts_it_back(self, which: int, priority: Priority) -> None:
        hint = self.known[which % len(self.known)]
        self.stage.call(self.stage.queue.drop([hint]))
        self.stage.call(self.stage.queue.look_again([hint], round(LEASE_SECONDS * 1000)))
        self.ready, self.due = self.ready - {hint}, self.due - {hint}
        self.flight.add(hint)

    @invariant()
    def every_hint_is_at_its_one_place(self) -> None:
        ready = Counter(hint for priority in Priority for hint in self.stored(self.stage.keys.ready(priority.value)))
        later = Counter(self.stored(self.stage.keys.later()))
        assert ready == Counter(self.ready), "what waits, waits once"
        assert later == Counter(self.flight | self.due), "what was taken is in flight until it is dropped"
        assert self.stage.call(self.stage.queue.waiting()) == len(self.ready)

    def teardown(self) -> None:
        """In the end everything that was added and not dropped is handed out, once."""
        self.stage.let_time_pass([*self.flight])
        expected = self.ready | self.flight | self.due
        got = []
        while hints := self.stage.take(7):
            got += hints
        assert Counter(got) == Counter(expected), "no hint is lost"

    def some_in_flight(self, which: int) -> Hint:
        return sorted(self.flight, key=Hint.encode)[which % len(self.flight)]

    def in_ready(self) -> set[Hint]:
        return {hint for priority in Priority for hint in self.stored(self.stage.keys.ready(priority.value))}

    def stored(self, key: str) -> list[Hint]:
        return [Hint.decode(member) for member in self.stage.redis.zrange(key, 0, -1)]


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_no_hint_is_lost_and_none_is_in_two_hands(stage: Stage) -> None:
    run_state_machine_as_test(lambda: Schedule(stage), settings=schedules(100, steps=40))


# Fairness.

#: What the others did before: how many hints they have waiting, and how many turns have passed.
crowds = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 60), min_size=1)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_a_crowd_delays_the_next_hint_of_another_tenant_by_one_turn_each(stage: Stage) -> None:
    @schedules(40)
    @given(crowds, st.integers(0, 80), st.integers(1, 5))
    def waits_for_one_turn(crowd: dict[str, int], turns: int, most: int) -> None:
        stage.empty()
        for tenant, size in crowd.items():
            for _ in range(size):
                stage.add(stage.hint(tenant))
        for _ in range(turns):
            stage.take(1)
        mine = stage.hint("mine")
        stage.add(mine)
        before = 0
        while mine not in (hints := stage.take(most)):
            assert hints
            before += len(hints)
        before += hints.index(mine)
        assert before <= len(crowd), f"{before} hints of {crowd} went first"

    waits_for_one_turn()


def test_thousands_of_hints_of_one_tenant_do_not_keep_another_waiting(stage: Stage) -> None:
    for _ in range(3000):
        stage.add(stage.hint("crowd"))
    stage.take(100)
    for _ in range(20):
        mine = stage.hint("mine")
        stage.add(mine)
        assert mine in stage.take(2 + 1), "after every hint of mine comes one of theirs, at most two"


def test_a_latecomer_has_no_credit_for_the_time_it_was_away(stage: Stage) -> None:
    for tenant in ["early"] * 100:
        stage.add(stage.hint(tenant))
    stage.take(50)
    for tenant in ["late"] * 40:
        stage.add(stage.hint(tenant))
    got = Counter(hint.tenant for hint in stage.take(20))
    assert abs(got["early"] - got["late"]) <= 2, got


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_turns_are_shared_by_weight(stage: Stage) -> None:
    @schedules(25)
    @given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2))
    def are_shared(weight_of: dict[str, float]) -> None:
        stage.empty()
        turns = 60
        for tenant, weight in weight_of.items():
            for _ in range(turns):
                stage.add(stage.hint(tenant), weight=weight)
        got: Counter[str] = Counter()
        for _ in range(turns // 3):
            got.update(hint.tenant for hint in stage.take(3))
            whole = sum(weight_of.values())
            for tenant, weight in weight_of.items():
                share = got.total() * weight / whole
                # Off by at most one turn of its own and, since a turn cannot be split, one of each other tenant.
                assert abs(got[tenant] - share) <= len(weight_of), f"{tenant} of {weight_of} got {got}"

    are_shared()


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_while_both_classes_wait_batch_gets_one_turn_in_eight(stage: Stage) -> None:
    @schedules(25)
    @given(st.lists(st.integers(1, 7), min_size=10, max_size=30), st.integers(0, 10))
    def gets_its_turns(takes: list[int], earlier: int) -> None:
        stage.empty()
        for _ in range(sum(takes) + earlier):
            for priority in Priority:
                stage.add(stage.hint("acme", priority))
        stage.take(earlier)
        turns = [hint.priority for most in takes for hint in stage.take(most)]
        for start in range(len(turns) - BATCH_EVERY + 1):
            assert turns[start : start + BATCH_EVERY].count(Priority.BATCH) == 1, "neither class starves"

    gets_its_turns()


@pytest.mark.parametrize("priority", Priority)
def test_a_class_that_waits_alone_gets_every_turn(stage: Stage, priority: Priority) -> None:
    hints = [stage.hint("acme", priority) for _ in range(20)]
    for hint in hints:
        stage.add(hint)
    assert stage.take(20) == hints


def test_a_hint_that_comes_back_goes_first_and_costs_its_tenant_nothing(stage: Stage) -> None:
    """It had its turn: a worker's death is not the tenant's fault."""
    mine, *others = stage.hint("mine"), *(stage.hint("crowd") for _ in range(10))
    for hint in (mine, *others):
        stage.add(hint)
    first = stage.take(2)
    assert mine in first
    stage.let_time_pass([mine])
    assert stage.take(1) == [mine]
    again = stage.hint("mine")
    stage.add(again)
    assert again in stage.take(3)

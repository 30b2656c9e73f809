"""The log's promises under everything that can go wrong at once, on the real scripts.

A schedule is a list of single calls: workers claim, write, answer late, give up; replies and notifications get lost,
packets arrive twice; leases lapse under living workers; the store fails over to an older state, or loses everything
and is given it back; logs are sealed; a client cancels or deletes; viewers read, each at its own pace, through two
processes. After each call the promises are checked, see `World`. What is not played here: expiry, clusters, processes
that stood still.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import broker.log
from broker.backoff import Backoff
from broker.embedded import EmbeddedServer
from broker.events import Entry
from broker.lease import Lease
from broker.log import Appended, Fenced
from broker.position import BEGINNING
from broker.store import Store
from tests.property.schedules import TIMEOUT_SECONDS, schedules
from tests.property.viewers import Hub, Viewer
from tests.property.workers import Doing, Worker
from tests.property.world import Stage, World, text_of
from tests.support.servers import ExternalServer

#: Schedules of either kind in a normal run.
RUNS: Final = 400
#: Workers, and failovers, that one schedule sees at most.
MOST_WORKERS: Final = 10
MOST_FAILOVERS: Final = 6
#: No worker and no viewer needs so many calls to get to the end of a log of one schedule.
PLENTY: Final = 500

T = TypeVar("T")

some = st.integers(0, 5)
far_back = st.one_of(st.integers(0, 6), st.integers(0, 60))
calls = st.sampled_from([1, 1, 2, 3, 6])
#: Once in so many times. Hypothesis picks rules evenly; what ends a schedule early has to be rarer than the rest.
seldom, hardly_ever = (st.integers(1, times).map(lambda drawn, times=times: drawn == times) for times in (6, 30))


@pytest.fixture
def stage(
    redis_server: EmbeddedServer | ExternalServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    async def long_ago(store: Store, key: str) -> float:
        return 3600.0

    monkeypatch.setattr(Backoff, "next", lambda self: 0.0)  # the schedule says when a call is repeated,
    monkeypatch.setattr(Store, "seconds_since_loss", long_ago)  # and when a lease may be taken over
    monkeypatch.setattr(broker.log, "SEAL_ENTRIES", 1)  # the logs of schedules are short
    stage = Stage(redis_server.url, prefix, may_change_history=isinstance(redis_server, EmbeddedServer))
    yield stage
    stage.close()


class WorkersAndFailovers(RuleBasedStateMachine):
    """One generation from its submit on: workers that write it, and a store that forgets."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.world = World(stage)
        self.hubs: list[Hub] = []
        self.viewers: list[Viewer] = []
        self.workers: list[Worker] = []

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule(calls=calls, lapsed=st.booleans())
    def a_worker_arrives(self, calls: int, lapsed: bool) -> None:
        if lapsed:
            self.world.lapse()
        self.workers.append(Worker(self.world))
        self.go_on(self.workers[-1], calls)

    @precondition(lambda self: self.workers)
    @rule(who=some, pieces=st.integers(0, 3), ends=hardly_ever, calls=calls)
    def a_worker_goes_on(self, who: int, pieces: int, ends: bool, calls: int) -> None:
        worker = self.somebody(who)
        self.call(worker.produce(pieces, ends=ends))
        self.go_on(worker, calls)

    @precondition(lambda self: self.workers)
    @rule(who=some, pieces=st.integers(1, 3), calls=calls)
    def a_worker_still_goes_on(self, who: int, pieces: int, calls: int) -> None:
        self.a_worker_goes_on(who, pieces, False, calls)

    @precondition(lambda self: self.workers)
    @rule(who=some, pieces=st.integers(0, 3), calls=st.integers(0, 2))
    def a_worker_loses_a_reply(self, who: int, pieces: int, calls: int) -> None:
        """It writes, the reply is lost; it has more to write when it does so again."""
        worker = self.somebody(who)
        self.call(worker.step(reply_lost=True))
        self.call(worker.produce(pieces, ends=False))
        self.go_on(worker, calls)

    @precondition(lambda self: self.workers)
    @rule(really=seldom, who=some, failed_attempt=st.booleans())
    def a_worker_gives_up(self, really: bool, who: int, failed_attempt: bool) -> None:
        if really:
            self.call(self.somebody(who).release(failed_attempt=failed_attempt))

    @precondition(lambda self: self.workers)
    @rule(who=some)
    def a_worker_renews_its_lease(self, who: int) -> None:
        self.call(self.somebody(who).renew())

    @precondition(lambda self: self.workers)
    @rule(which=far_back, claim=seldom)
    def a_packet_arrives_again(self, which: int, claim: bool) -> None:
        if claim:
            self.world.repeat_claim(which)
        else:
            self.world.repeat_append(which)

    @precondition(lambda self: self.world.failovers < MOST_FAILOVERS)
    @rule(forgotten=far_back, a_claim=st.booleans())
    def the_store_fails_over(self, forgotten: int, a_claim: bool) -> None:
        self.world.fail_over(forgotten, a_claim=a_claim)

    def teardown(self) -> None:
        """When all faults are over: everybody alive goes on, somebody ends it, and every viewer sees that end."""
        try:
            if not self.world.broken:
                self.everything_calms_down()
        finally:
            for worker in self.workers:
                self.call(worker.leave())
            self.world.close()

    def everything_calms_down(self) -> None:
        for worker in self.workers:
            self.call(worker.look_again())
            self.let_go_on(worker)
        self.world.lapse()
        self.workers.append(Worker(self.world))
        self.let_go_on(self.workers[-1])
        self.call(self.workers[-1].produce(2, ends=True))
        self.let_go_on(self.workers[-1])
        now = self.world.now
        self.world.promise(not now.readable or now.ended, "every generation gets its terminal event")
        for hub in self.hubs:
            hub.hear(len(hub.coming))
        for viewer in self.viewers:
            for times in range(PLENTY):
                if viewer.cursor == now.last:
                    break
                if times % 5 == 0:
                    viewer.hub.check()
                viewer.look()
            viewer.check()
            self.world.promise(not now.readable or viewer.cursor == now.last, "every viewer comes to the end")

    def let_go_on(self, worker: Worker) -> None:
        self.go_on(worker, PLENTY)
        self.world.promise(worker.quiet or worker.waits_for_lease, "a living holder can always go on")

    def somebody(self, who: int) -> Worker:
        """One of the workers that have something to do, while there is one."""
        busy = [worker for worker in self.workers if worker.doing is not Doing.NOTHING] or self.workers
        return busy[who % len(busy)]

    def go_on(self, worker: Worker, calls: int) -> None:
        for _ in range(calls):
            if not self.call(worker.step()):
                break

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.world.stage.call(work)


class WholeWorld(WorkersAndFailovers):
    """The same, with clients that read and cancel, and with everything else that can end a generation."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        first, second = self.hubs = [Hub(self.world), Hub(self.world)]
        self.viewers = [
            Viewer(self.world, first, page=1000),
            Viewer(self.world, first, page=2),
            Viewer(self.world, second, page=5),
        ]

    @precondition(lambda self: self.workers)
    @rule(who=some, calls=calls)
    def a_worker_looks_after_its_log(self, who: int, calls: int) -> None:
        """One that has ended it."""
        worker = self.workers[who % len(self.workers)]
        self.call(worker.look_again())
        self.go_on(worker, calls)

    @precondition(lambda self: self.workers)
    @rule(who=some)
    def a_worker_seals_its_log(self, who: int) -> None:
        """One that has ended it, stored or not."""
        self.call(self.workers[who % len(self.workers)].seal())

    @rule(really=hardly_ever, deleted=st.booleans())
    def all_is_lost(self, really: bool, deleted: bool) -> None:
        if really and deleted:
            self.world.delete()
        elif really:
            self.world.lose_everything()

    @rule(really=seldom, overdue=seldom)
    def a_client_cancels(self, really: bool, overdue: bool) -> None:
        if really:
            if overdue:
                self.world.grow_overdue()
            self.world.cancel()

    @precondition(lambda self: self.workers)
    @rule(really=seldom, who=some, sent=st.booleans(), cancelled=st.booleans())
    def an_end_meets_a_cancel(self, really: bool, who: int, sent: bool, cancelled: bool) -> None:
        """A worker comes to its end and has not heard whether that is stored, when perhaps a client cancels."""
        if really:
            worker = self.somebody(who)
            self.call(worker.produce(1, ends=True))
            if sent:
                self.call(worker.step(reply_lost=True))
            if cancelled:
                self.world.cancel()

    @rule(who=some, times=st.integers(1, 4))
    def a_viewer_looks(self, who: int, times: int) -> None:
        for _ in range(times):
            self.viewers[who % len(self.viewers)].look()

    @rule(first=st.booleans(), messages=st.integers(1, 8))
    def notifications_arrive(self, first: bool, messages: int) -> None:
        self.hubs[first].hear(messages)

    @rule(first=st.booleans(), messages=st.integers(1, 8))
    def notifications_are_lost(self, first: bool, messages: int) -> None:
        self.hubs[first].miss(messages)

    @rule(first=st.booleans(), breaks=st.booleans())
    def a_window_is_checked(self, first: bool, breaks: bool) -> None:
        if breaks:
            self.hubs[first].subscribe_anew()
        else:
            self.hubs[first].check()

    @invariant()
    def viewers_show_what_the_log_says(self) -> None:
        for viewer in self.viewers:
            viewer.check()


@pytest.fixture
def schedule(stage: Stage) -> Iterator[WorkersAndFailovers]:
    """A world for a schedule that is written down; it ends as the random ones do."""
    schedule = WorkersAndFailovers(stage)
    yield schedule
    schedule.teardown()


def mending(schedule: WorkersAndFailovers) -> Worker:
    """The second worker of a generation, whose claim and first events the store forgot and in whose place the first one
    went on. It has just been told so; claiming anew is its next call."""
    world = schedule.world
    schedule.a_worker_arrives(calls=3, lapsed=False)
    schedule.a_worker_arrives(calls=3, lapsed=True)
    first, second = schedule.workers
    world.fail_over(0, a_claim=True)
    schedule.call(first.produce(1, ends=False))
    schedule.call(first.step())
    assert text_of(world.now.entries) == ["1.1"]
    schedule.call(second.produce(1, ends=False))
    schedule.call(second.step())
    return second


@pytest.mark.parametrize("lost", ["claim", "read", None])
def test_whoever_writes_anew_goes_on_though_a_reply_is_lost(schedule: WorkersAndFailovers, lost: str | None) -> None:
    """Its own claim, of which it did not hear, must not shut it out."""
    worker = mending(schedule)
    schedule.call(worker.step(reply_lost=lost == "claim"))
    schedule.call(worker.step(reply_lost=lost == "read"))
    schedule.go_on(worker, PLENTY)
    assert text_of(schedule.world.now.entries) == ["2.1"]


def test_whoever_writes_anew_goes_on_though_its_renewal_comes_in_between(schedule: WorkersAndFailovers) -> None:
    """The renewal names the lease that is being replaced; that this one is lost is no news."""
    worker = mending(schedule)
    schedule.call(worker.step())
    schedule.call(worker.renew())
    schedule.go_on(worker, PLENTY)
    assert text_of(schedule.world.now.entries) == ["2.1"]


def test_whoever_writes_anew_stops_when_the_store_loses_the_generation_meanwhile(schedule: WorkersAndFailovers) -> None:
    worker = mending(schedule)
    schedule.call(worker.step())
    schedule.world.lose_everything()
    schedule.go_on(worker, PLENTY)
    assert worker.doing is Doing.NOTHING


def test_a_position_that_named_completed_never_names_cancelled(schedule: WorkersAndFailovers) -> None:
    """`completed` was stored, its reply was lost, a failover forgot it, and then the client cancelled."""
    world = schedule.world
    schedule.a_worker_arrives(calls=3, lapsed=False)
    worker = schedule.workers[0]
    schedule.call(worker.produce(1, ends=True))
    schedule.call(worker.step(reply_lost=True))
    assert world.now.entries[-1].field == b"completed"
    world.fail_over(1)
    world.cancel()
    schedule.go_on(worker, PLENTY)
    assert world.now.entries[-1].field == b"cancelled"


def test_a_cancel_shuts_out_the_worker_that_it_did_not_wait_for(schedule: WorkersAndFailovers) -> None:
    world = schedule.world
    schedule.a_worker_arrives(calls=3, lapsed=False)
    world.lapse()
    world.cancel()
    assert world.now.ended
    schedule.a_worker_goes_on(who=0, pieces=1, ends=True, calls=PLENTY)
    assert schedule.workers[0].doing is Doing.NOTHING
    assert world.now.entries[-1].field == b"cancelled"


def test_a_holder_puts_back_what_it_inherited(schedule: WorkersAndFailovers) -> None:
    """The store fell back to the middle of what the first worker wrote; the second one has it all."""
    world = schedule.world
    schedule.a_worker_arrives(calls=3, lapsed=False)
    schedule.a_worker_goes_on(who=0, pieces=1, ends=False, calls=1)
    early = world.now
    schedule.a_worker_goes_on(who=0, pieces=2, ends=False, calls=1)
    schedule.a_worker_arrives(calls=3, lapsed=True)
    schedule.a_worker_goes_on(who=1, pieces=2, ends=False, calls=1)
    whole = world.now.entries
    world.restore(early)
    schedule.a_worker_goes_on(who=1, pieces=1, ends=False, calls=PLENTY)
    assert world.now.entries[: len(whole)] == whole
    assert text_of(world.now.entries) == ["2.1", "2.2", "2.3"]


def test_of_two_claims_under_one_epoch_only_the_one_in_the_record_writes(stage: Stage) -> None:
    """Keys that are put back by hand bring no new replication history, so nothing makes the epoch jump."""
    world = World(stage)
    queued = world.now
    first = stage.call(stage.leases.claim(world.generation, owner="first"))
    world.restore(queued, noticed=False)
    second = stage.call(stage.leases.claim(world.generation, owner="second"))
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    assert first.epoch == second.epoch
    entry = Entry(f"1-{first.epoch}", b"d", b"1.1")
    append = stage.log.append
    assert stage.call(append(world.generation, first.epoch, "first", BEGINNING, [entry])) == Fenced(first.epoch)
    answer = stage.call(append(world.generation, second.epoch, "second", BEGINNING, [entry]))
    assert isinstance(answer, Appended)
    world.close()


@pytest.mark.timeout(TIMEOUT_SECONDS)
@pytest.mark.parametrize("kind", [WorkersAndFailovers, WholeWorld])
def test_the_log_keeps_its_promises_under_every_schedule(stage: Stage, kind: type[WorkersAndFailovers]) -> None:
    run_state_machine_as_test(lambda: kind(stage), settings=schedules(RUNS))
    print("answers of the store:", dict(sorted(stage.seen.items())))

"""Threads: one generation after another, whatever is lost or happens in between."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from broker.errors import QueueFull, StoreUnavailable, ThreadBusy
from broker.events import CancelReason, Completed, Entry, FinishReason, encode
from broker.generation import Record, State, ThreadPolicy
from broker.lease import Ended, Lease, Waits, new_owner
from broker.log import Appended
from broker.queue import Hint
from broker.records import CancelOutcome, Records, Submitted
from broker.scripts import CONFIRM, JOIN, Script
from broker.store import Store
from broker.sweep import Sweeper
from tests.broker.conftest import Kit, job

DONE = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
REJECT, INTERRUPT = ThreadPolicy.REJECT, ThreadPolicy.INTERRUPT


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sweep._SWEEP_PACE", 0)


async def submit(kit: Kit, policy: ThreadPolicy = ThreadPolicy.ENQUEUE, **options: Any) -> Submitted:
    """One more of the thread `chat`."""
    return await kit.records.submit("acme", job(thread="chat", thread_policy=policy), **options)


async def submitted(kit: Kit, count: int) -> list[str]:
    return [(await submit(kit)).id for _ in range(count)]


async def take(kit: Kit) -> list[str]:
    """Hints that may be taken now."""
    return [hint.generation for hint in (await kit.queue.take(10)).hints]


async def write_end(kit: Kit, lease: Lease) -> None:
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, "0-0", [Entry(f"1-{lease.epoch}", *DONE)])
    assert isinstance(answer, Appended)


async def finish(kit: Kit, generation: str) -> None:
    """What a worker does with a job, from claim to end."""
    await write_end(kit, await kit.claimed(generation))
    await kit.records.threads.leave("acme", "chat", generation, ttl_seconds=3600)


async def found(kit: Kit, generation: str) -> Record:
    return await kit.records.get("acme", generation)


async def sweep(kit: Kit) -> None:
    await kit.raw.delete(kit.store.keys.sweeper())
    await Sweeper(kit.store, kit.records).sweep()


def line(kit: Kit) -> str:
    return kit.store.keys.thread("acme", "chat")[0]


async def test_they_run_one_after_another_in_the_order_of_their_submits(kit: Kit) -> None:
    first, second, third = await submitted(kit, 3)
    assert await take(kit) == [first]
    assert await kit.leases.claim(second, owner=new_owner()) == Waits("chat")
    await finish(kit, first)
    assert await take(kit) == [second]
    assert await kit.leases.claim(third, owner=new_owner()) == Waits("chat")
    await finish(kit, second)
    assert await take(kit) == [third]
    await finish(kit, third)
    assert await kit.raw.exists(line(kit)) == 0
    thread = await kit.records.threads.look("acme", "chat")
    assert (thread.running, thread.waiting, thread.known) == (None, [], [first, second, third])
    assert thread.current == third


async def test_order_is_that_of_joining_and_not_of_clocks(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second API's clock is an hour behind: its ids sort before those of the first."""
    first = (await submit(kit)).id
    monkeypatch.setattr("broker.generation.time.time_ns", lambda: 1_600_000_000_000_000_000)
    late = (await submit(kit)).id
    monkeypatch.undo()
    assert late < first
    third = (await submit(kit)).id
    assert (await kit.records.threads.look("acme", "chat")).known == [first, late, third]
    await finish(kit, first)
    await finish(kit, late)
    await finish(kit, third)


async def test_threads_of_other_names_and_tenants_do_not_wait(kit: Kit) -> None:
    running = (await submit(kit)).id
    other = (await kit.records.submit("acme", job(thread="other"))).id
    theirs = (await kit.records.submit("else", job(thread="chat"))).id
    plain = (await kit.records.submit("acme", job())).id
    assert sorted(await take(kit)) == sorted([running, other, theirs, plain])


async def test_reject_refuses_frees_its_key_and_leaves_nothing(kit: Kit) -> None:
    running = (await submit(kit)).id
    with pytest.raises(ThreadBusy):
        await submit(kit, REJECT, key="k", fingerprint="f")
    assert [record.id for record in (await kit.records.newest("acme", limit=5)).records] == [running]
    assert (await kit.records.threads.look("acme", "chat")).known == [running]
    await finish(kit, running)
    again = await submit(kit, REJECT, key="k", fingerprint="another body")
    assert not again.replayed
    assert again.id in await take(kit)


async def test_of_many_rejects_at_once_exactly_one_is_accepted(kit: Kit) -> None:
    answers = await asyncio.gather(*(submit(kit, REJECT) for _ in range(12)), return_exceptions=True)
    accepted = [answer for answer in answers if isinstance(answer, Submitted)]
    assert len(accepted) == 1
    assert all(isinstance(answer, Submitted | ThreadBusy) for answer in answers)
    assert await take(kit) == [accepted[0].id]


async def test_one_key_sent_often_is_one_generation_under_every_policy(kit: Kit) -> None:
    for policy in ThreadPolicy:
        many = [submit(kit, policy, key=policy.value, fingerprint="f") for _ in range(8)]
        answers = await asyncio.gather(*many)
        assert len({answer.id for answer in answers}) == 1
        assert (await submit(kit, policy, key=policy.value, fingerprint="f")).id == answers[0].id
        assert not (await found(kit, answers[0].id)).state.is_terminal, "it interrupted itself"
        await finish(kit, answers[0].id)


async def test_a_reject_beside_the_same_post_that_was_accepted_is_accepted(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are on their way; one is refused, then the thread is free and the other is accepted."""
    running = (await submit(kit)).id
    join = kit.records.threads.join

    async def refused_late(*args: Any, **options: Any) -> Any:
        try:
            return await join(*args, **options)
        except ThreadBusy:
            monkeypatch.undo()
            await finish(kit, running)
            await submit(kit, REJECT, key="k", fingerprint="f")
            raise

    monkeypatch.setattr(kit.records.threads, "join", refused_late)
    answer = await submit(kit, REJECT, key="k", fingerprint="f")
    assert (await submit(kit, REJECT, key="k", fingerprint="f")).id == answer.id
    assert answer.id in await take(kit)


async def test_interrupt_cancels_all_before_it_and_begins_after_their_ends(kit: Kit) -> None:
    running, *waiting = await submitted(kit, 3)
    lease = await kit.claimed(running)
    await take(kit)
    newest = await submit(kit, INTERRUPT)
    assert [record.id for record in newest.interrupted] == [running]
    for generation in waiting:
        [entry] = await kit.log.read_all(generation)
        assert (entry.field, entry.payload) == (b"cancelled", b'{"reason":"interrupted"}')
    assert (await found(kit, running)).shown_state is State.CANCELLING
    assert await take(kit) == []
    cancelled = Entry(f"1-{lease.epoch}", b"cancelled", b'{"reason":"interrupted"}')
    await kit.log.append(running, lease.epoch, lease.owner, "0-0", [cancelled])
    await kit.records.threads.leave("acme", "chat", running)
    assert await take(kit) == [newest.id]


async def test_an_interrupt_lets_nobody_begin_in_between(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three that no worker has yet, the second and the third have no turn while the first is cancelled."""
    first, *_ = await submitted(kit, 3)
    hinted = []
    add = kit.queue.add

    async def noted(hint: Hint, **options: Any) -> bool:
        hinted.append(hint.generation)
        return await add(hint, **options)

    monkeypatch.setattr(kit.queue, "add", noted)
    newest = await submit(kit, INTERRUPT)
    assert set(hinted) <= {first, newest.id}
    assert await take(kit) == [newest.id]


async def test_interrupts_in_a_row_leave_the_last_one(kit: Kit) -> None:
    answers = await asyncio.gather(*(submit(kit, INTERRUPT) for _ in range(8)))
    order = (await kit.records.threads.look("acme", "chat")).known
    assert sorted(order) == sorted(answer.id for answer in answers)
    states = [(await found(kit, generation)).state for generation in order]
    assert states == [State.CANCELLED] * 7 + [State.QUEUED]
    assert await take(kit) == [order[-1]]


async def test_a_cancelled_one_in_the_middle_lets_nobody_past_the_running_one(kit: Kit) -> None:
    first, second, third = await submitted(kit, 3)
    assert await take(kit) == [first]
    assert await kit.records.cancel(await found(kit, second), CancelReason.USER) is CancelOutcome.CANCELLED
    assert await take(kit) == []
    await finish(kit, first)
    assert await take(kit) == [third]


async def test_a_deleted_one_lets_the_next_one_begin(kit: Kit) -> None:
    first, second = await submitted(kit, 2)
    await kit.claimed(first)
    assert await take(kit) == [first]
    await kit.records.delete(await found(kit, first))
    assert await take(kit) == [second]


async def test_a_finisher_that_died_is_followed_by_whoever_gets_its_hint(kit: Kit) -> None:
    """The end is stored, nothing else: the hint in flight comes due, and its claim says which thread to look at."""
    first, second = await submitted(kit, 2)
    await take(kit)
    await write_end(kit, await kit.claimed(first))
    assert await kit.leases.claim(first, owner=new_owner()) == Ended(State.COMPLETED, thread="chat")
    await kit.records.threads.leave("acme", "chat", first)
    assert await take(kit) == [second]


async def test_a_line_that_stands_still_is_moved_on_by_the_sweep(kit: Kit) -> None:
    first, second = await submitted(kit, 2)
    await take(kit)
    await write_end(kit, await kit.claimed(first))
    await sweep(kit)
    assert await take(kit) == [second]


async def test_whoever_submits_next_moves_a_line_on_that_stands_still(kit: Kit) -> None:
    first, second = await submitted(kit, 2)
    await take(kit)
    await write_end(kit, await kit.claimed(first))
    third = (await submit(kit)).id
    assert await take(kit) == [second]
    assert (await kit.records.threads.look("acme", "chat")).waiting == [third]


async def test_one_that_was_let_begin_and_never_hinted_at_is_found(kit: Kit) -> None:
    first, second = await submitted(kit, 2)
    await take(kit)
    await write_end(kit, await kit.claimed(first))
    await kit.raw.hdel(kit.store.keys.record(second), "waits")
    await kit.records.threads.leave("acme", "chat", first)
    assert await take(kit) == [second]


async def test_a_lost_line_is_put_together_again_in_order(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all were submitted within one millisecond."""
    with monkeypatch.context() as patched:
        now = time.time_ns()
        patched.setattr("broker.generation.time.time_ns", lambda: now)
        ids = await submitted(kit, 5)
    await take(kit)
    lease = await kit.claimed(ids[0])
    await kit.raw.delete(*kit.store.keys.thread("acme", "chat"))
    await sweep(kit)
    assert await take(kit) == []
    thread = await kit.records.threads.look("acme", "chat")
    assert (thread.running, thread.waiting) == (ids[0], ids[1:])
    await write_end(kit, lease)
    await kit.records.threads.leave("acme", "chat", ids[0])
    for generation in ids[1:]:
        assert await take(kit) == [generation]
        await finish(kit, generation)


async def test_a_lost_line_starts_nobody_beside_the_one_that_runs(kit: Kit) -> None:
    """A reader meets the second one, and a third is submitted, before anybody has put the first one back."""
    first, second = await submitted(kit, 2)
    await take(kit)
    await kit.claimed(first)
    await kit.raw.delete(*kit.store.keys.thread("acme", "chat"))
    await kit.records.threads.keep_place("acme", "chat", first, ttl_seconds=60)  # as its worker does
    await kit.records.adopt_orphan(second)
    await submit(kit)
    assert await take(kit) == []


async def test_a_submit_that_was_refused_half_way_neither_runs_nor_blocks(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 after its place was taken: it does not count until its POST comes again."""
    run = kit.store.run

    async def away(script: Script, *rest: Any) -> Any:
        if script is CONFIRM:
            raise StoreUnavailable("the slot is moving")
        return await run(script, *rest)

    first = (await submit(kit)).id
    await take(kit)
    monkeypatch.setattr(kit.store, "run", away)
    with pytest.raises(StoreUnavailable):
        await submit(kit, key="k", fingerprint="f")
    monkeypatch.undo()
    third = (await submit(kit)).id
    await finish(kit, first)
    assert await take(kit) == [third]
    again = await submit(kit, key="k", fingerprint="f")
    assert await take(kit) == []
    await finish(kit, third)
    assert await take(kit) == [again.id]


async def test_a_submit_whose_place_was_lost_half_way_is_finished_by_the_same_post(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kit.store.run

    async def once_away(script: Script, *rest: Any) -> Any:
        if script is JOIN:
            monkeypatch.undo()
            raise StoreUnavailable("no answer")
        return await run(script, *rest)

    monkeypatch.setattr(kit.store, "run", once_away)
    with pytest.raises(StoreUnavailable):
        await submit(kit, key="k", fingerprint="f")
    assert (await submit(kit, key="k", fingerprint="f")).id in await take(kit)


async def test_a_full_thread_refuses_whole(kit: Kit) -> None:
    narrow = Store.__new__(Store)
    narrow.__dict__ = kit.store.__dict__ | {"settings": kit.store.settings.model_copy(update={"max_thread_queue": 2})}
    records = Records(narrow, kit.queue)
    accepted = [(await records.submit("acme", job(thread="chat"))).id for _ in range(2)]
    with pytest.raises(QueueFull, match="2 generations of this thread"):
        await records.submit("acme", job(thread="chat"), key="k", fingerprint="f")
    assert sorted(record.id for record in (await records.newest("acme", limit=5)).records) == sorted(accepted)
    await finish(kit, accepted[0])
    assert not (await records.submit("acme", job(thread="chat"), key="k", fingerprint="g")).replayed


@pytest.mark.parametrize("seed", range(4))
async def test_under_random_crashes_and_losses_every_job_runs_once_and_alone(kit: Kit, seed: int) -> None:
    """Submits, ends with and without the steps behind them, cancels, deletes, lost lines, in any order. What runs is
    alone; at the end, behind some sweeps, everything that was accepted has ended, and nothing is left."""
    rng = random.Random(seed)
    accepted: list[str] = []
    running: dict[str, Lease] = {}
    ended: list[str] = []

    async def claim_what_is_hinted() -> None:
        for generation in [name for name in running if (await found_state(name)).is_terminal]:
            del running[generation]  # deleted: its worker is fenced
        for generation in await take(kit):
            answer = await kit.leases.claim(generation, owner=new_owner())
            match answer:
                case Lease():
                    assert not running, "two of one thread at once"
                    running[generation] = answer
                case Ended():
                    await kit.records.threads.leave("acme", "chat", generation)

    async def end_one(*, crash: bool) -> None:
        for generation, lease in list(running.items()):
            if not (await found_state(generation)).is_terminal:
                cancel = (await found(kit, generation)).cancel_requested
                last = Entry(f"1-{lease.epoch}", b"cancelled", b'{"reason":"user"}') if cancel else None
                entry = last or Entry(f"1-{lease.epoch}", *DONE)
                await kit.log.append(generation, lease.epoch, lease.owner, "0-0", [entry])
            ended.append(generation)
            del running[generation]
            if not crash:
                await kit.records.threads.leave("acme", "chat", generation)

    async def found_state(generation: str) -> State:
        record = await kit.records.find(generation)
        return record.state if record is not None else State.DELETED

    for _ in range(60):
        match rng.choice(["submit", "submit", "interrupt", "reject", "end", "end", "crash", "cancel", "lose", "sweep"]):
            case "submit":
                accepted.append((await submit(kit)).id)
            case "interrupt" if rng.random() < 0.4:
                accepted.append((await submit(kit, INTERRUPT)).id)
            case "reject":
                try:
                    accepted.append((await submit(kit, REJECT)).id)
                except ThreadBusy:
                    assert (await kit.records.threads.look("acme", "chat")).current is not None
            case "end":
                await end_one(crash=False)
            case "crash":
                await end_one(crash=True)
            case "cancel" if accepted:
                record = await kit.records.find(rng.choice(accepted))
                if record is not None and not record.state.is_terminal:
                    if rng.random() < 0.3:
                        await kit.records.delete(record)
                    else:
                        await kit.records.cancel(record, CancelReason.USER)
            case "lose":
                await kit.raw.delete(line(kit))
                for generation in running:
                    await kit.records.threads.keep_place("acme", "chat", generation, ttl_seconds=60)
            case "sweep":
                await sweep(kit)
        await claim_what_is_hinted()

    for _ in range(len(accepted) + 2):
        await sweep(kit)
        await claim_what_is_hinted()
        await end_one(crash=False)
    assert all([(await found_state(generation)).is_terminal for generation in accepted])
    assert len(ended) == len(set(ended))
    assert await kit.raw.exists(line(kit)) == 0


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("answered", [False, True], ids=["before the step", "behind the step"])
@pytest.mark.parametrize("policy", list(ThreadPolicy), ids=lambda policy: policy.value)
async def test_a_submitter_that_dies_at_any_step_blocks_nobody_and_loses_nothing(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, policy: ThreadPolicy, answered: bool
) -> None:
    """Cut off at its first step, its second, and so on. The thread goes on for those behind it, and the same POST, sent
    again, finishes what was begun."""
    step = 0
    while True:
        step += 1
        died = False
        with monkeypatch.context() as patched:
            patched.setattr(kit.store, "pipe", Dying(kit, step, answered=answered).pipe)
            try:
                await submit(kit, policy, key=f"{step}", fingerprint="f")
            except Crash:
                died = True
        behind = (await submit(kit)).id
        await run_all(kit)
        assert (await found(kit, behind)).state is State.COMPLETED, f"step {step}"
        again = await submit(kit, policy, key=f"{step}", fingerprint="f")
        await run_all(kit)
        assert (await found(kit, again.id)).state is State.COMPLETED
        assert await kit.raw.exists(line(kit)) == 0
        if not died:
            break
    assert step > 5


@pytest.mark.parametrize("answered", [False, True], ids=["before the step", "behind the step"])
@pytest.mark.parametrize("ending", ["end", "cancel", "delete", "sweep"])
async def test_whoever_dies_while_a_thread_moves_on_is_followed_by_the_sweep(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, ending: str, answered: bool
) -> None:
    step = 0
    while True:
        step += 1
        first, second = await submitted(kit, 2)
        await take(kit)
        lease = await kit.claimed(first)
        if ending in ("end", "sweep"):
            await write_end(kit, lease)
        record = await found(kit, first)
        died = False
        with monkeypatch.context() as patched:
            patched.setattr(kit.store, "pipe", Dying(kit, step, answered=answered).pipe)
            try:
                match ending:
                    case "end":
                        await kit.records.threads.leave("acme", "chat", first)
                    case "cancel":
                        await kit.records.cancel(record, CancelReason.USER)
                    case "delete":
                        await kit.records.delete(record)
                    case "sweep":
                        await kit.records.threads.advance_line(line(kit))
            except Crash:
                died = True
        if ending == "cancel" and not (await found(kit, first)).state.is_terminal:
            await write_cancelled(kit, lease)
        elif ending == "delete" and died:
            await kit.records.delete(record)
        await run_all(kit)
        assert (await found(kit, second)).state is State.COMPLETED, f"step {step}"
        assert await kit.raw.exists(line(kit)) == 0
        if not died:
            break
    assert step > 1


class Dying:
    """A store that lets so many steps through, and then never answers."""

    def __init__(self, kit: Kit, steps: int, *, answered: bool) -> None:
        self._pipe = kit.store.pipe
        self._left = steps
        self._answered = answered

    async def pipe(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0 or (self._left == 0 and not self._answered):
            raise Crash
        reply = await self._pipe(*arguments)
        if self._left == 0:
            raise Crash
        return reply


async def write_cancelled(kit: Kit, lease: Lease) -> None:
    last = Entry(f"1-{lease.epoch}", b"cancelled", b'{"reason":"user"}')
    await kit.log.append(lease.generation, lease.epoch, lease.owner, "0-0", [last])


async def run_all(kit: Kit) -> None:
    """What workers and sweeps do until nothing is left to do: one at a time, each to its end."""
    quiet = 0
    while quiet < 2:
        await sweep(kit)
        hints = await take(kit)
        quiet = 0 if hints else quiet + 1
        running = 0
        for generation in hints:
            answer = await kit.leases.claim(generation, owner=new_owner())
            if isinstance(answer, Lease):
                running += 1
                assert running == 1, "two of one thread at once"
                if answer.cancel:
                    await write_cancelled(kit, answer)
                else:
                    await write_end(kit, answer)
            if isinstance(answer, Lease | Ended):
                await kit.records.threads.leave("acme", "chat", generation)

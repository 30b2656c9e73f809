"""Calls that the client runs: pause, results and the next claim, on real servers."""

from __future__ import annotations

import asyncio

import pytest

from broker.calls import Accepted, CallResult, Calls, Conflict, NotWaiting, UnknownCall
from broker.errors import GenerationExpired
from broker.events import CancelReason, Completed, Entry, FinishReason, Status, encode
from broker.generation import State
from broker.lease import Busy, Ended, Lease, Paused, new_owner
from broker.log import Appended
from broker.position import BEGINNING
from broker.records import CancelOutcome
from tests.broker.conftest import Kit

#: As the worker's notes of the record call it: the ids of the calls that were asked for.
PENDING = "pending"
#: Longer than any test.
LONG_SECONDS = 600.0


def result(call: str, content: str = "x", *, is_error: bool = False) -> CallResult:
    return CallResult(call=call, content=content, is_error=is_error)


def asking(lease: Lease, seq: int = 1) -> Entry:
    return Entry(f"{seq}-{lease.epoch}", *encode(Status(phase="waiting_for_tools", detail={})))


async def ask(kit: Kit, lease: Lease, *calls: str) -> None:
    """Tell the client of these calls, as the holder of the lease does."""
    noted = {PENDING: "[" + ",".join(f'"{call}"' for call in calls) + "]"}
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, BEGINNING, [asking(lease)], noted)
    assert isinstance(answer, Appended)


async def paused(kit: Kit, *calls: str, seconds: float = LONG_SECONDS) -> Lease:
    """The lease under which a generation was paused for these calls."""
    lease = await kit.claimed()
    await ask(kit, lease, *calls)
    assert await kit.leases.pause(lease, seconds=seconds) is Paused.WAITING
    return lease


async def give(kit: Kit, lease: Lease, *results: CallResult) -> object:
    record = await kit.records.get("acme", lease.generation)
    return await Calls(kit.store, kit.queue).give(record, results)


async def state(kit: Kit, lease: Lease) -> State:
    return (await kit.records.get("acme", lease.generation)).state


async def end(kit: Kit, lease: Lease) -> None:
    """Complete it, as the holder of the lease does."""
    log = await kit.log.read_all(lease.generation)
    prev = log[-1].position if log else BEGINNING
    last = encode(Completed(finish_reason=FinishReason.STOP, usage=None, characters=0))
    entry = Entry(f"{len(log) + 1}-{lease.epoch}", *last)
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, prev, [entry])
    assert isinstance(answer, Appended)


async def lapsed(kit: Kit, lease: Lease) -> Lease:
    """The next claim, once the client's time is over."""
    while not isinstance(answer := await kit.leases.claim(lease.generation, owner=new_owner()), Lease):
        assert isinstance(answer, Busy)
        await asyncio.sleep(answer.wait_ms / 1000)
    return answer


# --- pause ---


async def test_a_paused_generation_is_nobody_s_and_says_what_it_waits_for(kit: Kit) -> None:
    lease = await paused(kit, "a", "b")
    record = await kit.records.get("acme", lease.generation)
    assert (record.state, record.pending, record.lease_live) == (State.WAITING_FOR_TOOLS, ["a", "b"], False)
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) is Paused.WAITING, "it may be repeated"
    waiting = await kit.leases.claim(lease.generation, owner=new_owner())
    assert isinstance(waiting, Busy)
    assert 0 < waiting.wait_ms <= LONG_SECONDS * 1000


async def test_whoever_paused_can_write_no_more(kit: Kit) -> None:
    lease = await paused(kit, "a")
    answer = await kit.log.append(lease.generation, lease.epoch, lease.owner, f"1-{lease.epoch}", [asking(lease, 2)])
    assert not isinstance(answer, Appended)


async def test_a_pause_that_comes_after_the_results_is_none(kit: Kit) -> None:
    """They are taken from the moment on that the client was told, also while the lease is held."""
    lease = await kit.claimed()
    assert await give(kit, lease, result("a")) == NotWaiting(State.RUNNING)
    await ask(kit, lease, "a", "b")
    assert await give(kit, lease, result("b")) == Accepted(1, 1)
    assert await give(kit, lease, result("a")) == Accepted(1, 0)
    assert await state(kit, lease) is State.RUNNING
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) is Paused.READY
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) is Paused.READY
    assert await state(kit, lease) is State.QUEUED
    following = await kit.claimed(lease.generation)
    assert dict(following.owed) == {"a": result("a").encode().decode(), "b": result("b").encode().decode()}


async def test_a_pause_that_is_repeated_after_the_results_says_that_they_are_there(kit: Kit) -> None:
    lease = await paused(kit, "a")
    assert await give(kit, lease, result("a")) == Accepted(1, 0)
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) is Paused.READY
    assert await state(kit, lease) is State.QUEUED


async def test_only_the_holder_pauses(kit: Kit) -> None:
    old = await kit.claimed()
    await ask(kit, old, "a")
    new = await kit.leases.claim(old.generation, owner=new_owner(), replacing=old)
    assert isinstance(new, Lease)
    assert await kit.leases.pause(old, seconds=LONG_SECONDS) is Paused.LOST
    assert await state(kit, old) is State.RUNNING
    await end(kit, new)
    assert await kit.leases.pause(new, seconds=LONG_SECONDS) is Paused.LOST
    await kit.records.delete(await kit.records.get("acme", new.generation))
    assert await kit.leases.pause(new, seconds=LONG_SECONDS) is Paused.LOST
    await kit.raw.delete(kit.store.keys.record(new.generation))
    assert await kit.leases.pause(new, seconds=LONG_SECONDS) is Paused.LOST


async def test_nothing_with_a_stored_cancel_is_paused(kit: Kit) -> None:
    lease = await kit.claimed()
    await ask(kit, lease, "a")
    record = await kit.records.get("acme", lease.generation)
    assert await kit.records.cancel(record, CancelReason.USER) is CancelOutcome.REQUESTED
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) == "user"
    assert (await kit.records.get("acme", lease.generation)).lease_live, "the holder writes the end"


# --- results ---


async def test_the_first_result_of_a_call_counts(kit: Kit) -> None:
    lease = await paused(kit, "a", "b")
    assert await give(kit, lease, result("a", "first")) == Accepted(1, 1)
    assert await give(kit, lease, result("a", "first")) == Accepted(0, 1)
    assert await give(kit, lease, result("a", "second")) == Conflict("a")
    assert await give(kit, lease, result("a", "first", is_error=True)) == Conflict("a")
    assert await give(kit, lease, result("a", "first"), result("b")) == Accepted(1, 0)
    assert await state(kit, lease) is State.QUEUED
    assert await give(kit, lease, result("a", "first"), result("b")) == Accepted(0, 0)
    assert await give(kit, lease, result("a", "second")) == Conflict("a")


@pytest.mark.parametrize("wrong", ["nobody asked", "a"], ids=["unknown", "conflict"])
@pytest.mark.parametrize("first", [True, False])
async def test_results_are_stored_together_or_not_at_all(kit: Kit, wrong: str, first: bool) -> None:
    lease = await paused(kit, "a", "b", "c")
    await give(kit, lease, result("a"))
    good, bad = result("b"), result(wrong, "another")
    answer = await give(kit, lease, *([bad, good] if first else [good, bad]))
    assert answer == (Conflict("a") if wrong == "a" else UnknownCall(wrong))
    assert await give(kit, lease, result("b", "still free")) == Accepted(1, 1)


async def test_results_given_at_once_by_many_are_stored_once(kit: Kit) -> None:
    lease = await paused(kit, "a")
    answers = await asyncio.gather(*(give(kit, lease, result("a", f"of {number}")) for number in range(10)))
    assert answers.count(Accepted(1, 0)) == 1
    assert answers.count(Conflict("a")) == 9
    following = await kit.claimed(lease.generation)
    stored = CallResult.decode("a", following.owed["a"] or "")
    assert stored.content == f"of {answers.index(Accepted(1, 0))}"


@pytest.mark.parametrize(
    "content",
    ["", "ünï 🚀 \x00 \n", '"quoted" \\ {}', "x" * 200_000],
    ids=["empty", "any characters", "quotes", "long"],
)
async def test_a_result_is_read_back_as_it_was_given(kit: Kit, content: str) -> None:
    given = result("call:1 ü", content, is_error=True)
    lease = await paused(kit, given.call)
    assert await give(kit, lease, given) == Accepted(1, 0)
    following = await kit.claimed(lease.generation)
    assert CallResult.decode(given.call, following.owed[given.call] or "") == given


async def test_what_waits_for_nothing_takes_nothing(kit: Kit) -> None:
    queued = await kit.submitted()
    record = await kit.records.get("acme", queued)
    calls = Calls(kit.store, kit.queue)
    assert await calls.give(record, [result("a")]) == NotWaiting(State.QUEUED)
    lease = await kit.claimed(queued)
    assert await give(kit, lease, result("a")) == NotWaiting(State.RUNNING)
    await end(kit, lease)
    assert await give(kit, lease, result("a")) == NotWaiting(State.COMPLETED)
    await kit.records.delete(record)
    with pytest.raises(GenerationExpired):
        await calls.give(record, [result("a")])
    await kit.raw.delete(kit.store.keys.record(queued))
    with pytest.raises(GenerationExpired):
        await calls.give(record, [result("a")])


async def test_after_the_end_what_was_stored_is_still_known_and_nothing_is_added(kit: Kit) -> None:
    lease = await paused(kit, "a", "b", seconds=0.2)
    await give(kit, lease, result("a"))
    following = await lapsed(kit, lease)
    await end(kit, following)
    assert await give(kit, following, result("a")) == Accepted(0, 1)
    assert await give(kit, following, result("a", "another")) == Conflict("a")
    assert await give(kit, following, result("b")) == NotWaiting(State.COMPLETED)
    assert await give(kit, following, result("a"), result("b")) == NotWaiting(State.COMPLETED)
    assert await give(kit, following, result("nobody asked")) == NotWaiting(State.COMPLETED)
    assert await state(kit, following) is State.COMPLETED


async def test_the_last_result_puts_the_hint_to_the_front_each_time_it_is_said(kit: Kit) -> None:
    lease = await paused(kit, "a", "b")
    [hint] = (await kit.queue.take(5)).hints
    assert hint.generation == lease.generation
    await kit.queue.look_again([hint], round(LONG_SECONDS * 1000))
    await give(kit, lease, result("a"))
    assert (await kit.queue.take(5)).hints == []
    for _ in range(2):  # the answer to the first one may be lost
        await give(kit, lease, result("a"), result("b"))
        assert (await kit.queue.take(5)).hints == [hint]


# --- the next claim ---


async def test_the_next_claim_has_the_results_and_is_no_new_attempt(kit: Kit) -> None:
    lease = await paused(kit, "a", "b")
    await give(kit, lease, result("b", "B"))
    await give(kit, lease, result("a", "A", is_error=True))
    following = await kit.claimed(lease.generation)
    assert (following.epoch, following.attempt, following.overdue) == (lease.epoch + 1, lease.attempt, False)
    found = [CallResult.decode(call, text or "") for call, text in following.owed.items()]
    assert found == [result("a", "A", is_error=True), result("b", "B")]


async def test_the_claim_after_the_client_s_time_says_that_it_is_over(kit: Kit) -> None:
    lease = await paused(kit, "a", "b", seconds=0.2)
    await give(kit, lease, result("b", "B"))
    following = await lapsed(kit, lease)
    assert (following.overdue, following.attempt) == (True, lease.attempt)
    assert dict(following.owed) == {"a": None, "b": result("b", "B").encode().decode()}


async def test_a_claim_that_is_repeated_says_the_same_of_the_client_s_time(kit: Kit) -> None:
    """The answer to the first one may be lost; the client does not get its time once more."""
    lease = await paused(kit, "a", seconds=0.2)
    owner = new_owner()
    while not isinstance(first := await kit.leases.claim(lease.generation, owner=owner), Lease):
        assert isinstance(first, Busy)
        await asyncio.sleep(first.wait_ms / 1000)
    again = await kit.leases.claim(lease.generation, owner=owner)
    assert isinstance(again, Lease)
    assert (again.epoch, again.overdue) == (first.epoch, first.overdue) == (first.epoch, True)


async def test_a_second_question_forgets_nothing_of_the_first(kit: Kit) -> None:
    """The call of an earlier round: the same result is still accepted, another one is not, and the new one is owed."""
    lease = await paused(kit, "a")
    await give(kit, lease, result("a"))
    following = await kit.claimed(lease.generation)
    prev, entry = f"1-{lease.epoch}", asking(following, 2)
    await kit.log.append(following.generation, following.epoch, following.owner, prev, [entry], {PENDING: '["b"]'})
    assert await kit.leases.pause(following, seconds=LONG_SECONDS) is Paused.WAITING
    assert await give(kit, following, result("a")) == Accepted(0, 1)
    assert await give(kit, following, result("a", "another")) == Conflict("a")
    assert await state(kit, following) is State.WAITING_FOR_TOOLS
    assert await give(kit, following, result("b")) == Accepted(1, 0)
    third = await kit.claimed(following.generation)
    assert list(third.owed) == ["b"]


async def test_what_is_noted_with_events_is_stored_exactly_if_they_are(kit: Kit) -> None:
    lease = await kit.claimed()
    at = (lease.generation, lease.epoch, lease.owner)
    await kit.log.append(*at, BEGINNING, [asking(lease)], {PENDING: '["a"]'})
    assert await kit.log.append(*at, BEGINNING, [asking(lease)], {PENDING: '["other"]'}) == Appended(
        f"1-{lease.epoch}", 0, ""
    )
    assert (await kit.records.get("acme", lease.generation)).pending == ["a"]
    await kit.log.append(*at, f"5-{lease.epoch}", [asking(lease, 6)], {PENDING: '["other"]'})
    assert (await kit.records.get("acme", lease.generation)).pending == ["a"]
    impostor = (lease.generation, lease.epoch, "somebody")
    await kit.log.append(*impostor, f"1-{lease.epoch}", [asking(lease, 2)], {PENDING: '["other"]'})
    assert (await kit.records.get("acme", lease.generation)).pending == ["a"]
    await kit.log.append(*at, f"1-{lease.epoch}", [asking(lease, 2)], {PENDING: '["b"]'})
    assert (await kit.records.get("acme", lease.generation)).pending == ["b"]


# --- cancel and delete ---


async def test_a_cancel_ends_a_paused_generation_in_that_step(kit: Kit) -> None:
    lease = await paused(kit, "a")
    record = await kit.records.get("acme", lease.generation)
    assert await kit.records.cancel(record, CancelReason.USER) is CancelOutcome.CANCELLED
    assert (await kit.log.read_all(lease.generation))[-1].field == b"cancelled"
    assert await give(kit, lease, result("a")) == NotWaiting(State.CANCELLED)
    assert await kit.leases.claim(lease.generation, owner=new_owner()) == Ended(State.CANCELLED)
    assert await kit.leases.pause(lease, seconds=LONG_SECONDS) is Paused.LOST


async def test_a_deleted_generation_keeps_no_results(kit: Kit) -> None:
    lease = await paused(kit, "a", "b")
    await give(kit, lease, result("a", "a secret"))
    record = await kit.records.get("acme", lease.generation)
    await kit.records.delete(record)
    with pytest.raises(GenerationExpired):
        await Calls(kit.store, kit.queue).give(record, [result("b")])
    assert b"a secret" not in b"".join((await kit.raw.hgetall(kit.store.keys.record(lease.generation))).values())

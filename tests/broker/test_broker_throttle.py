"""Limits, circuit and retries of a provider, rule by rule, on a server and a cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from broker.declared import ProviderLimits
from broker.settings import Settings
from broker.store import Store
from broker.throttle import (
    LEASES,
    LONGEST_HOLD_MS,
    MOST_PROBES,
    Admitted,
    Circuit,
    Outcome,
    Refused,
    Throttle,
    ThrottleState,
    Wait,
)
from tests.broker.conftest import Kit
from tests.support.still_clock import StillClock

MINUTE_MS = 60_000
#: Longest wait that is told for a bucket, and how long a turn is kept beyond the wait that was told.
LONGEST_BUCKET_MS, GRACE_MS = 5_000, 3_000
LIMITED = "openai"
OPEN_MS = 10_000


class Providers:
    """A throttle with few words, and a clock that only `pass_ms` moves on."""

    def __init__(self, kit: Kit, **changed: Any) -> None:
        store = Store.__new__(Store)
        changed = {"lease_seconds": 10, **changed}  # what is stored lives a few of them, or longer where it must
        store.__dict__ = kit.store.__dict__ | {"settings": kit.store.settings.model_copy(update=changed)}
        self.store = store
        self.throttle = Throttle(store)
        self.raw = kit.raw
        self.clock = StillClock(store)

    async def ask(
        self, holder: str, *, tokens: int = 0, retry: bool = False, provider: str = LIMITED, claim: int = 1
    ) -> Admitted | Wait | Refused:
        return await self.throttle.admit(provider, holder, tokens=tokens, retry=retry, claim=claim)

    async def admitted(self, *holders: str, **options: Any) -> None:
        for holder in holders:
            assert await self.ask(holder, **options) == Admitted(), holder

    async def waits(self, *holders: str, reason: str, **options: Any) -> int:
        """All of them do, for this; how long the last one does, in ms."""
        wait_ms = 0
        for holder in holders:
            answer = await self.ask(holder, **options)
            assert isinstance(answer, Wait), holder
            assert answer.reason == reason, holder
            assert answer.wait_ms > 0
            wait_ms = answer.wait_ms
        return wait_ms

    async def ended(self, *holders: str, outcome: Outcome = Outcome.OK, **options: Any) -> None:
        for holder in holders:
            await self.throttle.settle(LIMITED, holder, outcome, **options)

    async def fails(self, *holders: str) -> None:
        """Calls that begin and fail."""
        for holder in holders:
            await self.admitted(holder)
            await self.ended(holder, outcome=Outcome.FAILED)

    async def opened(self, name: str = "x") -> None:
        """The circuit opens by ten failures."""
        await self.admitted(*(f"{name}{n}" for n in range(10)))
        await self.ended(*(f"{name}{n}" for n in range(10)), outcome=Outcome.FAILED)
        assert (await self.state()).circuit is Circuit.OPEN

    async def half_opened(self) -> None:
        self.pass_ms(await self.waits("nobody", reason="circuit_open"))
        assert (await self.state()).circuit is Circuit.HALF_OPEN

    async def state(self) -> ThrottleState:
        return await self.throttle.state(LIMITED)

    def pass_ms(self, ms: int) -> None:
        self.clock.ms += ms


def limited(kit: Kit, **limits: int) -> Providers:
    return Providers(kit, provider_limits={LIMITED: ProviderLimits(**limits)})


# Concurrency.


async def test_no_more_calls_run_than_may_and_one_that_ends_makes_room(kit: Kit) -> None:
    them = limited(kit, concurrency=2)
    await them.admitted("a", "b")
    assert 50 <= await them.waits("c", reason="concurrency") <= 1000
    await them.ended("a")
    await them.admitted("c")
    await them.waits("d", reason="concurrency")


async def test_a_holder_that_is_admitted_again_takes_nothing_again(kit: Kit) -> None:
    """Its answer was lost."""
    them = limited(kit, concurrency=2, requests_per_minute=2, tokens_per_minute=100)
    await them.admitted("a", "a", "a", tokens=50)
    await them.admitted("b", tokens=50)
    await them.ended("a", tokens=50)
    await them.waits("c", reason="requests", tokens=1)


async def test_a_call_that_is_settled_again_frees_nothing_again(kit: Kit) -> None:
    them = limited(kit, concurrency=2, tokens_per_minute=100)
    await them.admitted("a", "b", tokens=50)
    await them.ended("a", "a", "a", "nobody", tokens=25)
    assert (await them.state()).in_flight == 1
    await them.waits("c", reason="tokens", tokens=30)
    await them.ended("c", outcome=Outcome.NEUTRAL)
    await them.admitted("d", tokens=25)
    await them.waits("e", reason="concurrency")


async def test_a_later_claim_of_a_holder_gives_up_the_call_of_the_earlier_one_and_pays_for_its_own(kit: Kit) -> None:
    """The worker with the earlier claim is lost; should it wake, it frees nothing and gets nothing."""
    them = limited(kit, concurrency=2, requests_per_minute=4, tokens_per_minute=100)
    await them.admitted("a", "b", tokens=20, claim=1)
    await them.admitted("a", "a", tokens=20, claim=2)
    assert (await them.state()).in_flight == 2
    await them.ended("a", outcome=Outcome.FAILED, tokens=0, claim=1)
    await them.waits("a", reason="concurrency", claim=1)
    assert (await them.state()).in_flight == 2
    await them.ended("a", tokens=20, claim=2)
    assert (await them.state()).in_flight == 1
    await them.waits("c", reason="tokens", tokens=41)
    await them.ended("c", outcome=Outcome.NEUTRAL)
    await them.admitted("c", tokens=40)
    await them.ended("c", tokens=0)
    await them.waits("d", reason="requests")


async def test_slots_of_a_killed_worker_come_back_and_those_that_are_kept_do_not(kit: Kit) -> None:
    them = limited(kit, concurrency=2)
    await them.admitted("killed", "kept")
    lease_ms = LEASES * them.store.settings.lease_ms
    them.pass_ms(lease_ms // 2)
    await them.throttle.keep(LIMITED, ["kept", "nobody"])
    await them.waits("a", reason="concurrency")
    them.pass_ms(lease_ms // 2 + 1)
    assert (await them.state()).in_flight == 1
    await them.admitted("a")
    await them.waits("b", reason="concurrency")


async def test_who_asked_first_goes_first(kit: Kit) -> None:
    them = limited(kit, concurrency=1)
    await them.admitted("a")
    await them.waits("z", "y", "x", reason="concurrency")
    await them.ended("a")
    await them.waits("x", "y", "latecomer", reason="concurrency")
    await them.admitted("z")
    await them.ended("z")
    await them.waits("latecomer", "x", reason="concurrency")
    await them.admitted("y")


async def test_as_many_as_there_is_room_for_may_go_in_any_order(kit: Kit) -> None:
    """The first one need not have asked again before the second one may go."""
    them = limited(kit, concurrency=2)
    await them.admitted("a", "b")
    await them.waits("c", "d", "e", reason="concurrency")
    await them.ended("a", "b")
    await them.waits("e", reason="concurrency")
    await them.admitted("d", "c")


async def test_who_asks_no_more_loses_its_turn_and_not_before(kit: Kit) -> None:
    them = limited(kit, concurrency=1)
    await them.admitted("a")
    wait_ms = await them.waits("gone", reason="concurrency")
    await them.ended("a")
    await them.waits("b", reason="concurrency")
    them.pass_ms(wait_ms + GRACE_MS // 2)
    await them.waits("b", reason="concurrency")
    them.pass_ms(GRACE_MS // 2)
    await them.admitted("b")
    await them.waits("gone", reason="concurrency")


async def test_who_gives_up_waiting_gives_its_turn_back_at_once(kit: Kit) -> None:
    them = limited(kit, concurrency=1)
    await them.admitted("a")
    await them.waits("b", "c", reason="concurrency")
    await them.ended("a")
    await them.ended("b", outcome=Outcome.NEUTRAL)
    await them.admitted("c")


# Requests and tokens a minute.


async def test_a_minutes_requests_may_go_at_once_and_then_as_they_flow_in(kit: Kit) -> None:
    them = limited(kit, requests_per_minute=12)
    await them.admitted(*(f"a{n}" for n in range(12)))
    assert await them.waits("b", reason="requests") == 5000
    them.pass_ms(10_000)
    await them.admitted("b", "c")
    await them.waits("d", reason="requests")
    them.pass_ms(10 * MINUTE_MS)
    await them.admitted("d", *(f"e{n}" for n in range(11)))
    await them.waits("f", reason="requests")


async def test_the_wait_for_a_bucket_is_exact_and_told_in_parts_when_it_is_long(kit: Kit) -> None:
    them = limited(kit, requests_per_minute=4)
    await them.admitted("a", "b", "c", "d")
    waited_ms = 0
    while isinstance(answer := await them.ask("e"), Wait):
        assert answer.wait_ms <= LONGEST_BUCKET_MS
        waited_ms += answer.wait_ms
        them.pass_ms(answer.wait_ms)
    assert answer == Admitted()
    assert waited_ms == MINUTE_MS / 4


async def test_what_was_used_replaces_what_was_estimated(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1_000_000)
    await them.admitted("a", tokens=1_000_000)
    await them.waits("b", reason="tokens", tokens=600_000)
    await them.ended("a", tokens=300_000)
    await them.admitted("b", tokens=600_000)
    await them.ended("b", tokens=1_500_000)  # more than it said: a debt
    them.pass_ms(MINUTE_MS // 2)
    await them.waits("c", reason="tokens", tokens=1)
    them.pass_ms(MINUTE_MS // 2)
    await them.admitted("c", tokens=100_000)


async def test_without_a_word_on_what_was_used_the_estimate_stays(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("a", tokens=1000)
    await them.ended("a")
    await them.waits("b", reason="tokens", tokens=500)


async def test_what_comes_back_fills_a_bucket_and_no_more(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("a", tokens=1000)
    them.pass_ms(MINUTE_MS)
    await them.ended("a", tokens=0)
    await them.admitted("b", tokens=1000)
    await them.waits("c", reason="tokens", tokens=500)


async def test_what_was_used_beyond_the_estimate_is_owed_from_the_end_of_the_call(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("a", tokens=10)
    them.pass_ms(10 * MINUTE_MS)
    await them.ended("a", tokens=1510)
    await them.waits("b", reason="tokens", tokens=10)


async def test_a_request_larger_than_its_bucket_goes_when_that_is_full_and_leaves_a_debt(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("small", tokens=500)
    await them.waits("huge", reason="tokens", tokens=5000)
    for _ in range(6):
        them.pass_ms(LONGEST_BUCKET_MS)
        answer = await them.ask("huge", tokens=5000)
    assert answer == Admitted()
    assert await them.raw.pttl(them.store.keys.throttle(LIMITED)) > 4 * MINUTE_MS, "a debt is not forgotten"
    them.pass_ms(4 * MINUTE_MS)
    await them.waits("a", reason="tokens", tokens=10)
    them.pass_ms(LONGEST_BUCKET_MS)
    await them.admitted("a", tokens=10)


async def test_a_large_request_is_not_overtaken_by_small_ones_for_ever(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("first", tokens=1000)
    await them.waits("large", reason="tokens", tokens=900)
    for second in range(0, 54, 3):
        await them.waits(f"small{second}", reason="tokens", tokens=10)
        await them.waits("large", reason="tokens", tokens=900)
        them.pass_ms(3000)
    await them.admitted("large", tokens=900)


async def test_later_ones_go_too_when_there_is_enough_for_those_before_them(kit: Kit) -> None:
    them = limited(kit, tokens_per_minute=1000)
    await them.admitted("first", tokens=1000)
    await them.waits("a", reason="tokens", tokens=40)
    await them.waits("b", reason="tokens", tokens=30)
    them.pass_ms(4000)
    await them.waits("b", reason="tokens", tokens=30)
    them.pass_ms(1000)
    await them.admitted("b", tokens=30)
    await them.admitted("a", tokens=40)


# Circuit.


async def test_too_many_failures_open_the_circuit_and_then_nobody_is_admitted(kit: Kit) -> None:
    them = Providers(kit)
    await them.admitted(*"abcdefghij", "k")
    await them.ended(*"abcde", outcome=Outcome.OK)
    await them.ended(*"fghi", outcome=Outcome.FAILED)
    assert (await them.state()).circuit is Circuit.CLOSED
    await them.ended("j", outcome=Outcome.FAILED)  # five of ten
    assert (await them.state()).circuit is Circuit.OPEN
    assert OPEN_MS <= await them.waits("l", "m", reason="circuit_open") <= 1.25 * OPEN_MS
    await them.admitted("k")  # it runs since before


async def test_fewer_calls_than_it_takes_open_nothing(kit: Kit) -> None:
    them = Providers(kit)
    await them.fails(*"abcdefghi")
    assert (await them.state()).circuit is Circuit.CLOSED
    await them.fails("j")
    assert (await them.state()).circuit is Circuit.OPEN


async def test_a_smaller_share_of_failures_opens_nothing(kit: Kit) -> None:
    them = Providers(kit)
    for n in range(20):
        await them.admitted(f"a{n}", f"b{n}", f"c{n}")
        await them.ended(f"b{n}", f"c{n}", outcome=Outcome.OK)
        await them.ended(f"a{n}", outcome=Outcome.FAILED)
    assert (await them.state()).circuit is Circuit.CLOSED


async def test_what_is_not_the_providers_fault_says_nothing_of_it(kit: Kit) -> None:
    them = Providers(kit)
    for n in range(20):
        await them.admitted(f"n{n}")
        await them.ended(f"n{n}", outcome=Outcome.NEUTRAL)
    await them.fails(*"abcdefghi")
    assert (await them.state()).circuit is Circuit.CLOSED


async def test_a_failure_that_is_reported_twice_is_one(kit: Kit) -> None:
    them = Providers(kit)
    await them.fails(*"abcdefghi")
    await them.ended("i", "i", outcome=Outcome.FAILED)
    assert (await them.state()).circuit is Circuit.CLOSED


async def test_failures_older_than_the_window_are_forgotten(kit: Kit) -> None:
    them = Providers(kit)
    await them.fails(*"abcdefghi")
    them.pass_ms(30_000)
    await them.fails("j")
    assert (await them.state()).circuit is Circuit.CLOSED
    them.pass_ms(15_000)
    await them.fails(*"klmnopqrs"[:8])
    assert (await them.state()).circuit is Circuit.CLOSED
    await them.fails("z")
    assert (await them.state()).circuit is Circuit.OPEN


async def test_after_its_pause_a_few_calls_try_and_one_that_is_well_closes_it(kit: Kit) -> None:
    them = Providers(kit)
    await them.opened()
    await them.half_opened()
    probes = [f"p{n}" for n in range(MOST_PROBES)]
    await them.admitted(*probes)
    await them.waits("a", "b", reason="circuit_open")
    await them.ended(probes[0])
    assert (await them.state()).circuit is Circuit.CLOSED
    await them.admitted(*(f"c{n}" for n in range(20)))
    await them.fails(*"abcdefghi")
    assert (await them.state()).circuit is Circuit.CLOSED, "what was before the outage does not count"


async def test_a_probe_that_fails_opens_it_again_for_longer_and_longer(kit: Kit) -> None:
    them = Providers(kit)
    await them.opened()
    for times in (2, 4, 8, 8):
        await them.half_opened()
        await them.fails("p")
        assert (await them.state()).circuit is Circuit.OPEN
        assert times * OPEN_MS <= await them.waits("a", reason="circuit_open") <= times * 1.25 * OPEN_MS
    await them.half_opened()
    await them.admitted("p")
    await them.ended("p")
    await them.opened("y")
    assert await them.waits("a", reason="circuit_open") <= 1.25 * OPEN_MS, "short again after it was closed"


async def test_a_probe_that_vanished_does_not_block_others_for_ever(kit: Kit) -> None:
    them = Providers(kit)
    await them.opened()
    await them.half_opened()
    vanished = [f"p{n}" for n in range(MOST_PROBES)]
    await them.admitted(*vanished)
    await them.waits("a", reason="circuit_open")
    them.pass_ms(OPEN_MS)
    await them.throttle.keep(LIMITED, vanished)  # nor does one that takes long
    await them.admitted("a")
    await them.ended("a")
    assert (await them.state()).circuit is Circuit.CLOSED


async def test_a_probe_that_says_nothing_makes_room_for_another(kit: Kit) -> None:
    them = Providers(kit)
    await them.opened()
    await them.half_opened()
    await them.admitted(*(f"p{n}" for n in range(MOST_PROBES)))
    await them.ended("p0", outcome=Outcome.NEUTRAL)
    assert (await them.state()).circuit is Circuit.HALF_OPEN
    await them.admitted("a")
    await them.waits("b", reason="circuit_open")


async def test_calls_from_before_an_outage_have_no_say_after_it(kit: Kit) -> None:
    them = Providers(kit)
    old = [f"old{n}" for n in range(30)]
    await them.admitted(*old)
    await them.opened()
    await them.ended(*old[:5])
    assert (await them.state()).circuit is Circuit.OPEN
    await them.half_opened()
    await them.ended(*old[5:10])
    await them.ended(*old[10:15], outcome=Outcome.FAILED)
    assert (await them.state()).circuit is Circuit.HALF_OPEN
    await them.admitted("p", "q")
    await them.ended("p")
    await them.ended("q", *old[15:], outcome=Outcome.FAILED)
    assert (await them.state()).circuit is Circuit.CLOSED


async def test_probes_keep_to_the_limits(kit: Kit) -> None:
    them = limited(kit, requests_per_minute=11)
    await them.opened()
    them.pass_ms(round(1.25 * OPEN_MS))
    await them.admitted("a", "b")
    await them.ended("a", "b", outcome=Outcome.NEUTRAL)
    await them.admitted("c")
    await them.waits("d", reason="requests")


# Retries.


async def test_retries_are_a_share_of_first_calls_and_a_few_more(kit: Kit) -> None:
    them = Providers(kit, retry_ratio=0.5, retry_floor=2)
    await them.admitted("r1", "r2", retry=True)
    assert await them.ask("r3", retry=True) == Refused("retry_budget")
    await them.admitted("a")
    assert await them.ask("r3", retry=True) == Refused("retry_budget")
    await them.admitted("b")
    await them.admitted("r3", retry=True)
    assert await them.ask("r4", retry=True) == Refused("retry_budget"), "retries earn nothing"
    await them.admitted("c")  # first calls go on
    them.pass_ms(MINUTE_MS)
    await them.admitted("r4", "r5", retry=True)
    assert await them.ask("r6", retry=True) == Refused("retry_budget"), "what was earned is gone with its minute"


async def test_a_retry_that_is_admitted_again_is_paid_for_once(kit: Kit) -> None:
    them = Providers(kit, retry_ratio=0.0, retry_floor=2)
    await them.admitted("r1", "r1", "r1", retry=True)
    await them.admitted("r2", "r1", "r2", retry=True)
    assert await them.ask("r3", retry=True) == Refused("retry_budget")


async def test_a_retry_that_waits_is_not_paid_for_and_one_that_is_refused_waits_no_more(kit: Kit) -> None:
    them = Providers(kit, retry_ratio=0.0, retry_floor=1, provider_limits={LIMITED: ProviderLimits(concurrency=1)})
    await them.admitted("a")
    await them.waits("r1", "r1", "r2", "b", reason="concurrency", retry=True)
    await them.ended("a")
    await them.admitted("r1", retry=True)
    assert await them.ask("r2", retry=True) == Refused("retry_budget")
    await them.ended("r1")
    assert (await them.state()).waiting == 1
    await them.admitted("b")


# Retry-After.


async def test_a_providers_retry_after_holds_everybody_back_until_then(kit: Kit) -> None:
    them = Providers(kit)
    await them.admitted("a", "b")
    await them.ended("a", outcome=Outcome.NEUTRAL, hold_ms=20_000)
    assert await them.waits("c", "d", reason="retry_after") == 20_000
    await them.ended("b", outcome=Outcome.NEUTRAL, hold_ms=1000)
    assert await them.waits("c", reason="retry_after") == 20_000, "the longest counts"
    them.pass_ms(20_000)
    await them.admitted("c", "d")


async def test_nobody_is_held_back_for_longer_than_a_minute(kit: Kit) -> None:
    them = Providers(kit)
    await them.admitted("a")
    await them.ended("a", outcome=Outcome.NEUTRAL, hold_ms=3_600_000)
    assert await them.waits("b", reason="retry_after") == LONGEST_HOLD_MS


async def test_a_hold_that_is_reported_again_does_not_last_longer(kit: Kit) -> None:
    them = Providers(kit)
    await them.admitted("a")
    await them.ended("a", outcome=Outcome.NEUTRAL, hold_ms=5000)
    them.pass_ms(4000)
    await them.ended("a", outcome=Outcome.NEUTRAL, hold_ms=5000)
    assert await them.waits("b", reason="retry_after") == 1000


# All of it.


async def test_the_state_of_a_provider_says_who_runs_and_who_waits(kit: Kit) -> None:
    them = limited(kit, concurrency=2)
    assert await them.state() == ThrottleState(circuit=Circuit.CLOSED, in_flight=0, waiting=0)
    await them.admitted("a", "b")
    await them.waits("c", "d", "e", reason="concurrency")
    assert await them.state() == ThrottleState(circuit=Circuit.CLOSED, in_flight=2, waiting=3)
    them.pass_ms(LEASES * them.store.settings.lease_ms)
    assert (await them.state()).in_flight == 0, "nobody has come by to tidy up"


async def test_one_provider_says_nothing_of_another(kit: Kit) -> None:
    them = limited(kit, concurrency=10)
    await them.opened()
    assert await them.ask("a", provider="openai_responses") == Admitted()
    assert (await them.throttle.state("openai_responses")).circuit is Circuit.CLOSED


async def test_a_provider_that_nobody_uses_leaves_nothing_behind(kit: Kit) -> None:
    """Every key goes by itself, and what many calls leave is small."""
    them = limited(kit, concurrency=3, requests_per_minute=6000, tokens_per_minute=10**6)
    for n in range(200):
        await them.ask(f"a{n}", tokens=10)
        await them.ended(f"a{n}", outcome=Outcome.OK if n % 3 else Outcome.NEUTRAL, tokens=5, hold_ms=0)
    await them.admitted("x", "y", "z")
    await them.waits("w", reason="concurrency")
    keys = them.store.keys
    names = [key(LIMITED) for key in (keys.throttle, keys.running, keys.calls, keys.waiting, keys.asked, keys.probes)]
    there = [name for name in names if await them.raw.exists(name)]
    assert len(there) == 5, "all but the probes"
    assert await them.raw.hlen(keys.throttle(LIMITED)) <= 30
    for name in there:
        assert 0 < await them.raw.pttl(name) <= 10 * MINUTE_MS
    await them.ended(*"wxyz")
    assert [name for name in names if await them.raw.exists(name)] == [keys.throttle(LIMITED)]
    found = [key async for key in them.store.scan(f"{keys.prefix}:*")]
    assert set(found) == {keys.throttle(LIMITED)}, "no other key is used"


async def test_keys_last_as_long_as_a_call_that_is_kept(kit: Kit) -> None:
    them = limited(kit, concurrency=1)
    await them.admitted("a")
    keys = them.store.keys
    for name in (keys.throttle(LIMITED), keys.running(LIMITED), keys.calls(LIMITED)):
        await them.raw.pexpire(name, MINUTE_MS // 2)
    await them.throttle.keep(LIMITED, ["a"])
    for name in (keys.throttle(LIMITED), keys.running(LIMITED), keys.calls(LIMITED)):
        assert await them.raw.pttl(name) > MINUTE_MS


# Settings.


def configured(monkeypatch: pytest.MonkeyPatch, value: object) -> dict[str, ProviderLimits]:
    monkeypatch.setenv("LEGATO_OPENAI_COMPATIBLE", '{"groq": {"base_url": "http://127.0.0.1:1/v1"}}')
    monkeypatch.setenv("LEGATO_PROVIDER_LIMITS", value if isinstance(value, str) else json.dumps(value))
    return Settings().provider_limits


def test_each_provider_has_the_limits_that_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEGATO_PROVIDER_LIMITS", raising=False)
    assert Settings().provider_limits == {}
    limits = {"openai": {"concurrency": 200, "tokens_per_minute": 2_000_000}, "groq": {"requests_per_minute": 30}}
    assert configured(monkeypatch, limits) == {
        "openai": ProviderLimits(concurrency=200, tokens_per_minute=2_000_000),
        "groq": ProviderLimits(requests_per_minute=30),
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("openai=200", "not JSON"),
        ("[]", "not an object"),
        ({"opanai": {}}, "unknown provider 'opanai'; there are anthropic, groq, openai"),
        ({"openai": 200}, "openai: Input should be"),
        ({"openai": {"concurrency": 0}}, "openai.concurrency: Input should be greater than or equal to 1"),
        ({"openai": {"requests_per_minute": "5"}}, "openai.requests_per_minute: Input should be a valid integer"),
        ({"openai": {"tokens_per_minute": 1.5}}, "openai.tokens_per_minute: Input should be a valid integer"),
        ({"openai": {"tokens": 5}}, "openai.tokens: Extra inputs are not permitted"),
        (
            {"openai": {"concurrency": 2, "shared_with": "groq"}, "groq": {}},
            "openai: Value error, shared_with stands alone",
        ),
        ({"openai": {"shared_with": "groq"}}, "openai.shared_with: 'groq' has no limits of its own here"),
        ({"openai": {"shared_with": "openai"}}, "openai.shared_with: 'openai' has no limits of its own here"),
    ],
)
def test_what_is_wrong_with_limits_is_named(monkeypatch: pytest.MonkeyPatch, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(monkeypatch, value)
    (error,) = caught.value.errors(include_url=False, include_input=False)
    assert error["loc"] == ("provider_limits",), "so that the command names the variable"
    assert said in error["msg"]

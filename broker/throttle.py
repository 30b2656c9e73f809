"""What one provider is asked, by all workers together: its limits, its circuit breaker, and a budget of retries.

A worker asks `admit` before each call to a provider and tells `settle` after it; between the two it renews the call's
slot with `keep`. Each is one script on the provider's keys (`scripts/admit.lua` and others), so what a hundred workers
do together is decided in one place, on one clock. All of them may be repeated: a call that is admitted or settled twice
counts once. It decides when a call may be made and never whether a generation fails.

Buckets: requests and tokens a minute flow back continuously, and a bucket holds a whole minute's worth, because that is
what the providers have (Anthropic documents a token bucket, OpenAI quotas that replenish as time passes). So any 60 s
see at most twice a quota: a full bucket, and what flows in meanwhile. A request larger than its bucket waits until that
is full, goes, and leaves a debt. Tokens are counted as estimated until `settle` says what was used.

Turns: who waits keeps a ticket as long as it asks again, and later ones come behind it, for concurrency and buckets
alike. One that stops asking loses its turn about 3 s after it was to come; `settle` gives it back at once.

Circuit: calls that ended within a window, in ten parts of it; too many failures open it. After a pause a few calls try
the provider, again as many each `breaker_open_seconds` until one of them has ended: a probe may be a long text, or its
worker may be dead. The first end decides. A call from before an opening or a closing has no say after it (the
`generation` of sony/gobreaker).

Retries: at most a share of the first calls of the last minute, and a few more. It is Finagle's `RetryBudget`: deposits
by first calls that expire, a reserve, a withdrawal by each retry. Retries are no deposits, or they would feed
themselves.

A call whose slot lapsed because its worker stood still goes on beside the limit: it cannot be taken back. An answer
that is repeated after a break may arrive behind the call's `settle`, and takes a slot for a lease.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import structlog

from broker.declared import ProviderLimits
from broker.scripts import ADMIT, KEEP, PROVIDER, SETTLE
from broker.store import Store
from broker.wire import Arg

_log = structlog.get_logger("legato.broker")

#: A slot lives this many leases without a sign of its holder.
LEASES: Final = 3

#: Calls that try a provider at once, so that one of them may hang.
MOST_PROBES: Final = 2

#: The longest that a provider's Retry-After holds everybody back, in ms.
LONGEST_HOLD_MS: Final = 60_000

#: The most that a circuit's pause grows to: 8 times as long, and a quarter of that as jitter.
_LONGEST_PAUSES: Final = 8 * 1.25

#: What nobody uses goes this long after the last moment at which it means something, in ms.
_SPARE_MS: Final = 120_000


@dataclass(frozen=True, slots=True)
class Admitted:
    """Make the call, `keep` its slot, and `settle` it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again in `wait_ms`; sooner is no use, later than about 3 s more loses the turn."""

    wait_ms: int
    reason: Literal["concurrency", "requests", "tokens", "circuit_open", "retry_after"]


@dataclass(frozen=True, slots=True)
class Refused:
    """Do not make this retry: it would multiply an outage. The holder has lost its turn."""

    reason: Literal["retry_budget"]


class Outcome(Enum):
    """What a call says of its provider."""

    OK = "ok"
    FAILED = "failed"  # the provider's fault: an error, an answer without an end, silence, a timeout
    NEUTRAL = "neutral"  # nothing: cancelled, the request's own fault, rate limited


class Circuit(Enum):
    """Whether a provider is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # a few try it


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleState:
    """How a provider stands."""

    circuit: Circuit
    in_flight: int  # calls that hold a slot
    waiting: int  # holders that wait for a turn; nobody has one while the circuit is open


class Throttle:
    """The providers of one deployment, over one store; limits and rules are the store's settings."""

    def __init__(self, store: Store) -> None:
        self._store = store
        settings = store.settings
        self._lease_ms = LEASES * settings.lease_ms
        self._window_ms = round(settings.breaker_window_seconds * 1000)
        self._open_ms = round(settings.breaker_open_seconds * 1000)
        longest_pause_ms = round(_LONGEST_PAUSES * self._open_ms)
        self._ttl_ms = max(self._lease_ms, self._window_ms, longest_pause_ms, LONGEST_HOLD_MS) + _SPARE_MS

    async def admit(
        self, provider: str, holder: str, *, tokens: int, retry: bool, claim: int = 1
    ) -> Admitted | Wait | Refused:
        """Ask to make a call. `holder` makes one at a time; `tokens` is the most it may use, prompt and answer. A call
        of an earlier `claim` of the holder's is over, for its worker is lost: its slot is given up.

        To be asked again after `Wait`, with the same holder. Raises `StoreUnavailable`: it may have been admitted then,
        and to ask again tells.
        """
        settings, limits = self._store.settings, self._limits(provider)
        answer = await self._store.run(
            ADMIT,
            self._keys(provider),
            [
                *(holder, tokens, "1" if retry else "0", self._lease_ms, self._ttl_ms),
                *(_or_empty(limits.concurrency), _or_empty(limits.requests_per_minute)),
                *(_or_empty(limits.tokens_per_minute), repr(settings.retry_ratio), settings.retry_floor),
                *(MOST_PROBES, self._open_ms, claim),
            ],
        )
        match answer:
            case [b"admitted"]:
                return Admitted()
            case [b"wait", reason, wait_ms]:
                return Wait(int(wait_ms), reason.decode())
            case _:
                return Refused("retry_budget")

    async def settle(
        self,
        provider: str,
        holder: str,
        outcome: Outcome,
        *,
        tokens: int | None = None,
        hold_ms: int = 0,
        claim: int = 1,
    ) -> None:
        """Say that a call has ended, or that its holder no longer waits. It does nothing the second time, and where a
        later `claim` of the holder's has a call of its own.

        `tokens` is what it used, where that is known; `hold_ms` the provider's Retry-After: nobody is admitted for as
        long, a minute at most. Raises `StoreUnavailable`: if it is not repeated, the slot is free after its lease.
        """
        settings, limits = self._store.settings, self._limits(provider)
        answer = await self._store.run(
            SETTLE,
            self._keys(provider),
            [
                *(holder, outcome.value, _or_empty(tokens), max(0, min(hold_ms, LONGEST_HOLD_MS))),
                *(self._ttl_ms, _or_empty(limits.tokens_per_minute), self._window_ms, settings.breaker_min_calls),
                *(repr(settings.breaker_failure_ratio), self._open_ms, repr(random.random()), claim),
            ],
        )
        match answer:
            case [b"settled", b"opened"]:
                _log.warning("circuit_opened", provider=provider)
            case [b"settled", b"closed"]:
                _log.info("circuit_closed", provider=provider)

    async def keep(self, provider: str, holders: Sequence[str]) -> None:
        """These calls still run: renew their slots, at least once a lease. Raises `StoreUnavailable`."""
        if holders:
            await self._store.run(KEEP, self._keys(provider), [self._lease_ms, self._ttl_ms, *holders])

    async def state(self, provider: str) -> ThrottleState:
        """How the provider stands. Changes nothing. Raises `StoreUnavailable`."""
        keys, provider = self._store.keys, self._named(provider)
        names = [keys.throttle(provider), keys.running(provider), keys.asked(provider)]
        circuit, in_flight, waiting = await self._store.run(PROVIDER, names, [])
        return ThrottleState(circuit=Circuit(circuit.decode()), in_flight=in_flight, waiting=waiting)

    def _named(self, provider: str) -> str:
        """Under whose name its calls are counted."""
        limits = self._store.settings.provider_limits.get(provider)
        return provider if limits is None or limits.shared_with is None else limits.shared_with

    def _limits(self, provider: str) -> ProviderLimits:
        return self._store.settings.provider_limits.get(self._named(provider)) or ProviderLimits()

    def _keys(self, provider: str) -> list[str]:
        keys, provider = self._store.keys, self._named(provider)
        all_of_it = (keys.throttle, keys.running, keys.calls, keys.probes, keys.waiting, keys.asked)
        return [key(provider) for key in all_of_it]


def _or_empty(value: int | None) -> Arg:
    return "" if value is None else value

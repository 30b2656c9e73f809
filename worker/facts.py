"""How long what took, and what it cost: the facts of one generation, as its last worker saw them.

Stored with the terminal event, shown by `GET /v1/generations/{id}`, and written as one log line. Times are of the
claim that ended it; a generation that changed workers in mid-text has the counts of the last one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import orjson

from broker.declared import Price
from broker.events import Json, Usage
from worker.providers.base import Meter

_TOKENS_A_PRICE = 1_000_000


@dataclass(slots=True, kw_only=True)
class Facts:
    """Collected while a generation runs. `clock` readings are of `time.monotonic`."""

    queue_ms: int  # from submit to the first claim
    retries: int = 0  # attempts before this one, and targets that failed in it
    reconnects: int = 0  # answers read on at the provider where a connection, or a worker, was lost
    waited_ms: int = 0  # in this claim, for a turn under the provider's limits
    turns: int = 0
    output_tokens: int = 0  # of this claim's turns that are over
    meters: list[Meter] = field(default_factory=list)  # one a call
    asked_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    longest_gap: float = 0.0

    def asked(self) -> Meter:
        """A provider is about to be asked; what it counts into."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        self.turns += 1
        self.last_at = 0.0
        self.meters.append(Meter())
        return self.meters[-1]

    def saw(self, now: float) -> None:
        """Something of the answer came. Of what comes sooner than after the longest gap, only `last_at` need be set."""
        if self.last_at:
            self.longest_gap = max(self.longest_gap, now - self.last_at)
        elif self.first_at is None:
            self.first_at = now
        self.last_at = now

    def as_json(self, usage: Usage | None, price: Price | None) -> Json:
        """`{queue_ms, connect_ms, first_token_ms, tokens_per_second, longest_gap_ms, chunks, bytes, turns, retries,
        reconnects, waited_ms, input_tokens, output_tokens, cost}`; null where nothing is known."""
        connects = [meter.connect_seconds for meter in self.meters if meter.connect_seconds is not None]
        first = None if self.first_at is None or self.asked_at is None else self.first_at - self.asked_at
        span = self.last_at - self.first_at if self.first_at is not None and self.last_at else 0.0
        speed = (self.output_tokens - 1) / span if self.output_tokens > 1 and span > 0 else None
        return {
            "queue_ms": self.queue_ms,
            "connect_ms": _ms(connects[0]) if connects else None,
            "first_token_ms": None if first is None else _ms(first),
            "tokens_per_second": None if speed is None else round(speed, 2),
            "longest_gap_ms": _ms(self.longest_gap),
            "chunks": sum(meter.chunks for meter in self.meters),
            "bytes": sum(meter.bytes for meter in self.meters),
            "turns": self.turns,
            "retries": self.retries,
            "reconnects": self.reconnects,
            "waited_ms": self.waited_ms,
            "input_tokens": usage.input_tokens if usage else None,
            "output_tokens": usage.output_tokens if usage else None,
            "cost": None if usage is None or price is None else cost(usage, price),
        }


def encoded(facts: Json) -> str:
    """As the record keeps them."""
    return orjson.dumps(facts).decode()


def cost(usage: Usage, price: Price) -> float:
    """What these tokens cost, in the currency of the price table. Cached input is part of all input."""
    cached = usage.cached_tokens or 0
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = max(0, usage.input_tokens - cached)
    total = fresh * price.input + cached * cached_price + usage.output_tokens * price.output
    return round(float(total) / _TOKENS_A_PRICE, 9)


def price_of(prices: Mapping[str, Price], provider: str, model: str) -> Price | None:
    """The first entry of the table whose pattern matches `provider/model`."""
    wanted = f"{provider}/{model}"
    return next((price for pattern, price in prices.items() if fnmatchcase(wanted, pattern)), None)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)

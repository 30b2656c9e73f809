"""Asks whether a provider may be called now, under the limits that all workers share, and says how the call went.

One call of one run at a time. What it holds is renewed by the worker (`held`) until it is settled; a worker that dies
leaves slots that lapse by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from broker.backoff import until_available
from broker.errors import ProviderError
from broker.events import FailureCode, Usage
from broker.generation import Request
from broker.throttle import Admitted, Outcome, Refused, Throttle, Wait
from worker.facts import Facts

#: A wait for a turn that is longer in sum gives the lease back: the worker's place is for those who can run.
IN_PLACE_MS: Final = 2000

#: With a fallback to go to, this much waiting is too much.
BEFORE_FALLBACK_MS: Final = 500

#: Code points of a prompt that make about one token, for a first estimate.
_CHARS_A_TOKEN: Final = 4

#: Failures that say something of the provider's health.
_UNHEALTHY: Final = frozenset({FailureCode.UPSTREAM_ERROR, FailureCode.UPSTREAM_INCOMPLETE, FailureCode.STALLED})


class MustWait(Exception):
    """The provider's turn is more than a moment away."""

    def __init__(self, reason: str, wait_ms: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_ms = wait_ms


class RetryRefused(ProviderError):
    """So many calls are retries already that one more would only make an outage worse: there is no further attempt."""

    def __init__(self, provider: str) -> None:
        super().__init__(
            FailureCode.UPSTREAM_ERROR,
            f"{provider} fails so often at present that it is not asked again; the budget of retries is used up",
            retryable=True,
        )


class Admission:
    """The calls of one run. `holder` names its generation, `claim` (an epoch) the run."""

    def __init__(self, throttle: Throttle, *, holder: str, claim: int, facts: Facts) -> None:
        self._throttle = throttle
        self._holder = holder
        self._claim = claim
        self._facts = facts
        self._provider: str | None = None  # of the call under way
        self._queued: str | None = None  # where a turn is waited for

    @property
    def held(self) -> tuple[str, str] | None:
        """Provider and holder of the call under way."""
        return None if self._provider is None else (self._provider, self._holder)

    async def enter(
        self, provider: str, request: Request, *, retry: bool, patience_ms: int, on_wait: Callable[[str, int], None]
    ) -> None:
        """Return once the call may be made. Calls `on_wait(reason, ms)` when it has to wait, and raises `MustWait` when
        that would take longer than `patience_ms`, `RetryRefused` when it shall not be made at all."""
        tokens = _estimate(request)
        waited = 0
        while True:
            answer = await until_available(
                lambda: self._throttle.admit(provider, self._holder, tokens=tokens, retry=retry, claim=self._claim)
            )
            match answer:
                case Admitted():
                    self._provider, self._queued = provider, None
                    return
                case Refused():
                    raise RetryRefused(provider)
                case Wait(wait_ms=wait_ms, reason=reason):
                    self._queued = provider
                    if waited + wait_ms > patience_ms:
                        raise MustWait(reason, wait_ms)
                    on_wait(reason, wait_ms)
                    await asyncio.sleep(wait_ms / 1000)
                    waited += wait_ms
                    self._facts.waited_ms += wait_ms

    async def give_up(self) -> None:
        """No turn is waited for any more: who stands behind must not wait for this one to ask again."""
        if (provider := self._queued) is not None:
            await until_available(
                lambda: self._throttle.settle(provider, self._holder, Outcome.NEUTRAL, claim=self._claim)
            )
            self._queued = None

    async def leave(self, how: ProviderError | Literal["whole", "stopped"], usage: Usage | None) -> None:
        """The call is over: it failed, its answer is whole, or it was stopped from here. Does nothing where none is
        under way."""
        provider = self._provider
        if provider is None:
            return
        match how:
            case "whole":
                outcome, hold_ms = Outcome.OK, 0
            case "stopped":
                outcome, hold_ms = Outcome.NEUTRAL, 0
            case ProviderError():
                outcome = Outcome.FAILED if how.failure in _UNHEALTHY else Outcome.NEUTRAL
                hold_ms = round(1000 * (how.retry_after or 0.0))
        tokens = None if usage is None else usage.input_tokens + usage.output_tokens
        await until_available(
            lambda: self._throttle.settle(
                provider, self._holder, outcome, tokens=tokens, hold_ms=hold_ms, claim=self._claim
            )
        )
        self._provider = None


def _estimate(request: Request) -> int:
    """Tokens that a call may take, until the provider says how many it took."""
    size = 0
    for message in request.messages:
        content = message.get("content")
        texts = [part.get("text") for part in content] if isinstance(content, list) else [content]
        size += sum(len(text) for text in texts if isinstance(text, str))
    return size // _CHARS_A_TOKEN + (request.max_output_tokens or 0) + 1

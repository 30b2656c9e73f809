"""What one claim makes of a generation: which targets are asked, in which order, and what follows when they fail.

An attempt goes through the request's targets, the model it names and then its fallbacks, until one gives an answer. A
failure that another provider may not have leads to the next one at once; when the last has failed, another attempt may
help, later.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.errors import ProviderError, where
from broker.events import Completed, Failed, FailureCode, Json, Status, Terminal, Usage
from broker.generation import Recovery, Target
from broker.lease import Lease
from worker.admission import Admission, MustWait, RetryRefused
from worker.conversation import Conversation, ForTools
from worker.facts import encoded, price_of
from worker.means import Means
from worker.privacy import without_prompt
from worker.providers.base import ResumeImpossible
from worker.writer import TIMINGS, Writer

_log = structlog.get_logger("legato.worker")

#: Failures that another provider may not have.
_ELSEWHERE: Final = frozenset(
    {
        FailureCode.RATE_LIMITED,
        FailureCode.CONTEXT_LENGTH,
        FailureCode.UPSTREAM_ERROR,
        FailureCode.UPSTREAM_INCOMPLETE,
        FailureCode.UPSTREAM_AUTH,
        FailureCode.STALLED,
    }
)

#: Failures of the way to a provider: an answer that it keeps may be going on there.
_OF_THE_WAY: Final = frozenset({FailureCode.UPSTREAM_INCOMPLETE, FailureCode.STALLED})


@dataclass(frozen=True, slots=True)
class Later:
    """The generation is to be looked at again in `delay_ms`. `failed`: that will be another attempt."""

    delay_ms: int
    failed: bool


Left = Later | ForTools | None


class Attempt:
    """One claim's work. `run()` once; whatever comes of it, `settle()` afterwards."""

    def __init__(self, lease: Lease, writer: Writer, means: Means) -> None:
        self._lease = lease
        self._request = lease.request
        self._writer = writer
        self._means = means
        self._talk = Conversation(lease, writer, means)
        self._targets = self._request.targets
        self._target = self._targets[0]
        self.final: Json = {}  # the facts, once it has ended

    async def run(self) -> Left:
        """Add events until the end is added, or something must be waited for."""
        lease, request, settings = self._lease, self._request, self._means.settings
        found = self._talk.progress()
        if lease.attempt > request.max_attempts:
            self._fail(FailureCode.WORKER_LOST, "every attempt lost its worker", retryable=True)
        elif lease.queued_ms > settings.max_queue_seconds * 1000:
            self._fail(FailureCode.TIMEOUT, "it waited too long in the queue", retryable=True)
        elif self._talk.seconds_left <= 0:
            self._fail(FailureCode.TIMEOUT, "the generation took longer than it may")
        elif found.shown and request.recovery is Recovery.FAIL and self._talk.valid_mark(found) is None:
            self._fail(FailureCode.WORKER_LOST, "its worker was lost, and it asked not to start over")
        else:
            return await self._through_targets()
        return None

    @property
    def admission(self) -> Admission:
        """What the call under way holds of its provider's limits."""
        return self._talk.admission

    async def settle(self, *, ended: bool) -> None:
        """Give back what a call that was stopped from here holds. `ended`: nobody will read on, so a provider that
        goes on by itself is told to stop."""
        await self._talk.leave("stopped")
        if ended:
            await self.admission.give_up()
            await self._talk.abandon()

    @property
    def is_kept_upstream(self) -> bool:
        """Whether a provider keeps the answer, and goes on with it by itself."""
        return self._talk.is_kept_upstream

    @property
    def usage(self) -> Usage | None:
        """Tokens used since the last `reset`, as far as the provider has said."""
        return self._talk.progress().usage

    def end(self, event: Terminal) -> None:
        """Add the terminal event, and the facts. Whatever may be wrong with those must not keep it from its end."""
        self._writer.add(event)
        try:
            price = price_of(self._means.settings.prices, self._target.provider, self._target.model)
            self.final = self._talk.facts.as_json(self._talk.progress().usage, price)
            self._writer.note(TIMINGS, encoded(self.final))
        except Exception as exc:  # noqa: BLE001 - see above
            _log.error("facts_defect", generation=self._lease.generation, **where(exc))

    # --- targets ---

    async def _through_targets(self) -> Left:
        at = self._first_target()
        retry = at == 0 and self._talk.failed_before
        while True:
            target = self._target = self._targets[at]
            more = at + 1 < len(self._targets)
            try:
                finish = await self._talk.ask(target, retry=retry, more=more)
                if isinstance(finish, ForTools):
                    return finish
                found = self._talk.progress()
                self.end(Completed(finish_reason=finish, usage=found.usage, characters=found.characters))
                return None
            except ResumeImpossible as error:
                await self._talk.leave(error)
                self._talk.forget_mark()
                if not self._talk.may_start_over():
                    return self._after_failure(error)
                self._say_next(target, code=error.code, message=self._shareable(error))
                continue
            except MustWait as wait:
                if not more:
                    self._talk.say_waiting(target, wait.reason)
                    return Later(
                        round(1000 * min(wait.wait_ms / 1000, max(0.0, self._talk.seconds_left))), failed=False
                    )
                await self.admission.give_up()
                code, message = wait.reason, f"{target.provider} would have to be waited for"
            except ProviderError as error:
                await self._talk.leave(error)
                elsewhere = more and error.failure in _ELSEWHERE and self._talk.may_start_over()
                if not elsewhere or self._can_be_read_on(target, error):
                    return self._after_failure(error)
                code, message = error.code, self._shareable(error)
            except Exception as exc:  # noqa: BLE001 - a defect of a provider must end its generation, not the worker
                _log.error("provider_defect", generation=self._lease.generation, provider=target.provider, **where(exc))
                self._fail(FailureCode.INTERNAL, "the provider's adapter failed")
                return None
            at, retry = at + 1, False
            await self._talk.abandon()
            self._say_next(self._targets[at], code=code, message=message)

    def _first_target(self) -> int:
        """The first one, or the one whose answer can be read on."""
        found = self._talk.progress()
        return next((at for at, target in enumerate(self._targets) if self._talk.valid_mark(found, target)), 0)

    def _can_be_read_on(self, target: Target, error: ProviderError) -> bool:
        """The provider keeps the answer and may be asked for its rest: a fallback would take back what was shown."""
        if error.failure not in _OF_THE_WAY or self._lease.attempt >= self._request.max_attempts:
            return False
        return self._talk.valid_mark(self._talk.progress(), target) is not None

    def _say_next(self, target: Target, *, code: str, message: str) -> None:
        """A target takes over, at once."""
        self._talk.begin_bare(self._target)
        self._talk.facts.retries += 1
        detail = {"attempt": self._lease.attempt, "delay_ms": 0, "code": code, "message": message}
        self._writer.add(Status(phase="retrying", detail=detail | {"provider": target.provider, "model": target.model}))

    # --- ends ---

    def _after_failure(self, error: ProviderError) -> Later | None:
        """Another attempt, if one may help and is left; else the end."""
        lease, request, settings = self._lease, self._request, self._means.settings
        again = error.retryable and not isinstance(error, RetryRefused) and lease.attempt < request.max_attempts
        message = self._shareable(error)
        bound = min(settings.retry_cap_seconds, settings.retry_base_seconds * 2 ** (lease.attempt - 1))
        delay = max(random.uniform(0, bound), error.retry_after or 0.0)
        if not again or not self._talk.may_start_over() or delay > self._talk.seconds_left:
            self._fail(error.failure, message, retryable=error.retryable)
            return None
        delay_ms = round(1000 * delay)
        detail = {"attempt": lease.attempt + 1, "delay_ms": delay_ms, "code": error.code, "message": message}
        self._talk.begin_bare(self._target)
        self._writer.add(Status(phase="retrying", detail=detail))
        return Later(delay_ms, failed=True)

    def _fail(self, code: FailureCode, message: str, *, retryable: bool = False) -> None:
        found = self._talk.progress()
        partial = bool(found.turns) or found.shown
        self.end(Failed(code=code, message=message, retryable=retryable, partial=partial, characters=found.characters))

    def _shareable(self, error: ProviderError) -> str:
        sent = [*self._request.messages, *self._talk.progress().messages()]
        return without_prompt(error.message, replace(self._request, messages=sent))

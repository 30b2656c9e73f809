"""The output tokens that a tenant may have a day, counted in the store over all workers.

While an answer streams its deltas are counted as tokens, for no provider says more before the end; the real number
takes the estimate's place as soon as it is known. So a budget may be overrun by what the workers count between two
reports (`REPORT_TOKENS` for each answer that runs), and by no more.
"""

from __future__ import annotations

from typing import Final

from broker.backoff import until_available
from broker.errors import ProviderError
from broker.events import FailureCode
from broker.scripts import SPEND
from broker.store import Store

#: Counted tokens after which they are reported.
REPORT_TOKENS: Final = 50


class Purse:
    """One answer's share in its tenant's budget. Without a budget it does nothing, and costs nothing."""

    def __init__(self, store: Store, tenant: str) -> None:
        self._store = store
        self._key = store.keys.spent(tenant)
        self._most = store.settings.tenant_tokens_per_day
        self._estimated = 0  # tokens reported so far
        self._unreported = 0

    async def open(self) -> None:
        """Before the provider is asked. Raises `ProviderError` (`budget_exceeded`) where nothing is left."""
        if self._most is not None:
            await self._report(0)

    @property
    def counts(self) -> bool:
        """Whether there is a budget."""
        return self._most is not None

    def count(self) -> bool:
        """A token came; whether it is time to `report`."""
        self._unreported += 1
        return self._unreported >= REPORT_TOKENS

    async def report(self) -> None:
        """Report what was counted, however long the store is away. Raises `ProviderError` (`budget_exceeded`) once the
        budget is used up."""
        tokens, self._unreported = self._unreported, 0
        await self._report(tokens)

    async def settle(self, tokens: int | None) -> None:
        """The answer is over, and had so many output tokens as the provider counts, where it said so."""
        if self._most is None:
            return
        real = self._estimated + self._unreported if tokens is None else tokens
        correction, self._unreported = real - self._estimated, 0
        self._estimated = 0
        if correction:
            await self._spend(correction)

    async def _report(self, tokens: int) -> None:
        assert self._most is not None  # noqa: S101 - for the type checker: only asked where there is a budget
        self._estimated += tokens
        spent, left_ms = await self._spend(tokens)
        if spent >= self._most:
            raise ProviderError(
                FailureCode.BUDGET_EXCEEDED,
                f"the {self._most} output tokens a day are used up; the next day begins in {left_ms // 1000} s",
            )

    async def _spend(self, tokens: int) -> tuple[int, int]:
        async def spend() -> list[bytes]:
            # Not sent twice by the store: a lost answer counts twice, which errs on the side of the budget.
            reply: list[bytes] = await self._store.pipe(SPEND, [self._key], [tokens])
            return reply

        spent, left_ms = await until_available(spend)
        return int(spent), int(left_ms)

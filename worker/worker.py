"""A worker process: takes hints, claims generations, runs up to N of them.

Any worker may take over what a lost one held: a hint that is due is looked at by whoever takes it, and the claim
decides. So there is no separate reaper; `sweep_loop` only finds generations whose hint the queue has lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from broker.backoff import Backoff, unharmed
from broker.errors import GenerationExpired, GenerationUnknown, StoreError, StoreUnavailable, where
from broker.events import CancelReason, Json
from broker.generation import State
from broker.lease import Busy, ClaimAnswer, Ended, Lease, Leases, Missing, Waits, new_owner
from broker.log import Log
from broker.queue import Hint, Queue
from broker.records import Records
from broker.settings import Settings
from broker.store import Store
from broker.sweep import Sweeper
from broker.throttle import Throttle
from broker.totals import Total, Totals
from worker.conversation import abandon
from worker.keeper import Keeper
from worker.means import Means
from worker.overlap import UpstreamMark
from worker.providers.base import Provider
from worker.pulse import Pulse
from worker.renewals import Renewals
from worker.run import Outcome, Result, Run
from worker.tools.registry import Tools
from worker.webhooks import Deliveries, Endpoint

_log = structlog.get_logger("legato.worker")

#: Longest sleep without a look at the queue: what a lost wake-up costs.
_IDLE_SECONDS: Final = 1.0

#: Hints taken at once; the rest is left to other workers.
_TAKE_MOST: Final = 16

_WATCH_SECONDS: Final = 1.0

#: A hint of a generation that waits is looked at this often all the same.
_LONGEST_WAIT_MS: Final = 30_000

#: Seconds after which a claim whose answer was lost is asked for again.
_CLAIM_PAUSES: Final = (0.05, 0.3)


class Worker:
    """One worker. `run()` until `drain()` was called and everything has ended or is handed over."""

    def __init__(
        self,
        store: Store,
        *,
        providers: Mapping[str, Provider],
        tools: Tools,
        settings: Settings,
        webhooks: Sequence[Endpoint] = (),
    ) -> None:
        self._store = store
        self._queue = Queue(store)
        self._records = Records(store, self._queue)
        self._threads = self._records.threads
        self._sweeper = Sweeper(store, self._records)
        self._leases = Leases(store)
        self._totals = Totals(store)
        self._settings = settings
        self._means = Means(
            store=store,
            log=Log(store),
            leases=self._leases,
            throttle=Throttle(store),
            providers=providers,
            tools=tools,
            pulse=Pulse(tolerance=settings.lease_seconds),
            settings=settings,
        )
        self._keeper = Keeper(heal_seconds=settings.heal_seconds, heal_bytes=settings.heal_bytes)
        self._deliveries = Deliveries(
            list(webhooks), records=self._records, log=self._means.log, totals=self._totals, settings=settings
        )
        store.on_return(self._store_returned)
        self._runs: dict[str, tuple[Run, Hint]] = {}
        self._renewals = Renewals(self._runs, queue=self._queue, threads=self._threads, means=self._means)
        self._tasks: set[asyncio.Task[None]] = set()
        self._handing_over = False
        self._slot_free = asyncio.Event()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Take nothing new; let what runs go on for `drain_seconds`, then hand it over."""
        self._draining.set()

    async def run(self) -> None:
        """Work until drained."""
        async with asyncio.TaskGroup() as group:
            helpers = [
                self._means.pulse.run,
                self._renewals.renew_loop,
                self._renewals.hint_loop,
                self._keeper.run,
                self.watch_loop,
                self.sweep_loop,
                self._deliveries.run,
            ]
            helping = [group.create_task(unharmed(helper), name=helper.__name__) for helper in helpers]
            await self.claim_loop()
            await self._let_go()
            for task in helping:
                task.cancel()

    async def claim_loop(self) -> None:
        """Take hints while there is room; sleep until one is added, or due."""
        backoff = Backoff(first=0.1, most=2.0)
        while not self._draining.is_set():
            free = self._settings.worker_concurrency - len(self._tasks)
            if free <= 0:
                self._slot_free.clear()
                await self._unless_draining(self._slot_free.wait())
                continue
            try:
                most = min(free, _TAKE_MOST)
                taken = await self._queue.take(most)
                for hint in taken.hints:
                    # A task each: a shard that hangs must not keep the hints of the others waiting.
                    task = asyncio.create_task(self._look(hint), name=f"run {hint.generation}")
                    self._tasks.add(task)
                    task.add_done_callback(self._run_done)
                if len(taken.hints) < most:  # there are no more: whoever adds one wakes us
                    due = _IDLE_SECONDS if taken.next_due_ms is None else taken.next_due_ms / 1000
                    await self._unless_draining(self._queue.wait(min(due, _IDLE_SECONDS)))
                backoff.reset()
            except StoreError as exc:
                _log.warning("queue_unavailable", error=str(exc))
                await self._unless_draining(asyncio.sleep(backoff.next()))

    async def watch_loop(self) -> None:
        """Notice within a second that a server has lost data, though no connection broke: everything is looked at."""
        youngest = float("inf")
        while True:
            try:
                age = min(await self._store.losses(), default=float("inf"))
            except StoreError:
                age = youngest
            if age < youngest:
                self._store_returned()
            youngest = age
            await asyncio.sleep(_WATCH_SECONDS)

    async def sweep_loop(self) -> None:
        """Now and then, put back hints that the queue has lost, and forget what has expired."""
        while True:
            await asyncio.sleep(self._settings.sweep_seconds * random.uniform(0.5, 1.5))
            try:
                swept = await self._sweeper.sweep()
            except StoreError as exc:
                _log.warning("sweep_failed", error=str(exc))
                continue
            if swept.orphans or swept.stale:
                _log.info("swept", orphans=swept.orphans, stale=swept.stale)

    async def _look(self, hint: Hint) -> None:
        """Claim what a hint names, and run it. Whatever goes wrong, the hint in flight comes back after a lease."""
        try:
            await self._claim_and_run(hint)
        except StoreError as exc:
            _log.warning("claim_failed", generation=hint.generation, error=str(exc))
        except Exception as exc:  # noqa: BLE001 - one hint's defect must not take the others with it
            _log.error("run_defect", generation=hint.generation, **where(exc))

    async def _claim_and_run(self, hint: Hint) -> None:
        if hint.generation in self._runs:
            # Ours: its hint became due because it could not be renewed. Its lease is the renewals' business.
            await self._queue.look_again([hint], self._settings.lease_ms)
            return
        match await self._claim(hint.generation):
            case Lease() as lease:
                run = Run(lease, self._means)
                await self._supervise(run, hint)
            case Busy(wait_ms=wait):
                await self._put_off(hint, wait)
            case Waits(thread=thread):  # its next hint comes with its turn, and not while the queue has this one
                await self._queue.drop([hint])
                await self._threads.advance(hint.tenant, thread)
            case Ended(state=state, upstream=mark, thread=thread):
                if mark and state in (State.CANCELLED, State.DELETED):
                    await abandon(self._means.providers, UpstreamMark.decode(mark), generation=hint.generation)
                if thread:
                    await self._threads.leave(hint.tenant, thread, hint.generation)
                await self._deliveries.owe(hint.generation)
                await self._queue.drop([hint])
            case Missing():
                await self._queue.drop([hint])

    async def _claim(self, generation: str) -> ClaimAnswer:
        """Claim, and ask again where the answer was lost: the same owner gets the same answer."""
        owner = new_owner()
        for pause in _CLAIM_PAUSES:
            try:
                return await self._leases.claim(generation, owner=owner)
            except StoreUnavailable:
                await asyncio.sleep(pause)
        return await self._leases.claim(generation, owner=owner)

    async def _supervise(self, run: Run, hint: Hint) -> None:
        _log.info("generation_claimed", generation=hint.generation, epoch=run.lease.epoch, attempt=run.lease.attempt)
        self._runs[hint.generation] = run, hint
        if self._handing_over:
            run.hand_over()
        try:
            result = await run.execute()
        except (GenerationUnknown, GenerationExpired):
            result = Result(Outcome.LOST)
        finally:
            if self._runs[hint.generation][0] is run:
                del self._runs[hint.generation]
        if result.outcome is Outcome.ENDED and run.writer is not None:
            self._keeper.keep(run.writer)
        _log.info("generation_left", generation=hint.generation, outcome=result.outcome.value, **_facts(run, result))
        match result.outcome:
            case Outcome.ENDED:
                request = run.lease.request
                if request.thread is not None:
                    await self._threads.leave(
                        hint.tenant, request.thread, hint.generation, ttl_seconds=request.ttl_seconds
                    )
                await self._deliveries.owe(hint.generation)
                await self._drop_ended(run, hint)
            case Outcome.LATER:
                await self._queue.look_again([hint], result.delay_ms)
                if result.failed:
                    await self._totals.add(Total.RETRIED)
            case Outcome.PAUSED:
                await self._put_off(hint, result.delay_ms)
            case Outcome.HANDED_OVER:
                await self._queue.look_again([hint], 0)
                await self._totals.add(Total.HANDED_OVER)
            case Outcome.LOST:
                pass

    async def _put_off(self, hint: Hint, wait_ms: int) -> None:
        """Look again in `wait_ms`, or at once where what is waited for came just before the queue was told to wait. Not
        much later at once: a worker that is lost between the two would leave it waiting for all that time."""
        await self._queue.look_again([hint], min(wait_ms, _LONGEST_WAIT_MS))
        with suppress(GenerationUnknown, GenerationExpired):
            if (await self._records.get(hint.tenant, hint.generation)).state is State.QUEUED:
                await self._queue.look_again([hint], 0)

    async def _drop_ended(self, run: Run, hint: Hint) -> None:
        """Forget its hint, and count how it ended."""
        writer = run.writer
        if writer is None:
            await self._queue.drop([hint])
            return
        end = writer.entries[-1].field.decode()
        await self._queue.drop([hint], total=Total(f"ended_{end}"))
        if end == "cancelled" and writer.cancel_reason is CancelReason.ABANDONED:
            await self._totals.add(Total.ABANDONED)
            limit = run.lease.request.max_output_tokens or 0
            await self._totals.add(Total.TOKENS_UNSPENT, max(0, limit - writer.pieces))

    async def _let_go(self) -> None:
        """Wait for what runs; hand over what is left when the time to drain is over. A store that is away cannot keep
        the process: after a lease everything here is somebody else's anyway."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_seconds)
        self._handing_over = True
        for run, _ in list(self._runs.values()):
            run.hand_over()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.lease_seconds):
                if self._tasks:
                    await asyncio.wait(self._tasks)
                await self._keeper.first_checks()
        for task in self._tasks:
            task.cancel()

    def _store_returned(self) -> None:
        """A server answers again after a break: what it holds may not be what it held."""
        self._renewals.store_returned()
        self._keeper.store_returned()
        for run, _ in self._runs.values():
            if run.writer is not None:
                run.writer.ask()

    def _run_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slot_free.set()

    async def _unless_draining(self, waiting: Awaitable[object]) -> None:
        """Wait for something, or for the order to drain."""
        sleeping = asyncio.ensure_future(waiting)
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({sleeping, draining}, return_when=asyncio.FIRST_COMPLETED)
            if sleeping.done():
                sleeping.result()
        finally:
            draining.cancel()
            if not sleeping.done():
                sleeping.cancel()


def _facts(run: Run, result: Result) -> Json:
    """How the generation went, for the log line of its end."""
    ended = result.outcome is Outcome.ENDED and run.attempt is not None
    return run.attempt.final if ended and run.attempt is not None else {}

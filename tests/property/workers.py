"""Workers whose every call to the store waits for its turn. The writer inside is the real one.

A worker claims, reads the log, and hands both to `worker.writer.Writer`, which from then on runs as it does in
production, only that `Gate` stands between it and the store: a call is made when the schedule says so, and its reply
may be lost. Between any two calls anything else may happen. What the real worker does around its writer (the reset in
front of a second attempt, the end after a cancel, the renewal, the looks after the end) is repeated here in its
shortest form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import Enum

from broker import errors
from broker.errors import GenerationExpired, GenerationUnknown, LeaseLost, StoreUnavailable
from broker.events import Cancelled, CancelReason, Completed, Delta, Entry, FinishReason, Reset, Started
from broker.lease import Busy, ClaimAnswer, Ended, Lease, Lost, Missing, Renewed, new_owner
from broker.log import AppendAnswer, Behind, Closed, Diverged, Fenced, Gone
from broker.position import BEGINNING, Position
from tests.property.world import Packet, World, text_of
from worker import writer as real
from worker.writer import UPSTREAM

#: Turns of the event loop in which a writer that got its answer comes to its next call.
TURNS = 10


class Awake:
    """The heartbeat of a process that never stood still: whatever it holds, it may put back. So even those rebuild who
    in production would have to stop."""

    @staticmethod
    def now() -> float:
        return 0.0

    def stood_still_since(self, moment: float) -> bool:
        return False


class Gate:
    """The store, as one writer sees it: `Log` and `Leases` whose calls wait for `pass_one`.

    It knows the log as this writer must know it, and holds the writer to it: what follows an entry that the writer
    knows is put back, and not written anew.
    """

    def __init__(self, world: World, lease: Lease, inherited: Sequence[Entry]) -> None:
        self._world = world
        self._held = list(inherited)
        self._put_back: str | None = None  # the log ends here, and what follows it is known
        self._epochs = {
            lease.epoch
        }  # of the last claim made through this gate, heard of or not, and of what it replaced
        self._turn: asyncio.Future[bool] | None = None
        self._passed = asyncio.Event()

    @property
    def is_waited_at(self) -> bool:
        return self._turn is not None

    async def pass_one(self, *, reply_lost: bool) -> None:
        """Let the call that waits be made; returns when the writer has its answer."""
        assert self._turn is not None
        self._passed.clear()
        turn, self._turn = self._turn, None
        turn.set_result(reply_lost)
        await self._passed.wait()

    async def append(
        self,
        generation: str,
        epoch: int,
        owner: str,
        prev: str,
        entries: Sequence[Entry],
        notes: Mapping[str, str],
    ) -> AppendAnswer:
        reply_lost = await self._wait()
        try:
            self._see(prev, entries)
            answer = await self._world.append(Packet(epoch, owner, prev, list(entries), notes))
            self._judge(answer)
        finally:
            self._passed.set()
        if reply_lost:
            raise StoreUnavailable("the reply was lost")
        self._put_back = None
        match answer:
            case Behind(last=last) if last in (BEGINNING, *(entry.position for entry in self._held)):
                self._put_back = last
        return answer

    async def lane(self, *lease: object) -> None:
        """None here: every append is a call that the schedule lets pass."""

    async def claim(self, generation: str, *, owner: str, replacing: Lease | None = None) -> ClaimAnswer:
        reply_lost = await self._wait()
        try:
            self._world.promise(self._put_back is None, "what the store lost and its holder knows is put back")
            answer = await self._world.claim(owner, replacing)
            if isinstance(answer, Lease):
                # An earlier claim, unheard of and forgotten, may come back with another failover, and be higher
                # by chance: nobody can know of that one.
                self._epochs = {answer.epoch, *([replacing.epoch] if replacing else [])}
        finally:
            self._passed.set()
        if reply_lost:
            raise StoreUnavailable("the reply was lost")
        return answer

    async def rebuild(self, lease: Lease, entries: Sequence[Entry]) -> bool:
        reply_lost = await self._wait()
        try:
            rebuilt = await self._world.rebuild(lease, entries)
        finally:
            self._passed.set()
        if reply_lost:
            raise StoreUnavailable("the reply was lost")
        return rebuilt

    async def read_all(self, generation: str) -> list[Entry]:
        reply_lost = await self._wait()
        try:
            entries = await self._world.stage.log.read_all(generation)
        finally:
            self._passed.set()
        if reply_lost:
            raise StoreUnavailable("the reply was lost")
        self._held = list(entries)
        return entries

    @property
    def holds(self) -> bool:
        """Whether the record names this writer's claim."""
        record = self._world.now.record
        return bool(record) and int(record["epoch"]) in self._epochs and record["state"] != "deleted"

    async def _wait(self) -> bool:
        self._turn = asyncio.get_running_loop().create_future()
        return await self._turn

    def _see(self, prev: str, entries: Sequence[Entry]) -> None:
        if self._put_back is not None:
            start = Position.parse(self._put_back).seq
            known = self._held[start : start + len(entries)]
            self._world.promise(
                prev == self._put_back and list(entries[: len(known)]) == known,
                "what the store lost and its holder knows is put back as it was",
            )
        for entry in entries:
            at = Position.parse(entry.position).seq - 1
            self._held[at : at + 1] = [entry]

    def _judge(self, answer: AppendAnswer) -> None:
        now = self._world.now
        match answer:
            case Fenced():
                self._world.promise(not self.holds, "a living holder is never shut out by a claim of its own")
            case Closed():
                self._world.promise(now.ended, "a writer is told that a log is closed only when it is")
            case Gone():
                self._world.promise(not now.record, "a writer is told that a record is gone only when it is")
            case Behind() | Diverged():
                self._world.promise(self.holds, "a writer that has to mend the log holds the lease")


class Doing(Enum):
    """What the next call to the store will be."""

    CLAIM = "claim"
    READ = "read"
    WRITE = "write"
    NOTHING = "nothing"  # it is not this worker's any more, or has ended


class Worker:
    """A worker with one generation; each attempt writes pieces of text of its own, `<run>.1`, `<run>.2` …"""

    def __init__(self, world: World) -> None:
        self._world = world
        self._run = next(world.runs)
        self._owner = new_owner()
        self._lease: Lease | None = None
        self._produced = 0
        self._stopped = False  # by a cancel
        self._misleading: LeaseLost | None = None  # what a renewal said that came in between
        self._ended_well = False
        self._gate: Gate | None = None
        self._writer: real.Writer | None = None
        self._task: asyncio.Task[None] | None = None
        self.doing = Doing.CLAIM

    @property
    def waits_for_lease(self) -> bool:
        return self.doing is Doing.CLAIM

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to be done, as far as this worker knows."""
        return self.doing is Doing.NOTHING or (self._gate is not None and not self._gate.is_waited_at)

    async def produce(self, pieces: int, *, ends: bool) -> None:
        """The provider sends pieces of text, and perhaps its end."""
        if self.doing is Doing.WRITE and not self._finished:
            for _ in range(pieces):
                self._produced += 1
                self._add(Delta(text=f"{self._run}.{self._produced}"))
            if ends:
                self._add(Completed(finish_reason=FinishReason.STOP, usage=None, characters=self._produced))
            await self._come_to_rest()

    async def step(self, *, reply_lost: bool = False) -> bool:
        """Make the next call to the store; False when there is none to make, or the lease is somebody else's.

        A lost reply leaves everything as it was: the same call is made again, an append perhaps with more behind.
        """
        match self.doing:
            case Doing.CLAIM:
                return await self._claim(reply_lost)
            case Doing.READ:
                await self._read(reply_lost)
                return True
            case Doing.WRITE:
                assert self._gate is not None
                if not self._gate.is_waited_at:
                    return False
                await self._gate.pass_one(reply_lost=reply_lost)
                await self._come_to_rest()
                return True
            case Doing.NOTHING:
                return False

    async def renew(self) -> None:
        """Renew the lease, whatever the writer is doing meanwhile."""
        if self.doing is not Doing.WRITE:
            return
        assert self._writer is not None
        assert self._gate is not None
        match await self._world.renew(self._writer.lease):
            case Renewed(cancel=reason):
                self._writer.cancel(reason)
            case Lost():
                lost = errors.Fenced()
                if self._gate.holds:  # the record names the claim that replaces the lease asked for
                    self._misleading = lost
                self._writer.lose(lost)
            case Ended():
                if not self._finished:
                    self._writer.lose(errors.Closed())
            case Missing():
                self._writer.lose(errors.RecordGone())
        await self._come_to_rest()

    async def release(self, *, failed_attempt: bool) -> None:
        """Give the generation back before its end, once all that was produced is stored."""
        if self.doing is Doing.WRITE and self.quiet:
            assert self._writer is not None
            await self._world.release(self._writer.lease, failed_attempt=failed_attempt)
            await self.leave()

    async def look_again(self) -> None:
        """After the end: see whether the log is still whole, as is done several times."""
        if self.doing is Doing.NOTHING and self._finished and self._ended_well:
            assert self._writer is not None
            self._ended_well = False
            self._task = asyncio.create_task(self._verify(self._writer))
            self.doing = Doing.WRITE
            await self._come_to_rest()

    async def seal(self) -> None:
        """After the end, or what this worker takes for it: store the log in fewer entries."""
        if self._writer is not None and self._finished:
            await self._world.seal(self._writer.entries)

    async def leave(self) -> None:
        """The process ends."""
        self.doing = Doing.NOTHING
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def _finished(self) -> bool:
        return self._writer is not None and bool(self._writer.entries) and self._writer.entries[-1].is_terminal

    async def _claim(self, reply_lost: bool) -> bool:
        answer = await self._world.claim(self._owner, None)
        if reply_lost:
            return True
        match answer:
            case Lease():
                self._lease = answer
                self.doing = Doing.READ
                return True
            case Busy():
                return False
            case Ended() | Missing():
                self.doing = Doing.NOTHING
                return True

    async def _read(self, reply_lost: bool) -> None:
        assert self._lease is not None
        try:
            inherited = await self._world.stage.log.read_all(self._world.generation)
        except (GenerationUnknown, GenerationExpired):
            self.doing = Doing.NOTHING
            return
        if reply_lost:
            return
        gate = self._gate = Gate(self._world, self._lease, inherited)
        self._writer = real.Writer(
            self._lease,
            inherited,
            log=gate,  # type: ignore[arg-type]  # what a writer needs of a log,
            leases=gate,  # type: ignore[arg-type]  # of leases,
            pulse=Awake(),  # type: ignore[arg-type]  # and of a heartbeat
            heal_seconds=1.0,
            on_cancel=self._stop,
        )
        self._task = asyncio.create_task(self._writer.run())
        self.doing = Doing.WRITE
        self._writer.cancel(self._lease.cancel)
        if not self._finished and not self._stopped:
            if text_of(inherited):
                self._add(Reset(attempt=self._lease.attempt, reason=f"run {self._run} follows"))
            self._add(Started(attempt=self._lease.attempt, provider="sim", model=f"run {self._run}"))
        await self._come_to_rest()

    def _add(self, event: Delta | Completed | Cancelled | Reset | Started) -> None:
        assert self._writer is not None
        self._writer.add(event)
        if not self._writer.entries[-1].is_terminal:
            self._writer.note(UPSTREAM, self._writer.entries[-1].position)

    @staticmethod
    async def _verify(writer: real.Writer) -> None:
        await writer.verify()

    def _stop(self) -> None:
        self._stopped = True

    async def _come_to_rest(self) -> None:
        """Let the writer run until it waits: at the gate, for something to write, or for nothing any more."""
        assert self._task is not None
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self._stopped and not self._finished and not self._task.done():
            self._add(Cancelled(reason=CancelReason.USER))
            for _ in range(TURNS):
                await asyncio.sleep(0)
        if self._task.done():
            self.doing = Doing.NOTHING
            try:
                self._task.result()
            except LeaseLost as lost:
                self._world.promise(
                    lost is not self._misleading, "a living holder is never shut out by a claim of its own"
                )
                return
            self._ended_well = True
            self._world.promise(self._finished, "a writer stops by itself only after a terminal event")

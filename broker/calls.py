"""Calls that the client runs: their results, stored in the record until a worker has logged them.

The first result of a call counts, for ever: what a client sends again, because an answer was lost, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from broker.errors import GenerationExpired
from broker.generation import Record, State
from broker.queue import Hint, Queue
from broker.scripts import RESULTS
from broker.store import Store
from broker.wire import Arg, StoreReplyError


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """What the client's tool gave back for one call."""

    call: str
    content: str
    is_error: bool

    def encode(self) -> bytes:
        """JSON, as the record keeps it."""
        return orjson.dumps({"content": self.content, "is_error": self.is_error})

    @classmethod
    def decode(cls, call: str, text: str) -> CallResult:
        return cls(call=call, **orjson.loads(text))


@dataclass(frozen=True, slots=True)
class Accepted:
    """All are stored. `fresh` of them were new; `owed` results are still missing."""

    fresh: int
    owed: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another result of `call` is stored; nothing was changed."""

    call: str


@dataclass(frozen=True, slots=True)
class UnknownCall:
    """No result of `call` was asked for; nothing was changed."""

    call: str


@dataclass(frozen=True, slots=True)
class NotWaiting:
    """The generation waits for no results: it is in `state`."""

    state: State


ResultsAnswer = Accepted | Conflict | UnknownCall | NotWaiting


class Calls:
    """Results of calls, over one store."""

    def __init__(self, store: Store, queue: Queue) -> None:
        self._store = store
        self._queue = queue

    async def give(self, record: Record, results: Sequence[CallResult]) -> ResultsAnswer:
        """Store these, all or none, in one atomic step that may be repeated. With the last one that was owed the
        generation goes on. Raises `GenerationExpired` and `StoreUnavailable`."""
        args: list[Arg] = []
        for result in results:
            args += [result.call, result.encode()]
        match await self._store.run(RESULTS, [self._store.keys.record(record.id)], args):
            case [b"accepted", fresh, owed]:
                if owed == b"0":
                    # To the front: it had its turn. Said each time, for an answer may have been lost here.
                    await self._queue.look_again([Hint(record.id, record.tenant, record.priority)], 0)
                return Accepted(int(fresh), int(owed))
            case [b"conflict", call]:
                return Conflict(call.decode())
            case [b"unknown", call]:
                return UnknownCall(call.decode())
            case [b"not_waiting" | b"ended", state]:
                return NotWaiting(State(state.decode()))
            case [b"gone"]:
                raise GenerationExpired(f"generation {record.id} is gone")
            case reply:
                raise StoreReplyError(f"results answered {reply[:1]!r}")

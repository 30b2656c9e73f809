"""Everything Legato raises on purpose, as one tree.

    LegatoError
    ├── InvalidPosition          a cursor that is not `<seq>-<epoch>`
    ├── StoreError               Redis could not do what was asked
    │   ├── StoreUnavailable     away, full, moving or read-only: the same call may succeed later
    │   │   └── DataLost         the log ends before the record says: healed soon, or never
    │   └── StoreUnusable        it never will: wrong version, wrong credentials, wrong URL
    ├── GenerationUnknown        no such generation, or another tenant's
    ├── GenerationExpired        there was one, and its log's time is over
    │   └── GenerationDeleted    a client erased it
    ├── KeyReused                an Idempotency-Key came back with another body
    ├── QueueFull                as many jobs wait as the setting allows
    ├── ThreadBusy               another generation of the thread has not ended, and the submit wants to be alone
    ├── LeaseLost                this process may not write this generation any more
    │   ├── Fenced               somebody claimed it after us, or deleted it
    │   ├── Closed               it has its terminal event already
    │   └── RecordGone           the store knows nothing of it
    └── ProviderError            a provider failed, classified (carries a `FailureCode`)

Some stand beside the one place that raises them: `StoreReplyError`, `Redirected`, `NotPrimary` and `ScriptUnknown`
(broker.wire),
`NotReplicated` (broker.confirm), `ResumeImpossible` (worker.providers.base), `RetryRefused` (worker.admission),
`FilterDefect` (worker.filters.base), `Draining` (api.services), `OpenToTheWorld` (api.auth).

`code` is what an answer or a `failed` event carries. Messages are written for the reader of an API answer: they never
hold credentials, prompts or addresses of the store.
"""

from __future__ import annotations

import traceback

from broker.events import FailureCode


class LegatoError(Exception):
    """Root of the tree. Never raised itself."""

    code: str = "internal"


class InvalidPosition(LegatoError):
    """A cursor does not match the grammar of positions. Cure: send back an `id:` exactly as it came."""

    code = "invalid_position"


class StoreError(LegatoError):
    """Redis could not do what was asked."""

    code = "store_unavailable"


class StoreUnavailable(StoreError):
    """Redis is away, full, loading, failing over or read-only. Cure: the same call again, later.

    The outcome of a write that raised this is unknown: it may have been stored.
    """


class DataLost(StoreUnavailable):
    """The record is ahead of its log: the store lost data. Cure: the same read again; the holder heals the log."""

    code = "data_lost"


class StoreUnusable(StoreError):
    """Redis answers but cannot serve Legato: bad credentials, too old, a malformed URL. Cure: configuration."""

    code = "store_unusable"


class GenerationUnknown(LegatoError):
    """No generation of this tenant has the id."""

    code = "not_found"


class GenerationExpired(LegatoError):
    """The generation's log has outlived `ttl_seconds`. Cure: none."""

    code = "gone"


class GenerationDeleted(GenerationExpired):
    """A client erased the generation. Cure: none."""


class KeyReused(LegatoError):
    """An Idempotency-Key came back with another body. Cure: a new key for a new request."""

    code = "idempotency_key_reused"


class QueueFull(LegatoError):
    """As many jobs wait as `LEGATO_MAX_QUEUED` allows. Cure: submit again after `Retry-After`."""

    code = "queue_full"


class ThreadBusy(LegatoError):
    """Another generation of the thread has not ended, and the submit said `reject`. Cure: again after its end."""

    code = "thread_busy"


class LeaseLost(LegatoError):
    """This process may not write this generation any more. Cure: stop, quietly; somebody else goes on."""

    code = "lease_lost"


class Fenced(LeaseLost):
    """A later claim, or a delete, raised the epoch above ours."""


class Closed(LeaseLost):
    """The log ends in a terminal event that is not ours."""


class RecordGone(LeaseLost):
    """The store has no record of the generation (it lost its data, or the record expired)."""


class ProviderError(LegatoError):
    """A provider failed. `code` is one of the protocol's failure codes; `retryable` says whether another try can help;
    `retry_after` is in seconds."""

    def __init__(
        self,
        code: FailureCode,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code.value
        self.failure = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


def where(exc: BaseException) -> dict[str, str]:
    """What may be logged of an unexpected error: its class and its place. Its words could hold a prompt or a key. Of a
    group, the first one in it."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    last = traceback.extract_tb(exc.__traceback__)[-1:]
    return {"error": type(exc).__name__, "at": "".join(f"{frame.filename}:{frame.lineno}" for frame in last)}

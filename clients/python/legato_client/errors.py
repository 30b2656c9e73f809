"""Everything this package raises on purpose.

    LegatoError
    ├── Refused                    the server said no, and would say it again
    │   ├── InvalidRequest         400, 413, 422: the request itself; `fields` says what and where
    │   ├── NotAllowed             401, 403
    │   ├── NotFound               404: no such generation, or no such route
    │   ├── Gone                   410: it was deleted, or its time to live is over
    │   └── Conflict               409
    ├── Unavailable                no answer that helps for as long as was allowed; asking later may help
    ├── UnexpectedAnswer           whoever answers there is not Legato
    └── GenerationEnded            raised by `collect`: there is no complete text; `answer` holds what there is
        ├── GenerationFailed       with the failure's `code`, and whether asking again may help
        └── GenerationCancelled    with the `reason`

Messages name the address and what was seen, and never a credential or a prompt. Wrong arguments are `ValueError` and
`TypeError`, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from legato_client.answer import Answer


class LegatoError(Exception):
    """Base of all."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request: where, and what."""

    field: str
    message: str


class Refused(LegatoError):
    """The server refuses. `status` is HTTP's, `code` the protocol's name of the reason (`""` where it gave none)."""

    def __init__(self, status: int, code: str, detail: str, fields: tuple[FieldError, ...] = ()) -> None:
        named = "; ".join(f"{each.field}: {each.message}" for each in fields)
        super().__init__(f"{detail} ({named})" if named else detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fields = fields


class InvalidRequest(Refused):
    """The request is wrong. Cure: what `fields` says."""


class NotAllowed(Refused):
    """The credential is missing, wrong, or not enough."""


class NotFound(Refused):
    """There is nothing under that name."""


class Gone(Refused):
    """The generation was deleted, or has expired. It never comes back."""


class Conflict(Refused):
    """The generation is not in the state that this needs, or something else was stored first."""


class Unavailable(LegatoError):
    """Given up. `retry_after_seconds` is what the server asked to wait, where that was more than was left."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnexpectedAnswer(LegatoError):
    """An answer that Legato does not give. Cure: look at the base URL, and at what stands in between."""


class GenerationEnded(LegatoError):
    """The generation has ended, and not completed. `answer` is what it said until then."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


class GenerationFailed(GenerationEnded):
    """`code` is the protocol's; `retryable`: submitting again may help."""

    def __init__(self, answer: Answer, *, code: str, message: str, retryable: bool) -> None:
        super().__init__(f"{code}: {message}", answer)
        self.code = code
        self.retryable = retryable


class GenerationCancelled(GenerationEnded):
    """`reason` is `user`, `abandoned`, `interrupted` or `deleted`."""

    def __init__(self, answer: Answer, *, reason: str) -> None:
        super().__init__(f"cancelled: {reason}", answer)
        self.reason = reason


class Garbled(ValueError):
    """A body that cannot be read. Never leaves the package: the connection is taken as cut, and asked for again."""

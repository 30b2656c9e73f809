"""How long to wait, and when to give up. Pure: time and chance come as arguments.

A random wait between 0 and a bound that doubles ("full jitter") spreads out readers that were all cut at once. What the
server asks for, by `retry:` or `Retry-After`, is a least time and comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Longest `retry:` that is believed. The server's are at most 10 s; one of a year would be an outage.
MAX_RETRY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """`give_up_seconds`: how long to go on without a good answer; None is for ever, 0 is one try."""

    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 15.0
    give_up_seconds: float | None = 120.0

    def __post_init__(self) -> None:
        for name in ("first_delay_seconds", "max_delay_seconds", "give_up_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value!r}, and cannot be below 0")


@dataclass(frozen=True, slots=True)
class Wait:
    """Try again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """`retry_after_seconds`: what the server asked for, where that is more than was left."""

    retry_after_seconds: float | None = None


def next_try(
    patience: Patience,
    *,
    failures: int,
    lost_seconds: float,
    retry_seconds: float | None,
    retry_after_seconds: float | None,
    chance: float,
) -> Wait | GiveUp:
    """What comes after a try that failed.

    `failures`: tries in a row that brought nothing, before this one. `lost_seconds`: since when there was no good
    answer. `chance`: a random number of [0, 1). The first try after a good connection waits what the server asked for,
    and no more.
    """
    least = max(min(retry_seconds or 0.0, MAX_RETRY_SECONDS), retry_after_seconds or 0.0)
    bound = min(patience.max_delay_seconds, patience.first_delay_seconds * 2.0 ** min(failures, 32))
    pause = least if least and not failures else least + chance * bound
    if patience.give_up_seconds is None:
        return Wait(pause)
    left = patience.give_up_seconds - lost_seconds
    if retry_after_seconds is not None and retry_after_seconds > left:
        return GiveUp(retry_after_seconds)
    return Wait(min(pause, left)) if left > 0 else GiveUp()

"""All filters of one answer in a row: transforms in order, then validators in order.

What third parties' code does wrong ends here, as `FilterDefect`. A validator that changes text is found out at once:
what it releases is compared with what it was given. Nothing is released after an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import PurePath

from worker.filters.base import FilterDefect, Rejected, Transform, Validator


class _Ledger:
    """Text that a validator was given and has not released."""

    def __init__(self) -> None:
        self._given: deque[str] = deque()
        self._offset = 0  # released of the first

    def __bool__(self) -> bool:
        return bool(self._given)

    def give(self, text: str) -> None:
        if text:
            self._given.append(text)

    def take(self, released: str) -> bool:
        """Whether `released` is exactly what comes next."""
        at = 0
        while at < len(released):
            if not self._given:
                return False
            first = self._given[0]
            size = min(len(first) - self._offset, len(released) - at)
            if first[self._offset : self._offset + size] != released[at : at + size]:
                return False
            at += size
            self._offset += size
            if self._offset == len(first):
                self._given.popleft()
                self._offset = 0
        return True


class Pipeline:
    """The filters of one answer. After an exception it may not be used again."""

    def __init__(
        self, transforms: Sequence[Transform], validators: Sequence[Validator], *, names: Sequence[str]
    ) -> None:
        """`names` are for messages: one for each transform, then one for each validator."""
        self._transforms = list(zip(names[: len(transforms)], transforms, strict=True))
        self._validators = [
            (name, validator, _Ledger()) for name, validator in zip(names[len(transforms) :], validators, strict=True)
        ]
        self._fed = False

    @property
    def held(self) -> bool:
        """Whether something that was given has not come out yet. Raises `FilterDefect`."""
        if any(ledger for _, _, ledger in self._validators):
            return True
        return self._fed and any(_pending(name, transform) for name, transform in self._transforms)

    def feed(self, text: str) -> str:
        """What may be shown now. Raises `Rejected`, `FilterDefect`."""
        for name, transform in self._transforms:
            text = self._fed_to(name, transform, text)
        for name, validator, ledger in self._validators:
            ledger.give(text)
            text = _released(name, ledger, self._fed_to(name, validator, text))
        return text

    def end(self) -> str:
        """The rest. Raises `Rejected`, `FilterDefect`."""
        text = ""
        for name, transform in self._transforms:
            text = self._fed_to(name, transform, text) + _guarded(name, transform.end)
        for name, validator, ledger in self._validators:
            ledger.give(text)
            text = _released(name, ledger, self._fed_to(name, validator, text))
            text += _released(name, ledger, _guarded(name, validator.end))
            if ledger:
                raise FilterDefect(name, "it has not released everything at the end")
        self._fed = False
        return text

    def _fed_to(self, name: str, one: Transform | Validator, text: str) -> str:
        if not text:
            return ""
        self._fed = True
        return _guarded(name, one.feed, text)


def _released(name: str, ledger: _Ledger, text: str) -> str:
    if not ledger.take(text):
        raise FilterDefect(name, "it released other text than it was given")
    return text


def _pending(name: str, transform: Transform) -> bool:
    pending: Callable[[], bool] | None = getattr(transform, "pending", None)
    if pending is None:
        return True
    try:
        return bool(pending())
    except Exception as error:  # noqa: BLE001 - somebody else's code
        raise FilterDefect(name, _problem(error)) from None


def _guarded(name: str, call: Callable[..., object], *text: str) -> str:
    """Call a filter. Its exceptions may quote the answer: only their kind and place are told, and no cause is kept."""
    try:
        found = call(*text)
    except Rejected:
        raise
    except Exception as error:  # noqa: BLE001 - somebody else's code
        raise FilterDefect(name, _problem(error)) from None
    if not isinstance(found, str):
        raise FilterDefect(name, f"it returned {type(found).__name__}, not str")
    return found


def _problem(error: Exception) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return type(error).__name__
    return f"{type(error).__name__} at {PurePath(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"

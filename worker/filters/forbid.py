"""The validator `forbid`: ends the generation before a reader sees any of what it looks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from worker.filters.base import Rejected
from worker.filters.finder import Find, Finder


class Forbid:
    """`words` are found as whole words, in any case; `patterns` are names of `worker.filters.finder.KINDS`."""

    def __init__(self, *, words: Sequence[str] = (), patterns: Sequence[str] = ()) -> None:
        self._finder = Finder(kinds=patterns, words=words)

    def feed(self, text: str) -> str:
        return _judged(self._finder.feed(text))

    def end(self) -> str:
        return _judged(self._finder.end())


def _judged(finds: Iterator[Find]) -> str:
    parts: list[str] = []
    for find in finds:
        if find.kind is not None:
            raise Rejected(f"the answer holds something forbidden: {find.kind}")
        parts.append(find.text)
    return "".join(parts)

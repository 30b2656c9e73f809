"""The transform `redact`: puts something else in the place of words, addresses, numbers and keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from worker.filters.finder import KINDS, Find, Finder


class Redact:
    """`patterns` are names of `worker.filters.finder.KINDS`, all of them where neither `patterns` nor `words` are
    given. `words` are found as whole words, in any case."""

    def __init__(
        self,
        *,
        patterns: Sequence[str] | None = None,
        words: Sequence[str] = (),
        replacement: str = "[redacted]",
    ) -> None:
        if not isinstance(replacement, str):
            raise TypeError("replacement is not a string")
        if patterns is None:
            patterns = () if words else tuple(KINDS)
        self._finder = Finder(kinds=patterns, words=words)
        self._replacement = replacement

    def feed(self, text: str) -> str:
        return self._replaced(self._finder.feed(text))

    def end(self) -> str:
        return self._replaced(self._finder.end())

    def pending(self) -> bool:
        return self._finder.waits

    def _replaced(self, finds: Iterator[Find]) -> str:
        return "".join(find.text if find.kind is None else self._replacement for find in finds)

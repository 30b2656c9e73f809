"""What stdout has been given, against what the generation says. Pure.

A terminal or a pipe takes nothing back, but a generation may: `reset` begins its text anew, a `snapshot` replaces it.
So the new text is first compared with what is there already. As long as it is the same nothing is written; where it
goes on, only the rest is. Only where it differs the text is written anew, and the writer has to say so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Write:
    """Text to write; `anew`: what was written before it is void."""

    text: str
    anew: bool = False


class Shown:
    """`whole`: the text is read from its beginning, so what is written can be compared with a new one."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._written: list[str] = []  # since the last time it began anew
        self._again: str | None = None  # all of `_written`, while a new text has not caught up with it
        self._matched = 0  # characters of `_again` that the new text has repeated so far

    def add(self, text: str) -> Write | None:
        """The generation's text goes on."""
        if self._again is None:
            self._written.append(text)
            return Write(text)
        rest = self._again[self._matched : self._matched + len(text)]
        if not text.startswith(rest):
            return self._anew(self._again[: self._matched] + text)
        self._matched += len(rest)
        if self._matched < len(self._again):
            return None
        self._again = None
        text = text[len(rest) :]
        self._written.append(text)
        return Write(text) if text else None

    def clear(self) -> Write | None:
        """The generation's text is empty again."""
        written = "".join(self._written)
        if not self._whole:
            self._whole = True
            return self._anew("") if written else None
        self._again, self._matched = (written, 0) if written else (None, 0)
        return None

    def replace(self, text: str) -> Write | None:
        """The generation's text is this one."""
        cleared = self.clear()
        added = self.add(text) if text else None
        if cleared is None:
            return added
        return Write(added.text if added else "", anew=True)

    def end(self) -> Write | None:
        """The generation's text is whole: what was written beyond it is void."""
        return None if self._again is None else self._anew(self._again[: self._matched])

    def _anew(self, text: str) -> Write:
        self._written, self._again, self._matched = [text], None, 0
        return Write(text, anew=True)

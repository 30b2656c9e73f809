"""Finds words, and things like addresses, in text that comes in chunks. `redact` and `forbid` share it.

It finds in chunks exactly what it would find in the whole text, and keeps back only an end that could still become a
find, or the longer one of two. The patterns bound how much that is: some 350 characters for an address, the longest
word, a few thousand inside a private key.

Requests choose among the kinds here and give words; they give no regular expressions. A hostile one takes the worker's
event loop with it: a limit of time still costs that time for every chunk, and there is none for compiling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import regex

#: Words of one filter, and characters of one word.
_MOST_WORDS: Final = 1000
_MOST_WORD_CHARS: Final = 200

#: A character of a script that puts spaces between words (so not of Thai, Burmese, Khmer, Chinese, Japanese): next to
#: one, a word is only part of another.
_LETTER: Final = (
    r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD_BORDER: Final = f"(?:(?<!{_LETTER})|(?!{_LETTER}))"
_NO_NUMBER: Final = rf"(?<!{_LETTER})(?<!\.)"
#: Of addresses: Latin, Greek and Cyrillic. Ranges, since this is asked at every character.
_ALPHA: Final = r"A-Za-z\u00c0-\u052f"
_TOKEN: Final = r"[A-Za-z0-9_\-]"  # noqa: S105 - a class of characters
#: Hyphens are in the headers of encrypted ones only.
_KEY_LINES: Final = r"(?:[A-Za-z0-9+/=\s:,]{1,64}+-){0,6}[A-Za-z0-9+/=\s:,]{0,6000}+"

#: What a name stands for: a pattern, and what may not follow. Every repetition is bounded, so that the end that is kept
#: back is. Of two that begin at one place the first here wins.
KINDS: Final = {
    "email": (
        rf"(?<![{_ALPHA}0-9])[{_ALPHA}0-9][{_ALPHA}0-9._%+\-]{{0,63}}+@(?:[{_ALPHA}0-9\-]{{1,63}}+\.){{1,4}}[{_ALPHA}]{{2,24}}",
        "",
    ),
    "card": (rf"{_NO_NUMBER}\d(?:[ \-]?\d){{12,18}}", r"(?!\d)"),
    "phone": (
        rf"{_NO_NUMBER}(?:\+\d(?:[ \-./()]{{0,2}}\d){{6,14}}|0\d{{2,5}}(?:[ \-/]{{0,2}}\d){{5,10}}"
        r"|(?:\(\d{3}\) ?|\d{3}[ \-.])\d{3}[ \-.]\d{4})",
        r"(?!\d)",
    ),
    "secret": (
        rf"(?<!{_LETTER})(?:(?:sk|rk|pk)[_\-]{_TOKEN}{{16,256}}|gh[a-z]_\w{{20,255}}|github_pat_\w{{20,255}}"
        rf"|(?:AKIA|ASIA)[A-Z0-9]{{16}}|xox[a-z]-{_TOKEN}{{10,255}}|AIza{_TOKEN}{{35}}"
        rf"|eyJ{_TOKEN}{{8,1024}}\.{_TOKEN}{{8,4096}}(?:\.{_TOKEN}{{8,1024}})?"
        rf"|-----BEGIN [A-Z ]{{0,32}}PRIVATE KEY-----{_KEY_LINES}-----END [A-Z ]{{0,32}}PRIVATE KEY-----)",
        "",
    ),
}

#: Matches no character; at the end of a text it is a partial match. (`[^\s\S]` is not, in this module.)
_NOTHING: Final = r"[^\x00-\U0010ffff]"
#: Compiled patterns that are kept, for requests with the same options.
_KEPT: Final = 64


class Find(NamedTuple):
    """A part of the text. `kind` is None where nothing was found, else a name of `KINDS`, or `word`."""

    text: str
    kind: str | None


class Finder:
    """Reads one text."""

    def __init__(self, *, kinds: Sequence[str], words: Sequence[str]) -> None:
        """Raises `TypeError` and `ValueError` for what came with a request and cannot be used."""
        for name, given in (("patterns", kinds), ("words", words)):
            if not isinstance(given, (list, tuple)) or not all(isinstance(item, str) for item in given):
                raise TypeError(f"{name} is not a list of strings")
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise ValueError(f"no pattern {unknown[0]!r}; there are {', '.join(KINDS)}")
        if not kinds and not words:
            raise ValueError("neither words nor patterns")
        if len(words) > _MOST_WORDS or any(len(word) > _MOST_WORD_CHARS for word in words):
            raise ValueError(f"more than {_MOST_WORDS} words, or one of more than {_MOST_WORD_CHARS} characters")
        if not all(map(str.split, words)):
            raise ValueError("a word is empty")
        self._finds, self._begins = _compiled(tuple(kinds), tuple(words))
        self._before = ""  # the character in front of what waits
        self._waits = ""

    @property
    def waits(self) -> bool:
        """Whether an end is kept back."""
        return bool(self._waits)

    def feed(self, text: str) -> Iterator[Find]:
        """What is certain now. To be read to its end."""
        return self._read(text, final=False)

    def end(self) -> Iterator[Find]:
        """The rest."""
        return self._read("", final=True)

    def _read(self, text: str, *, final: bool) -> Iterator[Find]:
        text = self._before + self._waits + text
        at = len(self._before)
        certain = self._certain(text, at, final=final)
        while at < certain and (found := self._finds.search(text, at)) and found.start() < certain:
            if at < found.start():
                yield Find(text[at : found.start()], None)
            yield Find(found.group(), found.lastgroup)
            at = found.end()
            if at > certain:
                certain = self._certain(text, at, final=final)
        self._before = text[certain - 1 : certain]
        self._waits = text[certain:]
        if at < certain:
            yield Find(text[at:certain], None)

    def _certain(self, text: str, at: int, *, final: bool) -> int:
        """Up to where no find can begin that is not there yet, or not whole."""
        begun = None if final else self._begins.search(text, at, partial=True)
        return begun.start() if begun else len(text)


@lru_cache(_KEPT)
def _compiled(kinds: tuple[str, ...], words: tuple[str, ...]) -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    """What finds, and what matches partially an end that is a find or could become one. The second matches nothing as
    a whole: `regex` prefers a whole match to a partial one that begins before it."""
    finds, begins = [], []
    if words:
        finds.append(rf"(?P<word>{_WORD_BORDER}(?i:\L<words>){_WORD_BORDER})")
        begins.append(rf"{_WORD_BORDER}(?i:\L<words>)")
    for name, (body, after) in KINDS.items():
        if name in kinds:
            finds.append(f"(?P<{name}>{body}{after})")
            begins.append(body)
    lists: dict[str, Any] = {"words": words} if words else {}
    return regex.compile("|".join(finds), **lists), regex.compile(f"(?:{'|'.join(begins)}){_NOTHING}", **lists)

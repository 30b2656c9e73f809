"""From a provider's chunks to the pieces that go into the log: by token, word or sentence, and never longer than asked.

Pure: no I/O and no clock. The worker says when `flush_ms` is over (`due`) and when the text is (`end`). Pieces join to
exactly what was fed. But for `due`, no piece begins inside a grapheme cluster (what a reader takes for one character:
a flag, a family, a letter with its accents), except where a chunk goes out as it came: unit `token`, no `max_chars`.

How a unit is cut depends on the text alone, never on the chunks that it came in; and always in front of a character, so
that a piece goes as soon as the first character behind it is there. White space goes with what follows it.

- `word`: one word (UAX #29) a piece, with opening brackets in front of it and other punctuation behind it. Where words
  are not told apart by spaces (Chinese, Thai and so on) a piece is what UAX #29 has without a dictionary: mostly one
  character.
- `sentence`: up to a sign that ends sentences, with the closing quotes and brackets behind it, if white space follows
  (behind `。！？｡` anything may); and up to each line break. Abbreviations are not known: "e.g. this" is cut in the
  middle, "3.14" is not.

Work is linear in the text: clusters are looked for in windows, from the last known border on, and a cluster that does
not end is looked at again only after it has doubled (a run of 1 MB of accents is no attack).
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import Final, Protocol

import regex

from broker.generation import Delivery

#: Code points that are searched for clusters at a time. `\X` counts flags from where their run begins, so its cost
#: grows with the square of this.
_WINDOW: Final = 512
#: An unfinished cluster of more code points is not searched again for every chunk. No real one is so long.
_LONG_CLUSTER: Final = 64
#: Code points in front of a character that decide whether a word goes on there.
_CONTEXT: Final = 32
#: Distinct characters whose kind is remembered.
_REMEMBERED: Final = 4096

#: A grapheme cluster; the two halves of a surrogate pair are together.
_CLUSTER: Final = regex.compile(r"\X(?:(?<=[\ud800-\udbff])(?=[\udc00-\udfff])\X)*")
#: Ends that are certain to go on: a joiner, half a surrogate pair, half a flag, a tag sequence without its last tag, a
#: sign that is written in front of another.
_UNFINISHED: Final = regex.compile(
    r"[\u200d\ud800-\udbff\U000e0020-\U000e007e\p{GCB=Prepend}]\Z|\A\p{RI}\Z",
)

_WORD: Final = regex.compile(r"[\w\p{Extended_Pictographic}\p{RI}]")
#: U+2018 is an apostrophe too.
_OPENING: Final = regex.compile(r"[\p{Ps}\p{Pi}--\u2018]", regex.VERSION1)
_WORD_BORDER: Final = regex.compile(r"(?w)\b")

_LINE_BREAKS: Final = frozenset("\n\r\x85\u2028\u2029")
_ENDS_ALONE: Final = frozenset("。！？｡")
_ENDS: Final = regex.compile(r"[\p{Sentence_Terminal}…]")
#: Also what Markdown closes with.
_CLOSING: Final = regex.compile(r"""[\p{Pe}\p{Pf}"'*_`~]""")


class _Kind(Enum):
    SPACE = auto()
    WORD = auto()
    OPENING = auto()
    OTHER = auto()


@lru_cache(_REMEMBERED)
def _kind(char: str) -> _Kind:
    if char.isspace() and char != "\u202f":  # a narrow space that does not part words: 1 000
        return _Kind.SPACE
    if _WORD.match(char):
        return _Kind.WORD
    return _Kind.OPENING if _OPENING.match(char) else _Kind.OTHER


class _Unit(Protocol):
    """Where text may be cut."""

    def begins(self, char: str) -> bool:
        """Whether a cluster that starts with `char` begins a new piece. Changes nothing."""
        ...

    def take(self, cluster: str, *, begins: bool) -> None:
        """The cluster is finished."""
        ...


class _Words:
    def __init__(self) -> None:
        self._before = ""  # of this piece, as much as matters
        self._has_text = False
        self._has_word = False

    def begins(self, char: str) -> bool:
        match _kind(char):
            case _Kind.SPACE:
                return self._has_text
            case _Kind.WORD:
                return self._has_word and bool(_WORD_BORDER.match(self._before + char, len(self._before)))
            case _Kind.OPENING:
                return self._has_word
            case _Kind.OTHER:
                return False

    def take(self, cluster: str, *, begins: bool) -> None:
        if begins:
            self._before, self._has_text, self._has_word = "", False, False
        kind = _kind(cluster[0])
        self._before = (self._before + cluster)[-_CONTEXT:]
        self._has_text = self._has_text or kind is not _Kind.SPACE
        self._has_word = self._has_word or kind is _Kind.WORD


class _Sentences:
    def __init__(self) -> None:
        self._has_text = False
        self._ended = False  # if white space follows
        self._ended_alone = False  # whatever follows

    def begins(self, char: str) -> bool:
        if not self._has_text:
            return False
        if self._ended_alone:
            return not (_ENDS.match(char) or _CLOSING.match(char))
        return char in _LINE_BREAKS or (self._ended and char.isspace())

    def take(self, cluster: str, *, begins: bool) -> None:
        char = cluster[0]
        if begins:
            self._has_text, self._ended, self._ended_alone = False, False, False
        self._has_text = self._has_text or not char.isspace()
        if char in _ENDS_ALONE:
            self._ended_alone = True
        elif _ENDS.match(char):
            self._ended = True
        elif not _CLOSING.match(char):
            self._ended = self._ended_alone = False


def _unit(name: str) -> _Unit | None:
    """None is as it comes. Raises `ValueError`."""
    match name:
        case "token":
            return None
        case "word":
            return _Words()
        case "sentence":
            return _Sentences()
    raise ValueError(f"no unit {name!r}; there are token, word, sentence")


class _Clusters:
    """Reads text into grapheme clusters as it comes. What is open always begins where a cluster does."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._chars = 0
        self._look_at = 1  # code points, from which on it is worth a look

    @property
    def open(self) -> str:
        """What is not known to be finished: mostly one cluster."""
        return "".join(self._parts)

    @property
    def first(self) -> str:
        """The first character of what is open, or nothing."""
        return self._parts[0][0] if self._parts else ""

    def feed(self, text: str) -> list[str]:
        """The clusters that are finished."""
        finished: list[str] = []
        for start in range(0, len(text), _WINDOW):
            part = text[start : start + _WINDOW]
            self._parts.append(part)
            self._chars += len(part)
            if self._chars < self._look_at:
                continue
            clusters = _CLUSTER.findall(self.open)
            self._keep("" if clusters[-1].endswith("\n") else clusters.pop())  # nothing joins a line feed
            finished += clusters
        return finished

    def flush(self, *, all_of_it: bool) -> list[str]:
        """Every cluster as it stands; without `all_of_it` a last one that is certain to go on stays."""
        clusters: list[str] = _CLUSTER.findall(self.open)
        self._keep(clusters.pop() if clusters and not all_of_it and _UNFINISHED.search(clusters[-1]) else "")
        return clusters

    def _keep(self, last: str) -> None:
        self._parts = [last] if last else []
        self._chars = len(last)
        self._look_at = 2 * self._chars if self._chars > _LONG_CLUSTER else self._chars + 1


class Cutter:
    """Cuts one text."""

    def __init__(self, delivery: Delivery) -> None:
        """Raises `ValueError` for a unit that does not exist, or `max_chars` < 1."""
        if delivery.max_chars is not None and delivery.max_chars < 1:
            raise ValueError("max_chars is less than 1")
        self._name = delivery.unit
        self._unit = _unit(delivery.unit)
        self._max_chars = delivery.max_chars
        self._as_it_comes = self._unit is None and delivery.max_chars is None
        self._clusters = _Clusters()
        self._piece: list[str] = []  # finished clusters
        self._chars = 0  # in `_piece`

    @property
    def held(self) -> str:
        """What has been fed and has not gone. Costs its length; see `holds`."""
        return "".join(self._piece) + self._clusters.open

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return bool(self._piece or self._clusters.first)

    def feed(self, text: str) -> list[str]:
        """The pieces that may go now, none of them empty."""
        if self._as_it_comes:
            return [text] if text else []
        pieces: list[str] = []
        self._take(self._clusters.feed(text), pieces)
        first = self._clusters.first
        if self._unit is None or (first and self._unit.begins(first)):
            self._go(pieces)
        return pieces

    def due(self) -> list[str]:
        """`flush_ms` is over: everything goes, but for a last cluster that is certainly unfinished (half a flag, a
        joiner at the end)."""
        return self._flush(all_of_it=False)

    def end(self) -> list[str]:
        """The text is over: everything goes. What is fed afterwards is a new text."""
        pieces = self._flush(all_of_it=True)
        self._unit = _unit(self._name)
        return pieces

    def _flush(self, *, all_of_it: bool) -> list[str]:
        pieces: list[str] = []
        self._take(self._clusters.flush(all_of_it=all_of_it), pieces)
        self._go(pieces)
        return pieces

    def _take(self, clusters: list[str], pieces: list[str]) -> None:
        """Add finished clusters to the piece; `pieces` gets those that are full."""
        for cluster in clusters:
            if self._unit is not None:
                begins = self._unit.begins(cluster[0])
                self._unit.take(cluster, begins=begins)
                if begins:
                    self._go(pieces)
            if self._max_chars is not None and self._chars + len(cluster) > self._max_chars:
                self._go(pieces)
            self._piece.append(cluster)
            self._chars += len(cluster)
            if self._max_chars is not None and self._chars >= self._max_chars:
                self._go(pieces)

    def _go(self, pieces: list[str]) -> None:
        if self._piece:
            pieces.append("".join(self._piece))
            self._piece, self._chars = [], 0

"""Keeps prompts out of what a provider's error says.

Some providers quote the request back in their error messages. The message goes into the log, to clients and into our
own logs, where a prompt has no business.

Texts are compared by their letters and digits alone. So white space, punctuation, quotation marks and the escapes of
JSON and Python, however deep, make no difference; what is escaped alike on both sides is read alike on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from broker.generation import Request

#: So many letters and digits in a row that a message shares with the prompt are a quotation.
QUOTED_CHARS: Final = 14

#: A text of the prompt that is shorter than a quotation is one if it stands in the message by itself.
_LEAST_CHARS: Final = 4

#: A short text may hold so many quotation marks of its own.
_INNER_MARKS: Final = 2

_CUT: Final = "[prompt]"
_ESCAPE: Final = r"\\+(?:u([0-9a-fA-F]{4})|[nrtbf])?"
_ESCAPES: Final = re.compile(_ESCAPE)
_PIECES: Final = re.compile(_ESCAPE + "|.", re.DOTALL)
#: What is no letter or digit; those beyond 16 bits are two escapes in JSON, and are left out with them.
_OTHERS: Final = re.compile(r"[\W_\U00010000-\U0010ffff]+")
_MARKS: Final = re.compile(r"[\"'`“”‘’«»]")


def without_prompt(message: str, request: Request) -> str:
    """`message` with all it quotes of the request's messages, tools, options and stop sequences replaced by `[prompt]`.

    Words that everybody uses are no quotation: only `QUOTED_CHARS` letters and digits in a row count, or a whole short
    text of the messages that stands between quotation marks.
    """
    said = [(letter, piece.span()) for piece in _PIECES.finditer(message) for letter in _letters(piece[0])]
    letters = "".join(letter for letter, _ in said)
    contents = (sent["content"] for sent in request.messages if "content" in sent)
    texts = [_letters(text) for text in _strings(contents)]
    prompt = "\n".join([*texts, *map(_letters, _strings(_around(request)))])
    cut = [False] * len(message)
    for start in range(len(letters) - QUOTED_CHARS + 1):
        if letters[start : start + QUOTED_CHARS] in prompt:
            first, last = said[start][1][0], said[start + QUOTED_CHARS - 1][1][1]
            cut[first:last] = [True] * (last - first)
    short = {text for text in texts if _LEAST_CHARS <= len(text) < QUOTED_CHARS}
    for opening, closing in _marks(message) if short else ():
        inside = [place for place, (_, (first, last)) in enumerate(said) if opening <= first and last <= closing]
        if inside and letters[inside[0] : inside[-1] + 1] in short:
            first, last = said[inside[0]][1][0], said[inside[-1]][1][1]
            cut[first:last] = [True] * (last - first)
    pieces: list[str] = []
    for char, is_cut in zip(message, cut, strict=True):
        if not is_cut:
            pieces.append(char)
        elif not pieces or pieces[-1] != _CUT:
            pieces.append(_CUT)
    return "".join(pieces)


def _around(request: Request) -> Iterator[Any]:
    """What the client wrote besides the messages' content."""
    for message in request.messages:
        yield [call.get("function") for call in message.get("tool_calls") or ()]
    yield request.tools
    yield request.stop
    yield [target.provider_options for target in request.targets]


def _marks(message: str) -> Iterator[tuple[int, int]]:
    """Where two quotation marks stand that may belong together."""
    marks = [found.start() for found in _MARKS.finditer(message)]
    for at, opening in enumerate(marks):
        for closing in marks[at + 1 : at + 2 + _INNER_MARKS]:
            yield opening, closing


def _letters(text: str) -> str:
    """Its letters and digits."""
    if "\\" in text:
        text = _ESCAPES.sub(lambda found: chr(int(found[1], 16)) if found[1] else "", text)
    return _OTHERS.sub("", text)


def _strings(values: Iterable[Any]) -> Iterator[str]:
    """Every text inside, however deep; not the names of fields."""
    waiting = list(values)
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case dict(fields):
                waiting += fields.values()
            case list(items):
                waiting += items

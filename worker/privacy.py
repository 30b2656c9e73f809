"""Keeps prompts out of what a provider's error says.

Some providers quote the request back in their error messages. The message goes into the log, to clients and into our
own logs, where a prompt has no business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

from broker.generation import Request

#: So many characters in a row that a message shares with the prompt are a quotation.
QUOTED_CHARS: Final = 16

#: A text of the prompt that is shorter than a quotation is one if it stands in the message by itself.
_LEAST_CHARS: Final = 4

_CUT: Final = "[prompt]"
_SPACE: Final = re.compile(r"\s+")


def without_prompt(message: str, request: Request) -> str:
    """`message` with all it quotes of the request's messages, tools and options replaced by `[prompt]`.

    Words that everybody uses are no quotation: only `QUOTED_CHARS` characters in a row count, or a whole short text of
    the prompt that stands between quotation marks. White space and JSON escapes are read alike.
    """
    prompt = _prompt(request)
    cut = [False] * len(message)
    for start in range(len(message) - QUOTED_CHARS + 1):
        if _plain(message[start : start + QUOTED_CHARS]) in prompt:
            cut[start : start + QUOTED_CHARS] = [True] * QUOTED_CHARS
    for short in {text for text in map(_plain, _texts(request)) if _LEAST_CHARS <= len(text) < QUOTED_CHARS}:
        for found in re.finditer(f"(?<=[\"'`“‘«]){re.escape(short)}(?=[\"'`”’»])", message):
            cut[found.start() : found.end()] = [True] * (found.end() - found.start())
    pieces: list[str] = []
    for char, is_cut in zip(message, cut, strict=True):
        if not is_cut:
            pieces.append(char)
        elif not pieces or pieces[-1] != _CUT:
            pieces.append(_CUT)
    return "".join(pieces)


def _prompt(request: Request) -> str:
    """Everything the client wrote, with names of models left in: messages may say those."""
    texts = [_plain(text) for text in _texts(request)]
    escaped = [
        _plain(orjson.dumps(text).decode()[1:-1]) for text in texts if not text.isascii() or "\\" in text or '"' in text
    ]
    return "\n".join([*texts, *escaped])


def _texts(request: Request) -> Iterator[str]:
    for message in request.messages:
        yield from _strings(message.get("content"))
        yield from _strings([call.get("function") for call in message.get("tool_calls") or ()])
    for tool in request.tools or ():
        yield from _strings(tool)


def _strings(value: Any) -> Iterator[str]:
    """Every text inside, however deep; not the names of fields."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case dict(fields):
                waiting += fields.values()
            case list(items):
                waiting += items


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text)

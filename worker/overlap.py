"""Where a cut answer can be read on at its provider, and what of it has been shown already. Pure.

An answer that is read on at its provider begins behind the last mark that the log's holder noted. Events may have been
logged behind that mark; they come once more, perhaps cut differently. They are told by how much there is of each
text, call and part, for the provider replays one and the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from broker.events import Delta, DeltaKind, Entry, Json, Part, ToolCall, ToolCallDone, decode
from worker.providers.base import ProviderEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamMark:
    """Where an answer can be read on, as the record notes it: behind the entry at `position`, with `token`."""

    position: str
    provider: str
    model: str
    token: Json

    def encode(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, text: str) -> UpstreamMark:
        return cls(**orjson.loads(text))


class Overlap:
    """The events of a log behind a mark, to be dropped from what the provider sends again."""

    def __init__(self, entries: Sequence[Entry], *, first_index: int = 0) -> None:
        """`first_index` is what the log adds to the provider's own count of calls."""
        self._texts: dict[DeltaKind, int] = {}
        self._arguments: dict[int, int] = {}
        self._done: set[int] = set()
        self._parts = 0
        for entry in entries:
            match decode(entry):
                case Delta(text=text, kind=kind):
                    self._texts[kind] = self._texts.get(kind, 0) + len(text)
                case ToolCall(index=index, arguments=arguments):
                    own = index - first_index
                    self._arguments[own] = self._arguments.get(own, 0) + len(arguments)
                case ToolCallDone(index=index):
                    self._done.add(index - first_index)
                case Part():
                    self._parts += 1
                case _:
                    pass

    def rest_of(self, event: ProviderEvent) -> ProviderEvent | None:
        """What of `event` is new, if anything. Events are given in the order of the provider."""
        match event:
            case Delta(text=text, kind=kind):
                known = self._texts.get(kind, 0)
                self._texts[kind] = max(0, known - len(text))
                if known >= len(text):
                    return None
                return Delta(text[known:], kind) if known else event
            case ToolCall(index=index, arguments=arguments) if index in self._arguments:
                known = self._arguments[index]
                self._arguments[index] = max(0, known - len(arguments))
                rest = arguments[known:]
                return ToolCall(index=index, arguments=rest) if rest else None
            case ToolCallDone(index=index) if index in self._done:
                return None
            case Part() if self._parts:
                self._parts -= 1
                return None
            case _:
                return event

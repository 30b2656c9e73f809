"""Where an answer goes on from a text that was shown already: nothing may be repeated there, and nothing skipped.

A text is given back as the assistant's last words, without the whitespace at its end: some servers refuse that, and
templates of others cut it off, so the model may say it again. What it repeats of it is dropped; where it goes on with
something else, that follows the whitespace that was shown. Some servers begin their answer with all they were given
(an echo); an answer that begins otherwise, or ends before the echo is whole, is none and passes unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.events import Delta, DeltaKind, Json, ToolCall
from worker.providers.base import Finish, ProviderEvent
from worker.providers.wire import Mapper


def given_back(messages: list[Json], partial: str, **fields: object) -> list[Json]:
    """`messages`, and what was shown as the assistant's last, unfinished one. `fields` are added to it."""
    words = partial.rstrip()
    return [*messages, {"role": "assistant", "content": words, **fields}] if words else messages


class Seam:
    """A mapper whose first text follows `partial`; see `wire.Mapper`. `echo`: the server may repeat what it got."""

    def __init__(self, mapper: Mapper, partial: str, *, echo: bool) -> None:
        self._mapper = mapper
        words = partial.rstrip()
        self._echo = words if echo else ""  # of this nothing is new, if all of it comes
        self._held = ""  # what came of it
        self._space = partial[len(words) :]  # what of it is repeated is dropped
        self._open = bool(self._echo or self._space)

    @property
    def finished(self) -> bool:
        return self._mapper.finished

    def feed(self, name: bytes | None, data: bytes) -> Sequence[ProviderEvent]:
        events = self._mapper.feed(name, data)
        return self._joined(events) if self._open else events

    def end(self) -> Sequence[ProviderEvent]:
        return self._joined(self._mapper.end())

    def _joined(self, events: Sequence[ProviderEvent]) -> list[ProviderEvent]:
        out: list[ProviderEvent] = []
        for event in events:
            match event:
                case Delta(kind=DeltaKind.TEXT) if self._open:
                    if text := self._new(event.text):
                        out.append(Delta(text))
                case ToolCall() | Finish() if self._open:  # no more text at this place
                    self._echo = ""
                    if text := self._after_echo(""):
                        out.append(Delta(text=text))
                    self._open = False
                    out.append(event)
                case _:
                    out.append(event)
        return out

    def _new(self, text: str) -> str:
        """What of `text` was not shown; what may turn out to be an echo is held."""
        if not self._echo:
            return self._after_echo(text)
        came = self._held + text
        if self._echo.startswith(came) and len(came) < len(self._echo):
            self._held = came
            return ""
        if came.startswith(self._echo):
            self._held, text = "", came[len(self._echo) :]
        self._echo = ""
        return self._after_echo(text)

    def _after_echo(self, text: str) -> str:
        text, self._held = self._held + text, ""
        while text and self._space and text[0] == self._space[0]:
            text, self._space = text[1:], self._space[1:]
        self._open = not text and bool(self._space)
        return text

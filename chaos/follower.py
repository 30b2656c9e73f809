"""The least a client must do, and what is watched while it does it. Pure: no sockets, no clock.

A follower appends `delta.text`, clears on `reset`, replaces on `snapshot`, takes `open` anywhere, and is done with a
terminal event. Beside that it notes everything that a correct log can never show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})


@dataclass(slots=True)
class Sightings:
    """What was seen at every position, by anybody. A position names one prefix of one text, for ever."""

    at: dict[tuple[str, str], bytes] = field(default_factory=dict)
    ends: dict[str, dict[str, str]] = field(default_factory=dict)  # generation -> position -> event and data


@dataclass(slots=True)
class Violation:
    """Something that must not be. `check` names the rule."""

    check: str
    generation: str
    detail: str


class Follower:
    """One client's view of one generation."""

    def __init__(self, generation: str, sightings: Sightings, violations: list[Violation]) -> None:
        self.generation = generation
        self.cursor: str | None = None
        self.end: str | None = None  # the terminal event's name
        self.verdicts: list[str] = []
        self.resets = 0
        self.results: list[tuple[str, str]] = []  # of tools: id of the call, content
        self._parts: list[str] = []
        self._digest = blake2b(digest_size=16)
        self._seen = sightings
        self._violations = violations
        self._epoch = 0
        self._seq = 0

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def take(self, event: str, data: str, position: str | None) -> None:
        """One frame."""
        if self.end is not None:
            self._wrong("after_the_end", f"{event} at {position} after {self.end}")
        body: dict[str, Any] = json.loads(data) if data else {}
        match event:
            case "open":
                if body.get("verdict") is not None:
                    self.verdicts.append(body["verdict"])
                return
            case "error":
                self.verdicts.append(f"error:{body.get('code')}")
                return
            case "ping":
                return
            case "delta":
                self._moved(event, position)
                if "kind" not in body:
                    self._append(body["text"])
            case "reset":
                self._moved(event, position)
                self.resets += 1
                self.results = []
                self._replace("")
            case "snapshot":
                if position is not None:
                    self._seq, self._epoch = _split(position)
                self.results = results_of(body)
                self._replace(body["text"])
            case "tool_result":
                self._moved(event, position)
                self.results.append((body["id"], body["content"]))
            case _:
                self._moved(event, position)
        if position is not None:
            self.cursor = position
            self._sight(position)
        if event in TERMINAL:
            self.end = event
            known = self._seen.ends.setdefault(self.generation, {})
            said = json.dumps([event, body], sort_keys=True)
            if position is not None and known.setdefault(position, said) != said:
                self._wrong("two_contents", f"{position} is {said[:200]} and was {known[position][:200]}")

    def _moved(self, event: str, position: str | None) -> None:
        if position is None:
            if event != "cancelled":  # a delete is told to those who read, and is not logged
                self._wrong("no_position", f"{event} without a position")
            return
        seq, epoch = _split(position)
        if event == "reset":
            self._epoch = epoch
        if epoch < self._epoch:
            self._wrong("older_epoch", f"{event} at {position} after epoch {self._epoch}")
        if seq <= self._seq:
            self._wrong("repeated", f"{event} at {position} after seq {self._seq}")
        elif event != "delta" and seq != self._seq + 1:
            self._wrong("skipped", f"{event} at {position} after seq {self._seq}")
        self._seq, self._epoch = seq, epoch

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._digest.update(text.encode())

    def _replace(self, text: str) -> None:
        self._parts = [text] if text else []
        self._digest = blake2b(text.encode(), digest_size=16)

    def _sight(self, position: str) -> None:
        digest = self._digest.digest()
        if self._seen.at.setdefault((self.generation, position), digest) != digest:
            self._wrong("two_contents", f"two texts under {position}; one ends {self.text[-60:]!r}")

    def _wrong(self, check: str, detail: str) -> None:
        self._violations.append(Violation(check, self.generation, f"{detail}; verdicts {self.verdicts[-6:]}"))


class SseParser:
    """Blocks of `field: value` lines, as the HTML standard says, from any cut of the bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._event, self._data = "message", list[str]()
        self._id: str | None = None
        self._retry: int | None = None

    @property
    def retry_ms(self) -> int | None:
        return self._retry

    def feed(self, data: bytes) -> list[tuple[str, str, str | None]]:
        """The frames that are whole now: event, data, id."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        out: list[tuple[str, str, str | None]] = []
        for raw in lines:
            line = raw.rstrip(b"\r").decode()
            if not line:
                if self._data:
                    out.append((self._event, "\n".join(self._data), self._id))
                self._event, self._id, self._data = "message", None, []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    self._event = value
                case "id":
                    self._id = value
                case "data":
                    self._data.append(value)
                case "retry":
                    self._retry = int(value)
        return out


class NdjsonParser:
    """One `{"id", "event", "data"}` a line."""

    retry_ms: int | None = None

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[str, str, str | None]]:
        """The frames that are whole now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        out = []
        for line in lines:
            if line:
                item = json.loads(line)
                out.append((item["event"], json.dumps(item["data"]) if "data" in item else "", item.get("id")))
        return out


def results_of(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The results of tools in a folded state."""
    return [(result["id"], result["content"]) for result in state.get("tool_results", ())]


def _split(position: str) -> tuple[int, int]:
    seq, _, epoch = position.partition("-")
    return int(seq), int(epoch)

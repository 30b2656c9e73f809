"""What the scripted server says to one request: a log served by its cursor, as the real one would, and broken as the
case says. Pure: the answer is a list of pieces of bytes and pauses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

SSE: Final = "text/event-stream; charset=utf-8"
TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})
#: What `open` asks for unless the case says otherwise: enough to be seen, too little to wait for.
RETRY_MS: Final = 10


class End(Enum):
    """How the answer ends."""

    CLEAN = "clean"  # as its framing says
    CUT = "cut"  # the connection is closed before that
    RESET = "reset"  # the connection is reset
    SILENCE = "silence"  # nothing more, until the client leaves


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `head` None: the connection ends without one."""

    head: tuple[int, Mapping[str, str]] | None
    pieces: Sequence[bytes | Pause]
    end: End


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a log."""

    id: str | None
    event: str
    data: Any


def entries(log: Sequence[Sequence[Any]]) -> list[Entry]:
    """A log as cases write it: `[id, event, data]` each, or `[id, text]` for a delta."""
    return [
        Entry(item[0], "delta", {"text": item[1]}) if len(item) == 2 else Entry(item[0], item[1], item[2])
        for item in log
    ]


def reply(
    connection: Mapping[str, Any], log: Sequence[Entry], *, cursor: str | None, snapshot: bool, host: str
) -> Reply:
    """The answer to a request with this cursor, by this part of the script."""
    if connection.get("hang_up"):
        return Reply(None, [], End.RESET)
    if (redirect := connection.get("redirect")) is not None:
        target = redirect["to"] if redirect["to"].startswith("/") else redirect["to"].replace("HOST", host)
        return Reply((redirect["status"], {"Location": target}), [], End.CLEAN)
    if (status := connection.get("status")) is not None:
        return _whole(status, connection)
    body = _Body(connection, log, cursor, snapshot)
    headers = {"Content-Type": connection.get("content_type", SSE), "Cache-Control": "no-store"}
    return Reply((200, headers), body.pieces(), body.end)


def _whole(status: int, connection: Mapping[str, Any]) -> Reply:
    headers = {name: str(value) for name, value in connection.get("headers", {}).items()}
    if (code := connection.get("problem")) is not None:
        headers["Content-Type"] = "application/problem+json"
        problem = {"type": f"urn:legato:problem:{code}", "title": code, "status": status, "code": code, "detail": code}
        body = json.dumps(problem | connection.get("json", {})).encode()
    elif "json" in connection:
        headers["Content-Type"] = "application/json"
        body = json.dumps(connection["json"]).encode()
    else:
        headers.setdefault("Content-Type", connection.get("content_type", "text/html"))
        body = connection.get("body", "").encode()
    return Reply((status, headers), [body] if status != 204 else [], End.CLEAN)


class _Body:
    """The body of a stream."""

    def __init__(self, connection: Mapping[str, Any], log: Sequence[Entry], cursor: str | None, snapshot: bool) -> None:
        self._script = connection
        self._log = log
        # On a thread: positions go out, and come back, with the generation in front.
        self._before = f"{connection['generation']}/" if "generation" in connection else ""
        ours = cursor is not None and cursor.startswith(self._before)
        self._cursor = (cursor or "").removeprefix(self._before) if ours else "0-0"
        self._snapshot = snapshot and cursor is None
        self._newline = connection.get("newline", "\n")
        self.end = End.CLEAN

    def pieces(self) -> list[bytes | Pause]:
        script = self._script
        if (many := script.get("bytes_repeat")) is not None:
            self.end = End(script.get("end", "cut"))
            return [(many["prefix"] + many["repeat"] * many["times"] + many["suffix"]).encode()]
        if "bytes" in script:
            self.end = End(script.get("end", "cut"))
            return self._sliced([script["bytes"].encode()])
        blocks = self._blocks()
        pieces: list[bytes | Pause] = []
        inserted = {item["after"]: item["bytes"] for item in script.get("insert", ())}
        pings = script.get("pings_after", {})
        broken = {script[key]: end for key, end in _BREAKS.items() if key in script}
        whole = False
        for place, block in blocks:
            pieces.append(block)
            if place in inserted:
                pieces.append(inserted[place].encode())
            if place == pings.get("position"):
                pieces += [Pause(pings["every_ms"] / 1000), b": ping\n"] * pings["count"]
            if place in broken:
                self.end, whole = broken[place], True
                break
        if not whole and not (self._log and self._log[-1].event in TERMINAL):
            self.end = End.CUT
        if script.get("fault"):
            self.end = End.CUT
        if (at := script.get("cut_at_byte")) is not None:
            pieces = [b"".join(piece for piece in pieces if isinstance(piece, bytes))[:at]]
            self.end = End.CUT
        mark = ["\ufeff".encode()] if script.get("bom") else []
        return self._sliced([*mark, *pieces])

    def _sliced(self, pieces: list[bytes | Pause]) -> list[bytes | Pause]:
        """In writes of so many bytes, if the case asks for it."""
        size = self._script.get("write_bytes")
        if size is None:
            return pieces
        sliced: list[bytes | Pause] = []
        for piece in pieces:
            if isinstance(piece, Pause):
                sliced.append(piece)
            else:
                sliced += [piece[at : at + size] for at in range(0, len(piece), size)]
        return sliced

    def _blocks(self) -> list[tuple[str, bytes]]:
        """Each block with its place: `open`, `snapshot`, `error`, or the position of its event."""
        script = self._script
        if (fault := script.get("fault")) is not None:
            opened = self._open({"verdict": None})
            data = {"code": fault, "message": f"{fault}, for now", "retryable": True}
            return [("open", opened), ("error", self._block("error", None, data))]
        ids = [entry.id for entry in self._log]
        start = script.get("behind", self._cursor)
        held = start == "0-0" or start in ids
        verdict = ("start" if self._cursor == "0-0" else "resumed") if held else "rewound"
        blocks: list[tuple[str, bytes]] = []
        if script.get("open") is not False:
            blocks.append(("open", self._open({"verdict": verdict} | script.get("open", {}))))
        rest = list(self._log[ids.index(start) + 1 if start in ids else 0 :])
        if not held or self._snapshot:
            folded = [entry for entry in self._log if entry.event not in TERMINAL]
            if (at := script.get("snapshot_at")) is not None:
                folded = folded[: [entry.id for entry in folded].index(at) + 1]
            place = folded[-1].id if folded else "0-0"
            assert place is not None
            blocks.append(("snapshot", self._block("snapshot", place, fold(folded))))
            rest = list(self._log[len(folded) :])
        if script.get("merge"):
            rest = merged(rest)
        blocks += [(entry.id or entry.event, self._block(entry.event, entry.id, entry.data)) for entry in rest]
        return blocks

    def _open(self, changes: Mapping[str, Any]) -> bytes:
        head = self._log[-1].id if self._log else "0-0"
        generation = self._before.rstrip("/") or "*"
        data = {
            "generation": generation,
            "from": self._cursor,
            "head": head,
            "status": "running",
            "attempt": 1,
            **changes,
        }
        return self._block("open", None, data, retry=self._script.get("retry", RETRY_MS))

    def _block(self, event: str, place: str | None, data: Any, *, retry: int | None = None) -> bytes:
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        lines = [f"event: {event}"]
        lines += [f"id: {self._before}{place}"] if place is not None else []
        lines += [f"retry: {retry}"] if retry is not None else []
        lines += [f"data: {text}", "", ""]
        return self._newline.join(lines).encode()


_BREAKS: Final = {
    "cut_after": End.CUT,
    "clean_after": End.CLEAN,
    "reset_after": End.RESET,
    "silence_after": End.SILENCE,
}


def fold(log: Sequence[Entry]) -> dict[str, Any]:
    """The state of a log, as the event `snapshot` has it."""
    state: dict[str, Any] = {"text": "", "tool_calls": [], "attempt": 1, "status": "running"}
    for entry in log:
        match entry.event:
            case "delta":
                kind = entry.data.get("kind", "text")
                state[kind] = state.get(kind, "") + entry.data["text"]
            case "reset":
                state = {"text": "", "tool_calls": [], "attempt": entry.data["attempt"], "status": "running"}
            case "tool_call_done":
                state["tool_calls"].append(entry.data)
    return state


def merged(log: Sequence[Entry]) -> list[Entry]:
    """Consecutive deltas of one kind as one, under the position of the last."""
    joined: list[Entry] = []
    for entry in log:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.event == entry.event == "delta"
            and last.data.get("kind") == entry.data.get("kind")
        ):
            joined[-1] = Entry(entry.id, "delta", {**entry.data, "text": last.data["text"] + entry.data["text"]})
        else:
            joined.append(entry)
    return joined

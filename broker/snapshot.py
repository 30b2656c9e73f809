"""What a client would see that had read a log up to here: the folded state. Pure.

Fold entries in order with `Fold.add`; a terminal event is never folded (it follows as itself), but its usage and
state are noted for `GET /v1/generations/{id}`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from broker.events import (
    Cancelled,
    Completed,
    Delta,
    DeltaKind,
    Entry,
    Failed,
    Json,
    Part,
    Reset,
    Started,
    Status,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    UsageReport,
    decode,
)
from broker.position import BEGINNING


@dataclass(slots=True)
class Fold:
    """The state after the entries added so far. `position` is that of the last one folded."""

    position: str = BEGINNING
    attempt: int = 0
    parts: dict[DeltaKind, list[str]] = field(default_factory=dict)
    tool_calls: dict[int, ToolCallDone] = field(default_factory=dict)
    tool_results: list[ToolResult] = field(default_factory=list)
    other_parts: list[Part] = field(default_factory=list)
    usage: Usage | None = None
    end: Completed | Failed | Cancelled | None = None

    def add(self, entry: Entry) -> None:
        """Fold the next entry in."""
        event = decode(entry)
        match event:
            case Delta(text=text, kind=kind):
                self.parts.setdefault(kind, []).append(text)
            case ToolCall():
                seen = self.tool_calls.get(event.index)
                self.tool_calls[event.index] = ToolCallDone(
                    index=event.index,
                    id=event.id or (seen.id if seen else ""),
                    name=event.name or (seen.name if seen else ""),
                    arguments=(seen.arguments if seen else "") + event.arguments,
                )
            case ToolCallDone():
                self.tool_calls[event.index] = event
            case ToolResult():
                self.tool_results.append(event)
            case Part():
                self.other_parts.append(event)
            case Reset(attempt=attempt):
                self.attempt = attempt
                self.parts, self.tool_calls, self.tool_results, self.other_parts = {}, {}, [], []
                self.usage = None
            case Started(attempt=attempt):
                self.attempt = attempt
            case UsageReport(usage=usage):
                self.usage = usage
            case Status():
                pass
            case Completed(usage=usage) | Cancelled(usage=usage):
                self.end, self.usage = event, usage or self.usage
                return
            case Failed():
                self.end = event
                return
        self.position = entry.position

    @property
    def text(self) -> str:
        """The plain text shown since the last reset."""
        return "".join(self.parts.get(DeltaKind.TEXT, ()))

    def state(self) -> Json:
        """The folded state without the status: `{text, reasoning?, refusal?, tool_calls, tool_results?, parts?,
        attempt, usage?}`."""
        data: Json = {"text": self.text}
        for kind in (DeltaKind.REASONING, DeltaKind.REFUSAL):
            if kind in self.parts:
                data[kind.value] = "".join(self.parts[kind])
        data["tool_calls"] = [
            {"index": call.index, "id": call.id, "name": call.name, "arguments": call.arguments}
            for _, call in sorted(self.tool_calls.items())
        ]
        if self.tool_results:
            data["tool_results"] = [
                {"id": result.id, "name": result.name, "content": result.content, "is_error": result.is_error}
                for result in self.tool_results
            ]
        if self.other_parts:
            data["parts"] = [{"type": part.type, "data": part.data} for part in self.other_parts]
        data["attempt"] = self.attempt
        if self.usage:
            data["usage"] = self.usage.as_json()
        return data

    def data(self, status: str) -> bytes:
        """The data of a `snapshot` event, one line of JSON."""
        return orjson.dumps(self.state() | {"status": status})

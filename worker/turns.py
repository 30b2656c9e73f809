"""What a log says about the turns of a conversation between model and tools. Pure.

A generation whose tools are run here, or by its client, has several turns of the model in one log. A turn is whole
once something of its tools is logged behind it: `status/running_tool`, `status/waiting_for_tools` or a result. So
whoever claims the generation next knows from the log alone which turns are done, which tools were started, and what
they gave back; only what stands behind the last whole turn may have been cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from broker.events import (
    DELTA_FIELDS,
    Delta,
    DeltaKind,
    Entry,
    Event,
    Json,
    Part,
    Status,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    UsageReport,
    decode,
)

#: Reason of a `reset` by a writer whose store went back to a time before its claim.
ROLLED_BACK = "store_rolled_back"

#: Phases of `status` that stand behind a whole turn, and name one of its calls.
RUNNING_TOOL = "running_tool"
WAITING_FOR_TOOLS = "waiting_for_tools"


@dataclass(slots=True, kw_only=True)
class Turn:
    """One turn of the model, and what came of its calls."""

    texts: dict[DeltaKind, str] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    calls: list[ToolCallDone] = field(default_factory=list)
    started: set[str] = field(default_factory=set)  # ids of calls whose tool was about to run
    results: dict[str, ToolResult] = field(default_factory=dict)

    @property
    def open_calls(self) -> list[ToolCallDone]:
        """Those without a result."""
        return [call for call in self.calls if call.id not in self.results]

    def events(self) -> list[Event]:
        """The turn and its results as they are logged again behind a `reset`."""
        events: list[Event] = [part for part in self.parts if part.type == "reasoning"]
        events += [Delta(text=text, kind=kind) for kind, text in self.texts.items()]
        events += [part for part in self.parts if part.type != "reasoning"]
        for call in self.calls:
            events.append(ToolCall(index=call.index, id=call.id, name=call.name, arguments=call.arguments))
            events.append(call)
        for call in self.calls:
            if call.id in self.started:
                events.append(running(call))
            if call.id in self.results:
                events.append(self.results[call.id])
        return events

    def messages(self) -> list[Json]:
        """The turn and its results as messages of the next one, in the shape of chat completions."""
        content: str | list[Json] | None = self.texts.get(DeltaKind.TEXT) or None
        reasoning = [part.data for part in self.parts if part.type == "reasoning"]
        if reasoning:
            content = [*reasoning, *([{"type": "text", "text": content}] if content else [])]
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in self.calls
        ]
        results: list[Json] = [
            {"role": "tool", "tool_call_id": result.id, "content": result.content}
            | ({"is_error": True} if result.is_error else {})
            for result in (self.results[call.id] for call in self.calls if call.id in self.results)
        ]
        return [{"role": "assistant", "content": content, "tool_calls": calls}, *results]


@dataclass(slots=True, kw_only=True)
class Progress:
    """What was shown since the last `reset`: whole turns, and what stands behind them."""

    turns: list[Turn] = field(default_factory=list)  # whole ones
    rest: Turn = field(default_factory=Turn)  # of a turn that was not whole, or not yet called whole
    rest_entries: list[Entry] = field(default_factory=list)  # the same, as entries
    usage: Usage | None = None  # so far
    usage_of_turns: Usage | None = None  # of the whole ones
    again: bool = False  # a `reset` took the whole ones away, and its worker was lost before it had logged them anew

    @property
    def calls(self) -> int:
        """How many calls the whole turns made; the next one's index."""
        return sum(len(turn.calls) for turn in self.turns)

    @property
    def begun_calls(self) -> dict[int, str]:
        """Index and id of the calls behind the whole turns, begun or done."""
        begun = (decode(entry) for entry in self.rest_entries if entry.field == b"tool_call")
        return {call.index: call.id for call in begun if isinstance(call, ToolCall) and call.id is not None}

    @property
    def shown(self) -> bool:
        """Whether anything was shown behind the whole turns."""
        return self.again or any(entry.is_shown for entry in self.rest_entries)

    def events(self) -> list[Event]:
        """The whole turns, as they are logged again behind a `reset`."""
        events = [event for turn in self.turns for event in turn.events()]
        return [UsageReport(usage=self.usage_of_turns), *events] if self.usage_of_turns else events

    def messages(self) -> list[Json]:
        """The whole turns, as messages of the next one."""
        return [message for turn in self.turns for message in turn.messages()]

    @property
    def text(self) -> str:
        """The plain text behind the whole turns."""
        return self.rest.texts.get(DeltaKind.TEXT, "")

    @property
    def characters(self) -> int:
        """Code points of plain text since the last `reset`, all turns."""
        turns = [self.rest] if self.again else [*self.turns, self.rest]
        return sum(len(turn.texts.get(DeltaKind.TEXT, "")) for turn in turns)


def progress(entries: Sequence[Entry]) -> Progress:
    """Read a log.

    What is logged anew behind a `reset` may be more than one append, and its worker be lost in between. Then the whole
    turns are those before the `reset`, and all that stands behind it is to be taken back.
    """
    reset = max((at for at, entry in enumerate(entries) if entry.field == b"reset"), default=None)
    if reset is None:
        return _read(entries)
    found = _read(entries[reset + 1 :])
    kept = progress(entries[:reset])
    anew = found.turns[: len(kept.turns)]
    # What is before a reset of this kind is somebody else's.
    rolled_back = orjson.loads(entries[reset].payload)["reason"] == ROLLED_BACK
    if rolled_back or (len(anew) == len(kept.turns) and not any(turn.open_calls for turn in anew)):
        return found
    found.rest_entries = [entry for entry in entries[reset + 1 :] if entry.is_shown]
    found.rest = _joined([*found.turns, found.rest])
    found.turns, found.usage_of_turns, found.again = kept.turns, kept.usage_of_turns, True
    return found


def _joined(turns: Sequence[Turn]) -> Turn:
    """Their texts as those of one."""
    texts: dict[DeltaKind, str] = {}
    for turn in turns:
        for kind, text in turn.texts.items():
            texts[kind] = texts.get(kind, "") + text
    return Turn(texts=texts)


def _read(entries: Sequence[Entry]) -> Progress:
    """Read a log that holds no `reset`."""
    found = Progress()
    pieces: dict[DeltaKind, list[str]] = {}
    for entry in entries:
        if (kind := DELTA_FIELDS.get(entry.field)) is not None:  # most of them
            pieces.setdefault(kind, []).append(entry.payload.decode())
            found.rest_entries.append(entry)
            continue
        event = decode(entry)
        match event:
            case ToolCallDone():
                found.rest.calls.append(event)
                found.rest_entries.append(entry)
            case Part():
                found.rest.parts.append(event)
                found.rest_entries.append(entry)
            case ToolResult() if turn := _whole(found, pieces, event.id):
                turn.results[event.id] = event
            case Status(phase="running_tool", detail={"id": str(call)}) if turn := _whole(found, pieces, call):
                turn.started.add(call)
            case Status(phase="waiting_for_tools") if found.rest.calls:
                _close(found, pieces)
            case UsageReport(usage=usage):
                found.usage = usage
            case _:
                found.rest_entries.append(entry)
    found.rest.texts = {kind: "".join(texts) for kind, texts in pieces.items()}
    return found


def running(call: ToolCallDone) -> Status:
    """What is logged, and stored, before a tool runs."""
    return Status(phase=RUNNING_TOOL, detail={"id": call.id, "name": call.name})


def waiting(calls: Sequence[ToolCallDone], *, seconds: float) -> Status:
    """What tells the client that its tools are wanted."""
    named = [{"id": call.id, "name": call.name} for call in calls]
    return Status(phase=WAITING_FOR_TOOLS, detail={"calls": named, "timeout_seconds": seconds})


def pending(calls: Sequence[ToolCallDone]) -> str:
    """The ids of calls, as the record notes them."""
    return orjson.dumps([call.id for call in calls]).decode()


def _whole(found: Progress, pieces: dict[DeltaKind, list[str]], call: str) -> Turn | None:
    """The whole turn that made this call: the last one, closed by this if it was open."""
    if any(done.id == call for done in found.rest.calls):
        _close(found, pieces)
    for turn in reversed(found.turns):
        if any(done.id == call for done in turn.calls):
            return turn
    return None


def _close(found: Progress, pieces: dict[DeltaKind, list[str]]) -> None:
    found.rest.texts = {kind: "".join(texts) for kind, texts in pieces.items()}
    found.turns.append(found.rest)
    found.usage_of_turns = found.usage
    found.rest, found.rest_entries = Turn(), []
    pieces.clear()

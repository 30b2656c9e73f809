"""Logs to encode: a handful with names, and a strategy that makes any that a worker could have written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
from hypothesis import strategies as st

from api.dialects.chat_chunks import Completion
from api.dialects.responses_object import Subject, subject_of
from broker import events
from broker.events import DeltaKind, Entry, Event, FinishReason, Json, encode
from broker.generation import Request

GENERATION: Final = "gen_0190a0000000700080000000000000aa"
CREATED_MS: Final = 1_795_000_000_123
USAGE: Final = events.Usage(input_tokens=7, output_tokens=5, cached_tokens=2, reasoning_tokens=1)


def request(**fields: Any) -> Request:
    """A request with little in it."""
    messages = [{"role": "user", "content": "Hello?"}]
    return Request(**{"provider": "sim", "model": "sim-1", "messages": messages, **fields})


def subject(*, background: bool = True, **fields: Any) -> Subject:
    """The response of such a request."""
    dialect = {"name": "responses", "model": "sim-1", "background": background, "store": True}
    return subject_of(GENERATION, CREATED_MS, request(dialect=dialect, **fields))


def chat_subject() -> Completion:
    """The same as a chat completion."""
    return Completion(key=GENERATION.removeprefix("gen_"), created=CREATED_MS // 1000, model="sim-1")


def log(*attempts: Iterable[Event] | tuple[int, Iterable[Event]]) -> list[Entry]:
    """Entries of a log: the events of each claim, under epochs 1, 2, 3 … or those that are given."""
    entries: list[Entry] = []
    epoch = 0
    for attempt in attempts:
        match attempt:
            case (int(given), written):
                epoch = given
            case written:
                epoch += 1
        for event in written:  # type: ignore[union-attr]  # a match on a union of tuples is beyond the checker
            field, payload = encode(event)
            entries.append(Entry(f"{len(entries) + 1}-{epoch}", field, payload))
    return entries


STARTED: Final = events.Started(attempt=1, provider="sim", model="sim-1")


def texts(*pieces: str, kind: DeltaKind = DeltaKind.TEXT) -> list[Event]:
    """Deltas of one kind."""
    return [events.Delta(text=piece, kind=kind) for piece in pieces]


def call(index: int, name: str, *fragments: str) -> list[Event]:
    """A whole call, as providers' adapters write it."""
    first = events.ToolCall(index=index, arguments="", id=f"call_{index}", name=name)
    pieces = [events.ToolCall(index=index, arguments=fragment) for fragment in fragments]
    whole = "".join(fragments)
    return [first, *pieces, events.ToolCallDone(index=index, id=f"call_{index}", name=name, arguments=whole)]


def completed(reason: FinishReason = FinishReason.STOP, characters: int = 0) -> events.Completed:
    """The end of a whole answer."""
    return events.Completed(finish_reason=reason, usage=USAGE, characters=characters)


THOUGHT: Final = events.Part(
    type="reasoning", data={"type": "thinking", "thinking": "Rain, I guess.", "signature": "c2ln"}
)
CITED: Final = events.Part(
    type="citation",
    data={"type": "url_citation", "start_index": 0, "end_index": 5, "url": "https://example.org", "title": "Weather"},
)

#: Logs whose encodings are kept as files.
NAMED: Final[dict[str, list[Entry]]] = {
    "text": log([STARTED, *texts("Rai", "n."), events.UsageReport(usage=USAGE), completed()]),
    "reasoning": log(
        [STARTED, *texts("Rain, ", "I guess.", kind=DeltaKind.REASONING), THOUGHT, *texts("Rain."), CITED, completed()]
    ),
    "refusal": log(
        [STARTED, *texts("I ", kind=DeltaKind.TEXT), *texts("will not.", kind=DeltaKind.REFUSAL), completed()]
    ),
    "calls": log(
        [
            STARTED,
            *texts("Let me look."),
            *call(0, "weather", '{"city":', '"Bern"}'),
            *call(1, "time", "{}"),
            completed(FinishReason.TOOL_CALLS),
        ]
    ),
    "length": log([STARTED, *texts("Once upon"), completed(FinishReason.LENGTH)]),
    "failed": log(
        [
            STARTED,
            *texts("Half"),
            events.Failed(code=events.FailureCode.STALLED, message="silent", retryable=True, partial=True),
        ]
    ),
    "cancelled": log(
        [STARTED, *texts("Half"), events.ToolCall(index=0, arguments='{"a', id="call_0", name="f")],
        [events.Cancelled(reason=events.CancelReason.USER, usage=USAGE)],
    ),
    "cancelled_in_the_queue": log([events.Cancelled(reason=events.CancelReason.USER)]),
    "reset": log(
        [STARTED, *texts("Half of")],
        [events.Reset(attempt=2, reason="worker_lost"), STARTED, *texts("Whole."), completed()],
    ),
    "handed_over": log([STARTED, *texts("One, ")], [STARTED, *texts("two."), completed()]),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One event of a stream: its name, its `sequence_number` where it has one, its data, and its bytes."""

    kind: str
    number: int
    data: Json
    raw: bytes


def blocks(body: bytes) -> Iterator[Shown]:
    """The blocks of a body of SSE; fails for anything but whole blocks of the lines we send."""
    assert not body or body.endswith(b"\n\n")
    for block in body.split(b"\n\n")[:-1]:
        lines = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        assert set(lines) <= {b"event", b"id", b"data"}, block
        data = {} if lines[b"data"] == b"[DONE]" else orjson.loads(lines[b"data"])
        kind = lines.get(b"event", b"").decode()
        yield Shown(kind, data.get("sequence_number", -1), data, block + b"\n\n")


# --- any log ---

_words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
_kinds = st.sampled_from(DeltaKind)
_ends = st.one_of(
    st.builds(completed, st.sampled_from([FinishReason.STOP, FinishReason.LENGTH, FinishReason.CONTENT_FILTER])),
    st.builds(
        events.Failed,
        code=st.sampled_from(events.FailureCode),
        message=_words,
        retryable=st.booleans(),
        partial=st.just(True),
    ),
    st.just(events.Cancelled(reason=events.CancelReason.USER)),
)


@st.composite
def _claims(draw: st.DrawFn, first_call: int) -> tuple[list[Event], int]:
    """What one claim shows, and how many calls it began. Calls may be under way side by side, and break off."""
    written: list[Event] = []
    open_calls: dict[int, list[str]] = {}
    count = first_call
    for _ in range(draw(st.integers(0, 10))):
        match draw(st.sampled_from(["delta", "delta", "delta", "part", "call", "fragment", "done", "usage", "status"])):
            case "delta":
                written.append(events.Delta(text=draw(_words), kind=draw(_kinds)))
            case "part":
                written.append(draw(st.sampled_from([THOUGHT, CITED, events.Part(type="other", data={"a": 1})])))
            case "call":
                at_once = draw(st.booleans())
                name = "f" if at_once else None
                written.append(events.ToolCall(index=count, arguments="", id=f"call_{count}", name=name))
                open_calls[count] = []
                count += 1
            case "fragment" if open_calls:
                index = draw(st.sampled_from(sorted(open_calls)))
                piece = draw(_words)
                open_calls[index].append(piece)
                written.append(events.ToolCall(index=index, arguments=piece))
            case "done" if open_calls:
                index = draw(st.sampled_from(sorted(open_calls)))
                whole = "".join(open_calls.pop(index))
                written.append(events.ToolCallDone(index=index, id=f"call_{index}", name="f", arguments=whole))
            case "usage":
                written.append(events.UsageReport(usage=USAGE))
            case _:
                written.append(events.Status(phase="waiting", detail={"reason": "tokens"}))
    if draw(st.booleans()):
        for index, pieces in open_calls.items():
            whole = "".join(pieces)
            written.append(events.ToolCallDone(index=index, id=f"call_{index}", name="f", arguments=whole))
    return written, count


@st.composite
def logs(draw: st.DrawFn, *, jumps: bool = True) -> list[Entry]:
    """Any log that a worker could have written, ended or not: claims follow one another plainly, or behind a `reset`,
    and with `jumps` their epochs may tell that the store has lost some."""
    attempts: list[Any] = []
    epoch = calls = 0
    shown = False
    for number in range(1, draw(st.integers(1, 4)) + 1):
        epoch += 1 + (draw(st.sampled_from([0, 0, 1 << 20, (1 << 31) - 1])) if jumps else 0)
        written: list[Event] = []
        if shown and draw(st.booleans()):
            written.append(events.Reset(attempt=number, reason="worker_lost"))
            calls = 0
        written.append(events.Started(attempt=number, provider="sim", model="sim-1"))
        body, calls = draw(_claims(calls))
        shown = shown or bool(body)
        attempts.append((epoch, [*written, *body]))
    if draw(st.booleans()):
        attempts[-1][1].append(draw(_ends))
    return log(*attempts)

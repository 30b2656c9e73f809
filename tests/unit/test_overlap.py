"""What a provider says again of a cut answer is dropped, and nothing else, however it cuts it this time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from broker.events import Delta, DeltaKind, Entry, FinishReason, Part, ToolCall, ToolCallDone, encode
from worker.overlap import Overlap, UpstreamMark
from worker.providers.base import Finish, ProviderEvent

#: One indivisible piece of an answer: a character of a text or of a call's arguments, the end of a call, a part.
Atom = Delta | ToolCall | ToolCallDone | Part


def entries(events: Sequence[Atom], *, first_index: int = 0) -> list[Entry]:
    """A log of these, where the calls of earlier turns come first."""
    shifted = [
        replace(event, index=event.index + first_index) if isinstance(event, ToolCall | ToolCallDone) else event
        for event in events
    ]
    return [Entry(f"{number}-1", *encode(event)) for number, event in enumerate(shifted, 1)]


@st.composite
def answers(draw: st.DrawFn) -> list[Atom]:
    """An answer, in atoms."""
    atoms: list[Atom] = []
    calls = 0
    for what in draw(st.lists(st.sampled_from(["text", "reasoning", "part", "call"]), max_size=6)):
        match what:
            case "text" | "reasoning":
                kind = DeltaKind.TEXT if what == "text" else DeltaKind.REASONING
                atoms += [Delta(text=char, kind=kind) for char in draw(st.text("añ🚀", min_size=1, max_size=6))]
            case "part":
                atoms.append(Part(type="citation", data={"number": len(atoms)}))
            case "call":
                text = draw(st.text('{"}:é', max_size=6))
                names = {"id": f"c{calls}", "name": "f"}
                atoms.append(ToolCall(index=calls, arguments="", **names))
                atoms += [ToolCall(index=calls, arguments=char) for char in text]
                atoms.append(ToolCallDone(index=calls, arguments=text, **names))
                calls += 1
    return atoms


def cut(atoms: Sequence[Atom], joins: Callable[[], bool]) -> list[Atom]:
    """The same answer in other pieces: neighbours of one text, or of one call's arguments, are joined where told."""
    pieces: list[Atom] = []
    for atom in atoms:
        match pieces[-1:], atom:
            case [Delta(text=text, kind=kind)], Delta() if kind is atom.kind and joins():
                pieces[-1] = Delta(text=text + atom.text, kind=kind)
            case [ToolCall(index=index) as last], ToolCall() if index == atom.index and joins():
                pieces[-1] = ToolCall(
                    index=index, arguments=last.arguments + atom.arguments, id=last.id, name=last.name
                )
            case _:
                pieces.append(atom)
    return pieces


def content(events: Sequence[ProviderEvent | None]) -> tuple[object, ...]:
    """What events say, however they are cut: each text, the arguments of each call, who was named, ends and parts."""
    texts: dict[DeltaKind, str] = {}
    arguments: dict[int, str] = {}
    named, ends, parts = [], [], []
    for event in events:
        match event:
            case Delta(text=text, kind=kind):
                assert text
                texts[kind] = texts.get(kind, "") + text
            case ToolCall(index=index, arguments=fragment):
                arguments[index] = arguments.get(index, "") + fragment
                if event.id is not None:
                    named.append((index, event.id, event.name))
            case ToolCallDone():
                ends.append(event)
            case Part():
                parts.append(event)
    return texts, {index: text for index, text in arguments.items() if text}, named, ends, parts


@given(atoms=answers(), data=st.data(), first_index=st.integers(0, 3))
def test_what_was_logged_is_dropped_and_nothing_else(atoms: list[Atom], data: st.DataObject, first_index: int) -> None:
    joins = lambda: data.draw(st.booleans())  # noqa: E731
    seam = data.draw(st.integers(0, len(atoms)))
    logged = cut(atoms[:seam], joins)
    overlap = Overlap(entries(logged, first_index=first_index), first_index=first_index)
    rest = [overlap.rest_of(event) for event in cut(atoms, joins)]
    assert content(rest) == content(atoms[seam:])


@given(atoms=answers(), data=st.data())
def test_nothing_logged_drops_nothing(atoms: list[Atom], data: st.DataObject) -> None:
    said = cut(atoms, lambda: data.draw(st.booleans()))
    overlap = Overlap([])
    assert [overlap.rest_of(event) for event in said] == said


def test_the_rest_of_a_half_shown_piece_keeps_its_kind() -> None:
    overlap = Overlap(entries([Delta(text="Let me th", kind=DeltaKind.REASONING)]))
    assert overlap.rest_of(Delta(text="Let me think", kind=DeltaKind.REASONING)) == Delta(
        text="ink", kind=DeltaKind.REASONING
    )
    assert overlap.rest_of(Delta(text="Let")) == Delta(text="Let"), "the plain text is counted for itself"


def test_the_end_of_the_answer_is_never_dropped() -> None:
    overlap = Overlap(entries([Delta(text="all of it")]))
    finish = Finish(finish_reason=FinishReason.STOP, usage=None)
    assert overlap.rest_of(Delta(text="all of it")) is None
    assert overlap.rest_of(finish) is finish


def test_a_mark_is_read_back_as_it_was_written() -> None:
    mark = UpstreamMark(position="7-1048577", provider="p", model="m", token={"id": "resp_1", "at": 7})
    assert UpstreamMark.decode(mark.encode()) == mark

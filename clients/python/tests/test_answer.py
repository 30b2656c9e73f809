"""Events folded into an answer, and the tree of errors."""

from __future__ import annotations

import inspect
import re

import pytest
from legato_client import (
    Cancelled,
    Completed,
    Delta,
    Failed,
    Fold,
    GenerationCancelled,
    GenerationFailed,
    LegatoError,
    Part,
    Reset,
    Snapshot,
    Started,
    ToolCall,
    ToolCallDone,
    ToolResult,
    Usage,
    errors,
)
from legato_client.events import Event


def folded(*events: Event) -> Fold:
    fold = Fold()
    for event in events:
        fold.add(event)
    return fold


def test_every_kind_of_text_is_joined_apart() -> None:
    answer = folded(
        Started(position="1-1", attempt=1, provider="p", model="m"),
        Delta(position="2-1", text="think", kind="reasoning"),
        Delta(position="3-1", text="Hel"),
        Delta(position="4-1", text="lo"),
        Delta(position="5-1", text="no", kind="refusal"),
    ).answer()
    assert (answer.text, answer.reasoning, answer.refusal, answer.position) == ("Hello", "think", "no", "5-1")
    assert answer.end is None


def test_fragments_of_a_call_are_joined_and_the_whole_call_stands() -> None:
    fold = folded(
        ToolCall(position="1-1", index=0, id="a", name="f", arguments='{"x"'),
        ToolCall(position="2-1", index=0, arguments=":1}"),
    )
    assert fold.answer().tool_calls[0].arguments == '{"x":1}'
    done = ToolCallDone(position="3-1", index=0, id="a", name="f", arguments='{"x":1}')
    fold.add(done)
    assert fold.answer().tool_calls == (done,)


def test_a_reset_clears_everything() -> None:
    answer = folded(
        Delta(position="1-1", text="x"),
        ToolCallDone(position="2-1", index=0, id="a", name="f", arguments="{}"),
        ToolResult(position="3-1", id="a", name="f", content="y", is_error=False),
        Part(position="4-1", type="citation", data={}),
        Usage(position="5-1", input_tokens=1, output_tokens=1),
        Reset(position="6-2", attempt=2, reason="worker_lost"),
    ).answer()
    assert (answer.text, answer.tool_calls, answer.tool_results, answer.parts, answer.usage) == ("", (), (), (), None)
    assert answer.attempt == 2


def test_a_snapshot_replaces_everything() -> None:
    call = ToolCallDone(position=None, index=0, id="a", name="f", arguments="{}")
    answer = folded(
        Delta(position="9-1", text="old"),
        Delta(position="10-1", text="old", kind="reasoning"),
        Snapshot(position="5-1", text="new", tool_calls=(call,), attempt=3),
        Delta(position="6-1", text="er"),
    ).answer()
    assert (answer.text, answer.reasoning, answer.tool_calls, answer.attempt) == ("newer", "", (call,), 3)
    assert answer.position == "6-1"


def test_an_answer_that_did_not_complete_raises_and_holds_what_there_was() -> None:
    failed = Failed(position="2-1", code="stalled", message="silent", retryable=True, partial=True)
    with pytest.raises(GenerationFailed, match="stalled: silent") as caught:
        folded(Delta(position="1-1", text="half"), failed).answer().raise_for_end()
    assert (caught.value.code, caught.value.retryable, caught.value.answer.text) == ("stalled", True, "half")
    with pytest.raises(GenerationCancelled) as stopped:
        folded(Cancelled(position="1-1", reason="user")).answer().raise_for_end()
    assert stopped.value.reason == "user"
    answer = folded(Completed(position="1-1", finish_reason="length")).answer()
    answer.raise_for_end()
    assert answer.finish_reason == "length"


def test_the_tree_that_is_drawn_is_the_tree() -> None:
    """Of `errors`: every class, under its parent."""
    drawn: list[tuple[str, str | None]] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^    ([│ ├└─]*)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            drawn.append((found[2], path[-2] if depth else None))
    there = [
        (cls.__name__, None if cls is LegatoError else cls.__mro__[1].__name__)
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, LegatoError)
    ]
    assert sorted(drawn, key=str) == sorted(there, key=str)

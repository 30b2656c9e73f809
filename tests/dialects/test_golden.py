"""Golden files: what each named log is on the wire, to the byte."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from broker.events import Completed, Delta, Part, ToolCallDone, decode
from tests.dialects.golden import HERE, pages
from tests.dialects.logs import NAMED, blocks
from tests.dialects.test_chat_model import behind_the_reset
from worker.providers.base import Finish
from worker.providers.openai import ChunkMapper
from worker.providers.openai_responses import EventMapper

PAGES = [pytest.param(path, body, id=path.stem) for path, body in pages()]


@pytest.mark.parametrize(("path", "body"), PAGES)
def test_a_log_is_sent_as_its_file_says(path: Path, body: bytes) -> None:
    """`python -m tests.dialects.golden` writes it anew; look at the difference."""
    assert path.read_bytes() == body


#: What a wire of OpenAI's cannot say of each log: cut answers end otherwise there.
WHOLE = sorted(name for name in NAMED if NAMED[name][-1].field == b"completed")


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("wire", ["responses", "chat"])
def test_our_own_readers_of_the_wires_read_the_log_back(name: str, wire: str) -> None:
    """A Legato in front of another one tells what the other's log holds."""
    body = dict(pages())[HERE / f"{wire}_{name}.sse"]
    mapper = EventMapper("openai_responses") if wire == "responses" else ChunkMapper("openai")
    read = []
    for block in blocks(body):
        data = block.raw.split(b"data: ", 1)[1].strip()
        read += mapper.feed(block.kind.encode() or None, data)
    assert mapper.finished
    kept = [decode(entry) for entry in behind_the_reset(NAMED[name])]
    assert told(read) == told(kept)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_event_is_one_of_the_sdk_s_own(name: str) -> None:
    """Its types take each without a complaint, though it asks them for less itself."""
    responses: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for block in blocks(dict(pages())[HERE / f"responses_{name}.sse"]):
        assert responses.validate_python(block.data).type == block.kind == block.data["type"]
    for block in blocks(dict(pages())[HERE / f"chat_{name}.sse"]):
        if block.data and "error" not in block.data:
            ChatCompletionChunk.model_validate(block.data)


def told(said: Iterable[object]) -> dict[str, object]:
    """What events say, however it was cut."""
    whole: dict[str, object] = {"calls": [], "cited": []}
    for event in said:
        match event:
            case Delta(text=text, kind=kind):
                whole[kind.value] = str(whole.get(kind.value, "")) + text
            case ToolCallDone(id=call, name=name, arguments=arguments):
                whole["calls"] = [*whole["calls"], (call, name, arguments)]  # type: ignore[misc]
            case Part(type="citation", data=data):
                cited = {name: value for name, value in data.items() if name != "index"}  # which a chunk's has
                whole["cited"] = [*whole["cited"], cited]  # type: ignore[misc]
            case Completed(finish_reason=reason) | Finish(finish_reason=reason):
                whole["end"] = reason
    return whole


def test_no_file_belongs_to_no_log() -> None:
    """A log that is gone leaves nothing behind."""
    assert {path for path, _ in pages()} == set(HERE.glob("*.sse"))

"""The text that comes out is the text that was generated, code point by code point."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from broker.events import Delta, DeltaKind, ToolCall, ToolCallDone
from tests.providers.wires import ANTHROPIC, OPENAI, Wire, collect, request, text_of
from tests.support.wire_provider import (
    Reply,
    WireProvider,
    anthropic_block,
    anthropic_event,
    anthropic_stream,
    openai_chunk,
    openai_stream,
    sse,
)
from worker.providers.base import Call
from worker.providers.sim import SimProvider

#: What has broken stream code before: each is put into the document many times, at every alignment.
HARD = (
    "plain ASCII text. ",
    "\r\n\r\n",
    '\n\ndata: {"forged": true}\n\n',
    'event: message_stop\ndata: {"type": "message_stop"}\n\n',
    "data: [DONE]\n\n",
    "id: 7-1\nretry: 0\n: ping\n",
    "\x00",
    "\u2028\u2029\u0085\x0b\x0c\x1e",
    "\ufeff",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇩🇪",
    "e\u0301a\u0308\u20dd",
    "مرحبا بالعالم שלום עולם\u200f\u202e",
    "日本語と中文と한국어",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff\uffff\ufffe\ue000",
    '"\\"\\\\u0041\\n</script>',
    "ß€\t",
)


def document(size_bytes: int) -> str:
    """Deterministic, of all the hard pieces, at least `size_bytes` of UTF-8 long."""
    rng = random.Random(7)
    parts: list[str] = []
    length = 0
    while length < size_bytes:
        part = rng.choice(HARD) + rng.choice("abcdefgh ") * rng.randrange(4)
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def pieces(text: str) -> list[str]:
    """Cut between code points at random, so inside grapheme clusters and CRLFs too."""
    rng = random.Random(8)
    out: list[str] = []
    at = 0
    while at < len(text):
        size = rng.randrange(1, 200)
        out.append(text[at : at + size])
        at += size
    return out


DOCUMENT = document(200_000)


@pytest.mark.parametrize("piece_bytes", [1, 7, 0], ids=["single bytes", "seven bytes", "as it comes"])
async def test_a_document_comes_through_a_wire_identical(server: WireProvider, wire: Wire, piece_bytes: int) -> None:
    """200 KB of everything, in HTTP chunks as small as they get."""
    server.script(Reply.events(wire.whole(*pieces(DOCUMENT)), piece_bytes=piece_bytes))
    async with wire.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    assert text_of(events) == DOCUMENT
    assert [event.text for event in events if isinstance(event, Delta)] == pieces(DOCUMENT)


async def test_a_document_comes_through_escaped_identical(server: WireProvider, wire: Wire) -> None:
    """Servers that escape all that is not ASCII send characters beyond the BMP as two escapes."""
    frames = wire.whole(*pieces(DOCUMENT)).split(b"\n\n")
    escaped = []
    for frame in frames:
        head, mark, data = frame.partition(b"data: ")
        ascii_data = json.dumps(json.loads(data)).encode() if data.startswith(b"{") else data
        escaped.append(head + mark + ascii_data)
    server.script(Reply.events(b"\n\n".join(escaped)))
    async with wire.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    assert text_of(events) == DOCUMENT


@pytest.mark.parametrize("chunk_chars", [1, 4, 1000])
async def test_a_document_comes_through_sim_identical(chunk_chars: int) -> None:
    options = {"text": DOCUMENT, "chunk_chars": chunk_chars}
    events, error = await collect(SimProvider().stream(Call(request(provider_options=options))))
    assert error is None
    assert text_of(events) == DOCUMENT


def openai_raw(*escapes: str) -> bytes:
    """Text deltas given as JSON string bodies, so that halves of characters can be said."""
    frames = [openai_chunk({"content": "@"}).replace(b'"@"', f'"{escape}"'.encode()) for escape in escapes]
    return b"".join([*frames, openai_chunk(finish_reason="stop"), sse("[DONE]")])


def anthropic_raw(*escapes: str) -> bytes:
    frames = [
        anthropic_event("content_block_delta", index=0, delta={"type": "text_delta", "text": "@"}).replace(
            b'"@"', f'"{escape}"'.encode()
        )
        for escape in escapes
    ]
    start = anthropic_event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    stop = anthropic_event("content_block_stop", index=0)
    return b"".join([start, *frames, stop, anthropic_event("message_stop")])


@pytest.mark.parametrize(
    ("wire_of", "raw"), [(OPENAI, openai_raw), (ANTHROPIC, anthropic_raw)], ids=["openai", "anthropic"]
)
@pytest.mark.parametrize(
    ("escapes", "text"),
    [
        ([r"a\ud83d", r"\ude00b"], "a😀b"),
        ([r"\ud83d", r"\ude00\ud83d", r"\ude00"], "😀😀"),
        ([r"\ud83d", "b"], "\ufffdb"),
        ([r"\ude00", "b"], "\ufffdb"),
        ([r"a\ud83d"], "a\ufffd"),
        ([r"a\ud83d", "", r"\ude00"], "a😀"),
        ([r"\ud83d\ud83d", r"\ude00"], "\ufffd😀"),
        ([r"x\ud83dy", "z"], "x\ufffdyz"),
        ([r"a\u0000\r\n\u2028", "b"], "a\x00\r\n\u2028b"),
    ],
)
async def test_halves_of_a_character_find_one_another(
    server: WireProvider, wire_of: Wire, raw: Callable[..., bytes], escapes: list[str], text: str
) -> None:
    """A half that stays alone becomes U+FFFD; no delta is empty, and each can be encoded."""
    server.script(Reply.events(raw(*escapes)))
    async with wire_of.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    assert text_of(events) == text
    deltas = [event.text for event in events if isinstance(event, Delta)]
    assert all(deltas)
    assert "".join(deltas).encode().decode() == text


async def test_halves_in_tool_arguments_find_one_another(server: WireProvider) -> None:
    """Each call for itself, though their fragments alternate."""

    def fragment(index: int, escape: str, **first: str) -> bytes:
        function = {"arguments": "@"} | first
        frame = openai_chunk({"tool_calls": [{"index": index, "id": f"c{index}", "function": function}]})
        return frame.replace(b'"@"', f'"{escape}"'.encode())

    frames = [fragment(0, r"[\ud83d", name="f"), fragment(1, r"[\ud83d", name="g"), fragment(0, r"\ude00]")]
    frames += [fragment(1, r"\ude01]"), openai_chunk(finish_reason="tool_calls"), sse("[DONE]")]
    server.script(Reply.events(b"".join(frames)))
    async with OPENAI.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    assert [event.arguments for event in events if isinstance(event, ToolCallDone)] == ["[😀]", "[😁]"]
    for index, arguments in enumerate(["[😀]", "[😁]"]):
        fragments = [event.arguments for event in events if isinstance(event, ToolCall) and event.index == index]
        assert "".join(fragments) == arguments


async def test_bytes_that_are_not_utf8_become_replacement_characters(server: WireProvider, wire: Wire) -> None:
    server.script(Reply.events(wire.whole("a@b", "c").replace(b"@", b"\xff")))
    async with wire.connect(server) as provider:
        events, error = await collect(provider.stream(Call(request())))
    assert error is None
    assert text_of(events) == "a\ufffdbc"


@pytest.mark.parametrize(
    ("stream", "wire_of"),
    [
        (openai_stream("an", "swer", reasoning=["tho", "ught"]), OPENAI),
        (openai_stream("an", "swer", reasoning=["tho", "ught"]).replace(b"reasoning_content", b"reasoning"), OPENAI),
        (anthropic_stream("an", "swer", thinking=["tho", "ught"]), ANTHROPIC),
    ],
    ids=["openai reasoning_content", "openai reasoning", "anthropic thinking"],
)
async def test_reasoning_is_kept_apart_from_the_answer(server: WireProvider, stream: bytes, wire_of: Wire) -> None:
    server.script(Reply.events(stream))
    async with wire_of.connect(server) as provider:
        events, _ = await collect(provider.stream(Call(request())))
    deltas = [(event.kind, event.text) for event in events if isinstance(event, Delta)]
    reasoning, text = DeltaKind.REASONING, DeltaKind.TEXT
    assert deltas == [(reasoning, "tho"), (reasoning, "ught"), (text, "an"), (text, "swer")]


async def test_a_first_text_inside_its_block_start_is_not_lost(server: WireProvider) -> None:
    block = anthropic_block(0, {"type": "text", "text": "Hel"}, {"type": "text_delta", "text": "lo"})
    server.script(Reply.events(block + anthropic_event("message_stop")))
    async with ANTHROPIC.connect(server) as provider:
        events, _ = await collect(provider.stream(Call(request())))
    assert text_of(events) == "Hello"

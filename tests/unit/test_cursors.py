"""Cursors of connections with more than one generation, and the frames that carry them."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cursors import GONE, Composite, Qualified, tag_of
from api.frames import NDJSON, SSE, Framing
from api.qualified import MarkedFraming, QualifiedFraming, composed
from broker.errors import InvalidPosition
from broker.events import Delta, Entry, encode
from broker.generation import new_id
from tests.support.sse_client import NdjsonParser, SseParser

parts = st.integers(1, 10**16 - 1)
positions = st.builds("{}-{}".format, parts, parts)
tags = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(st.dictionaries(tags, positions | st.just(GONE), min_size=1, max_size=100))
def test_a_composite_cursor_reads_back_as_it_was(places: dict[str, str]) -> None:
    text = str(Composite(dict(places)))
    assert text.isascii()
    assert str(Composite.parse(text, most=100)) == text
    assert len(text) <= 100 * (8 + 1 + 33 + 1)
    for tag, place in places.items():
        assert Composite.parse(text, most=100).place("gen_" + "0" * 24 + tag) == place


@given(st.text(max_size=60))
def test_whatever_else_comes_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        found = Composite.parse(text, most=5)
    except InvalidPosition:
        return
    assert str(found) == text or "0-0" in text


@pytest.mark.parametrize(
    "text",
    [
        *["1-1", "abcdef01", "abcdef01/", "abcdef01/1", "abcdef01/01-1", "ABCDEF01/1-1", "abcdef01/1-1,", ","],
        *["abcdef01/y", "abcdef01/1-1,abcdef01/2-1", "abcdef01/1-1;abcdef02/1-1", "gen_abcdef01/1-1"],
        *["abcdef0１/1-1", "abcdef01/1-1\n"],
    ],
)
def test_what_is_no_composite_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidPosition):
        Composite.parse(text, most=5)


def test_more_places_than_asked_for_are_refused() -> None:
    text = ",".join(f"{number:08x}/1-1" for number in range(6))
    assert str(Composite.parse(text, most=6)) == text
    with pytest.raises(InvalidPosition):
        Composite.parse(text, most=5)


def test_a_qualified_cursor_reads_back_and_an_unqualified_one_is_refused() -> None:
    generation = new_id()
    assert str(Qualified.parse(f"{generation}/42-1")) == f"{generation}/42-1"
    for text in ("42-1", generation, f"{generation}/", f"{generation}/42", f"{generation}/42-1/1", f"/{generation}"):
        with pytest.raises(InvalidPosition):
            Qualified.parse(text)


@pytest.mark.parametrize("inner", [SSE, NDJSON])
def test_qualified_frames_are_the_same_frames_under_longer_ids(inner: Framing) -> None:
    generation = new_id()
    framing = QualifiedFraming(inner, generation)
    entry = Entry("7-1", *encode(Delta(text="hello")))
    parser: SseParser | NdjsonParser = SseParser() if inner is SSE else NdjsonParser()
    [frame] = parser.feed(framing.entry(entry))
    [plain] = parser.feed(inner.entry(entry))
    assert (frame.event, frame.data) == (plain.event, plain.data)
    assert frame.id == f"{generation}/7-1"
    assert framing.chunk(entry).partition(b"\r\n")[2] == framing.entry(entry) + b"\r\n"


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_that_stops_anywhere_knows_exactly_what_it_has_read(seed: int) -> None:
    """Frames of five generations, mixed at random: after each frame, the id says for every one the last that came."""
    rng = random.Random(seed)
    names = [new_id() for _ in range(5)]
    framings = {name: MarkedFraming(SSE, name) for name in names}
    sent = dict.fromkeys(names, 0)
    cursor, parser = Composite(), SseParser()
    for _ in range(100):
        chunk = b""
        burst = []
        for name in rng.choices(names, k=rng.randint(1, 6)):
            sent[name] += 1
            nasty = f'"x\0/{sent[name]}\0\n'
            chunk += framings[name].entry(Entry(f"{sent[name]}-1", *encode(Delta(text=nasty))))
            burst.append((name, dict(sent), nasty))
        frames = list(parser.feed(composed(chunk, cursor)))
        assert len(frames) == len(burst)
        for frame, (name, expected, text) in zip(frames, burst, strict=True):
            assert frame.data == {"generation": name, "text": text}
            assert frame.id is not None
            found = Composite.parse(frame.id, most=5)
            assert {other: found.place(other) for other in names} == {
                other: f"{seq}-1" if seq else None for other, seq in expected.items()
            }


def test_frames_without_a_position_move_nothing_and_say_whose_they_are() -> None:
    name = new_id()
    framing, cursor = MarkedFraming(SSE, name), Composite({tag_of(name): "3-1"})
    assert json.loads(composed(framing.frame(b"error", b"{}"), cursor).partition(b"data: ")[2]) == {"generation": name}
    opened = composed(framing.frame(b"open", b'{"generation":"x","verdict":null}', retry_ms=5), cursor)
    assert json.loads(opened.partition(b"data: ")[2]) == {"generation": "x", "verdict": None}
    assert str(cursor) == f"{tag_of(name)}/3-1"
    composed(framing.frame(b"gone", b'{"status":404}', GONE), cursor)
    assert cursor.place(name) == GONE

"""Bytes into frames, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from legato_client.errors import Garbled
from legato_client.frames import Frame, FrameParser

BODY = (
    "\ufeffevent: open\nretry: 1500\ndata: {}\n\n"
    ": ping\nevent: delta\nid: 2-1\ndata: Naïve 🚀\n\n"
    "id: 3-1\ndata:a\ndata: b\n\n"
)


def parse(body: bytes, *cuts: int) -> list[Frame]:
    parser = FrameParser()
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return [frame for start, end in pairwise(places) for frame in parser.feed(body[start:end])]


WHOLE = [
    Frame("open", None, b"{}", 1500),
    Frame("delta", "2-1", "Naïve 🚀".encode()),
    Frame("message", "3-1", b"a\nb"),
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@given(cuts=st.lists(st.integers(0, 200), max_size=30))
def test_the_frames_are_the_same_wherever_the_body_is_cut(end: str, cuts: list[int]) -> None:
    assert parse(BODY.replace("\n", end).encode(), *cuts) == WHOLE


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_frames_are_the_same_byte_by_byte(end: str) -> None:
    body = BODY.replace("\n", end).encode()
    assert parse(body, *range(len(body))) == WHOLE


@pytest.mark.parametrize("length", range(len(BODY.encode())))
def test_a_block_that_never_finished_is_dropped_with_its_id(length: int) -> None:
    """Of a body cut at any byte exactly the blocks before the cut come out, whole."""
    seen = parse(BODY.encode()[:length])
    assert seen == WHOLE[: len(seen)]
    ended = BODY.encode()[:length].count(b"\n\n")
    assert len(seen) == ended


def test_an_id_belongs_to_its_block_alone() -> None:
    assert [frame.id for frame in parse(b"id: 1-1\ndata: a\n\ndata: b\n\n")] == ["1-1", None]


def test_a_block_without_data_is_no_event_but_its_retry_counts() -> None:
    assert parse(b"id: 1-1\n\n: ping\n\nevent: x\n\nretry: 20\n\n") == [Frame("message", None, b"", 20)]


def test_fields_that_mean_nothing_are_ignored() -> None:
    body = b"nonsense\nfoo: bar\nretry: soon\nid: a\0b\ndata: x\n\n"
    assert parse(body) == [Frame("message", None, b"x")]


def test_one_space_after_the_colon_is_dropped_and_no_more() -> None:
    assert parse(b"data:  two\n\ndata:none\n\ndata\ndata\n\n")[:2] == [
        Frame("message", None, b" two"),
        Frame("message", None, b"none"),
    ]


def test_a_byte_order_mark_counts_only_at_the_beginning() -> None:
    mark = "\ufeff".encode()
    assert parse(b"data: a\n\n" + mark + b"data: b\n\n") == [Frame("message", None, b"a")]


def test_a_block_without_end_is_refused_and_not_kept_for_ever() -> None:
    parser = FrameParser(max_block_bytes=1000)
    for _ in range(37):
        parser.feed(b"data: " + b"x" * 20 + b"\n")
    with pytest.raises(Garbled, match="more than 1000 bytes"):
        parser.feed(b"data: " + b"x" * 1000 + b"\n")
    parser = FrameParser(max_block_bytes=1000)
    for _ in range(100):
        assert len(parser.feed(b"data: " + b"x" * 20 + b"\n\n")) == 1


def test_a_long_line_in_many_pieces_takes_no_quadratic_time() -> None:
    """20,000 pieces of one line: joined once, at its end."""
    parser = FrameParser()
    parser.feed(b"data: ")
    for _ in range(20_000):
        parser.feed(b"x" * 100)
    assert [len(frame.data) for frame in parser.feed(b"\n\n")] == [2_000_000]

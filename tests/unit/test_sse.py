"""The SSE reader: the same events for the same bytes, however they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProviderError
from broker.events import FailureCode
from worker.sse import MAX_BYTES, SseEvent, SseReader


def read(*chunks: bytes) -> list[SseEvent]:
    reader = SseReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def single_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(None, b"a")]),
        (b"data:a\n\n", [(None, b"a")]),
        (b"data:  a \n\n", [(None, b" a ")]),
        (b"data\n\n", [(None, b"")]),
        (b"data:\n\n", [(None, b"")]),
        (b"data: a\ndata:b\ndata\n\n", [(None, b"a\nb\n")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [(b"x", b"a"), (None, b"b")]),
        (b"data: a\nevent:x\n\n", [(b"x", b"a")]),
        (b"event: x\nevent\ndata: a\n\n", [(None, b"a")]),
        (b"event:\ndata: a\n\n", [(None, b"a")]),
        (b"event: x\n\ndata: a\n\n", [(None, b"a")]),
        (b": ping\n\n:\n\nid: 7\nretry: 5\n\nunknown: a\n\ndata: a\nid: 8\n\n", [(None, b"a")]),
        (b": ping\ndata: a\n: ping\n\n", [(None, b"a")]),
        (b"datax: a\nxdata: a\n data: a\n\n", []),
        (b"data: a\r\r", [(None, b"a")]),
        (b"data: a\r\n\r\n", [(None, b"a")]),
        (b"data: a\rdata: b\r\ndata: c\n\r\n", [(None, b"a\nb\nc")]),
        (b"data: a\n\r\ndata: b\r\r\n", [(None, b"a"), (None, b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(None, b"a")]),
        (b"\xef\xbb\xbf\n\ndata: a\n\n", [(None, b"a")]),
        (b"\n\xef\xbb\xbfdata: a\n\n", []),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a\n\ndata: b\n", [(None, b"a")]),
        (b"data: a\n\ndata: b", [(None, b"a")]),
        ("data: né 🚀\u2028\u0085\x00\x0b\x0c|\n\n".encode(), [(None, "né 🚀\u2028\u0085\x00\x0b\x0c|".encode())]),
        (b"data: \xff\xfe\n\n", [(None, b"\xff\xfe")]),
        (b"", []),
    ],
)
def test_the_grammar_is_followed_whole_and_byte_by_byte(stream: bytes, events: list[SseEvent]) -> None:
    """Each line of the grammar, and each oddity servers are known for; an unfinished block is discarded."""
    assert read(stream) == events
    assert read(*single_bytes(stream)) == events


LINES = st.one_of(
    st.sampled_from([b"", b"data", b"data:", b"event: x", b"event", b": ping", b"id: 1", b"retry: 1", b"\xef\xbb\xbf"]),
    st.binary(max_size=12).map(lambda data: b"data: " + data.replace(b"\r", b"").replace(b"\n", b"")),
    st.text(max_size=4).map(lambda text: b"data:" + text.encode().replace(b"\r", b"").replace(b"\n", b"")),
    st.binary(max_size=8),
)
BLOCKS = st.sampled_from(
    [
        *(b"data: a\n\n", b"event: x\ndata: b\n\n", b"event:y\ndata:\n\n", b"event: x\ndata:  c \n\n"),  # plain ones
        *(
            b"event:\ndata: d\n\n",
            b"event: \ndata: d\n\n",
            b"event\ndata: d\n\n",
            b"data: e\nevent: x\n\n",
            b"data\n\n",
        ),
        *(b": data: f\n\n", b"xdata: g\n\n", b"event: x\n\n", b"event: xdata: h\n\n", b": ping\n", b"\n", b"id: 1\n"),
        *(b"data: i\ndata: j\n\n", b"data: k\r\n\r\n", b"event: x\r\ndata: l\r\n\r\n", b"\xef\xbb\xbfdata: m\n\n"),
    ]
)
STREAMS = st.lists(BLOCKS, max_size=12).map(b"".join) | st.lists(
    st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=20
).map(lambda lines: b"".join(line + end for line, end in lines))


def reference(stream: bytes) -> list[SseEvent]:
    """The grammar's algorithm, word by word, over a whole stream."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events: list[SseEvent] = []
    data, kind = b"", b""
    for line in stream.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append((kind or None, data.removesuffix(b"\n")))
            data, kind = b"", b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data += value + b"\n"
        elif field == b"event":
            kind = value
    return events


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200), max_size=12))
def test_any_stream_cut_into_any_chunks_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    """The model is the grammar's own algorithm; chunks may be empty."""
    edges = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert read(*chunks) == reference(stream)
    assert read(*single_bytes(stream)) == reference(stream)


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * MAX_BYTES + b"\n\n"],
        [b": " + b"x" * MAX_BYTES + b"\n"],
        [b"data: "] + [b"x" * 1024] * 1025,
        [b"data: " + b"x" * 1023 + b"\n"] * 1025,
        [b"\n", b"x" * (MAX_BYTES + 1)],
    ],
    ids=["one line", "one comment", "one line in pieces", "many lines of one block", "unfinished"],
)
def test_a_line_or_block_without_end_is_an_error(chunks: list[bytes]) -> None:
    """A broken peer does not fill our memory."""
    with pytest.raises(ProviderError) as caught:
        read(*chunks)
    assert caught.value.failure is FailureCode.UPSTREAM_ERROR
    assert caught.value.retryable
    assert str(MAX_BYTES) in caught.value.message


def test_the_limit_is_not_reached_by_what_is_no_longer_held() -> None:
    """Blocks, comments and lines of other blocks do not count."""
    big = b"data: " + b"x" * (MAX_BYTES - 6) + b"\n\n"
    comments = b": ping\n" * 200_000
    assert [len(data) for _, data in read(big + big, comments, big)] == [MAX_BYTES - 6] * 3

"""What Accept asks for, and that what a client makes up is not remembered."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from api import stream
from api.stream import accepted, asks_to_poll


def headers(*values: str) -> Headers:
    return Headers(raw=[(b"accept", value.encode()) for value in values])


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ((), {""}),
        (("text/event-stream",), {"text/event-stream"}),
        (("Text/Event-Stream; charset=utf-8, */*;q=0.1",), {"text/event-stream", "*/*"}),
        (("application/json;q=0, application/x-ndjson",), {"application/x-ndjson"}),
        (("application/json;q=0.000",), set()),
        (("application/json", "text/event-stream"), {"application/json", "text/event-stream"}),
    ],
)
def test_media_types_are_told_apart(values: tuple[str, ...], kinds: set[str]) -> None:
    for _ in range(2):
        assert accepted(headers(*values)) == kinds


def test_a_long_one_is_read_and_forgotten() -> None:
    known = stream._known_kinds.cache_info().currsize
    long = ", ".join(["application/json", *(f"x/{number}" for number in range(1000))])
    assert asks_to_poll(headers(long))
    assert len(accepted(headers(long))) == 1001
    assert stream._known_kinds.cache_info().currsize == known

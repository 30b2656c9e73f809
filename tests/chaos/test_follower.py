"""What watches the clients sees what it is there to see."""

from __future__ import annotations

import json

import pytest

from chaos.clients import Dechunk
from chaos.follower import Follower, NdjsonParser, Sightings, SseParser, Violation

GENERATION = "gen_0"


class Watched:
    """A follower, and what was found wrong with what it was shown."""

    def __init__(self, sightings: Sightings | None = None) -> None:
        self.violations: list[Violation] = []
        self.follower = Follower(GENERATION, sightings or Sightings(), self.violations)

    def take(self, event: str, position: str | None = None, **data: object) -> Watched:
        self.follower.take(event, json.dumps(data), position)
        return self

    @property
    def checks(self) -> list[str]:
        return [violation.check for violation in self.violations]


def test_a_correct_stream_is_followed_to_its_end() -> None:
    watched = Watched()
    watched.take("open", verdict="start").take("started", "1-1", attempt=1)
    watched.take("delta", "2-1", text="He").take("delta", "5-1", text="llo")
    watched.take("reset", "6-2", attempt=2).take("started", "7-2").take("delta", "8-2", text="Bye")
    watched.take("completed", "9-2", finish_reason="stop")
    assert watched.follower.text == "Bye"
    assert watched.follower.end == "completed"
    assert watched.checks == []


def test_a_snapshot_replaces_everything() -> None:
    watched = Watched().take("delta", "1-1", text="lost").take("open", verdict="rewound")
    watched.take("snapshot", "7-3", text="kept ").take("delta", "8-3", text="and more")
    assert watched.follower.text == "kept and more"
    assert watched.checks == []


@pytest.mark.parametrize(
    ("position", "check"),
    [("3-1", "repeated"), ("2-1", "repeated"), ("5-1", "skipped")],
)
def test_a_repeated_or_skipped_event_is_seen(position: str, check: str) -> None:
    watched = Watched().take("started", "1-1").take("delta", "3-1", text="x").take("status", position)
    assert watched.checks[0] == check


def test_text_of_an_older_epoch_behind_a_newer_one_is_seen() -> None:
    watched = Watched().take("started", "1-2").take("delta", "2-1", text="zombie")
    assert watched.checks == ["older_epoch"]


def test_two_texts_under_one_position_are_seen_whoever_saw_them() -> None:
    sightings = Sightings()
    Watched(sightings).take("delta", "1-1", text="one")
    assert Watched(sightings).take("delta", "1-1", text="two").checks == ["two_contents"]


def test_merging_is_no_difference() -> None:
    sightings = Sightings()
    Watched(sightings).take("delta", "1-1", text="a").take("delta", "2-1", text="b")
    assert Watched(sightings).take("delta", "2-1", text="ab").checks == []


def test_anything_after_the_end_is_seen() -> None:
    watched = Watched().take("completed", "1-1").take("delta", "2-1", text="x")
    assert watched.checks == ["after_the_end"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_survive_any_cut(size: int) -> None:
    raw = 'event: delta\nid: 1-1\ndata: {"text": "é"}\n\n: ping\nevent: open\nretry: 5\ndata: {}\n\n'.encode()
    parser, frames = SseParser(), []
    for at in range(0, len(raw), size):
        frames += parser.feed(raw[at : at + size])
    assert frames == [("delta", '{"text": "é"}', "1-1"), ("open", "{}", None)]
    assert parser.retry_ms == 5


def test_lines_of_json_are_frames() -> None:
    assert NdjsonParser().feed(b'{"id":"1-1","event":"delta","data":{"text":"x"}}\n{"event":"ping"}\n{"id') == [
        ("delta", '{"text": "x"}', "1-1"),
        ("ping", "", None),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_chunks_are_taken_apart_at_any_cut(size: int) -> None:
    raw = b"5\r\nhello\r\n1\r\n \r\nB\r\nsome\r\nworld\r\n0\r\n\r\n"
    chunks, body = Dechunk(), b""
    for at in range(0, len(raw), size):
        body += chunks.feed(raw[at : at + size])
    assert body == b"hello some\r\nworld"
    assert chunks.done

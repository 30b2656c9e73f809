"""Joined entries: told apart again they are what was joined, whatever was in the log, and from every place on."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.frames import MERGED_BYTES, merged
from broker.events import DELTA_FIELDS, Entry
from broker.joined import JOINED_BYTES, Row, behind, events_of, join, rows_of, split, up_to
from broker.position import Position

#: Fields in a row, and how long each payload is: of deltas mostly, some too long to be joined.
lengths = st.one_of(st.integers(1, 12), st.integers(250, 260), st.integers(1, 2000))
runs = st.lists(
    st.tuples(st.sampled_from([b"d", b"d", b"d", b"r", b"f", b"usage", b"reset"]), st.lists(lengths, max_size=60)),
    max_size=8,
)


def log_of(drawn: list[tuple[bytes, list[int]]], *, seed: int = 0) -> list[Entry]:
    """A log with these entries: epochs rise where a reset says so."""
    dice, entries, epoch = random.Random(seed), list[Entry](), 1
    for field, sizes in drawn:
        for size in sizes:
            epoch += field == b"reset"
            payload = "".join(dice.choices("aeüé東🚀", k=size)).encode()[:size].decode(errors="replace").encode()
            entries.append(Entry(f"{len(entries) + 1}-{epoch}", field, payload))
    return entries


@given(runs)
@example([(b"d", [5] * 20_000), (b"usage", [40])])
@example([(b"d", [255] * 1000 + [256] * 10 + [255])])
def test_what_is_joined_can_be_told_apart_again(drawn: list[tuple[bytes, list[int]]]) -> None:
    entries = log_of(drawn)
    rows = join(entries)
    assert split(rows) == entries
    assert sum(map(events_of, rows)) == len(entries)
    for _, stored in rows:
        assert len(stored) == 2 or (stored[0] in DELTA_FIELDS and len(stored[1]) <= JOINED_BYTES)


@given(runs)
def test_every_part_is_text_by_itself(drawn: list[tuple[bytes, list[int]]]) -> None:
    for entry in split(join(log_of(drawn))):
        entry.payload.decode()


@given(runs, st.data())
def test_from_every_place_on_there_is_exactly_the_rest(
    drawn: list[tuple[bytes, list[int]]], data: st.DataObject
) -> None:
    entries = log_of(drawn)
    seq = data.draw(st.integers(0, len(entries)))
    rows = stored_from(join(entries), seq)
    assert split(behind(rows, seq)) == entries[seq:]
    most = data.draw(st.integers(1, 50))
    assert split(up_to(behind(rows, seq), most)) == entries[seq : seq + most]


def stored_from(rows: list[Row], seq: int) -> list[Row]:
    """What `XRANGE` from that position on answers."""
    return [row for row in rows if Position.of_entry_id(row[0]).seq >= seq]


@given(runs)
def test_a_sealed_log_merges_to_the_same_frames(drawn: list[tuple[bytes, list[int]]]) -> None:
    """As long as a frame holds it: frames end where rows do."""
    entries = log_of(drawn)
    of_sealed, of_written = merged(join(entries)), merged(rows_of(entries))
    if sum(len(entry.payload) for entry in entries) <= MERGED_BYTES:
        assert of_sealed == of_written
    assert of_sealed[-1:] == of_written[-1:] or not entries or entries[-1].field in DELTA_FIELDS
    assert {place for place, _, _ in of_sealed} <= {entry.position for entry in entries}


def test_positions_of_another_epoch_are_not_joined() -> None:
    """No log has deltas of two epochs beside one another; if one had, a position must keep its epoch."""
    entries = [Entry(f"{seq}-{1 + (seq > 5)}", b"d", b"x") for seq in range(1, 11)]
    assert split(join(entries)) == entries


@pytest.mark.parametrize("size", [1, 5, 255])
def test_a_long_text_becomes_rows_of_about_a_frame_each(size: int) -> None:
    count = 200_000 // size
    entries = [Entry(f"{seq}-7", b"d", b"x" * size) for seq in range(1, count + 1)]
    rows = join(entries)
    assert len(rows) <= 200_000 // JOINED_BYTES + 2
    ends = list(accumulate(map(events_of, rows)))
    assert [row[0] for row in rows] == [b"%d-7" % end for end in ends]

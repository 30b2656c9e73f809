"""Joined entries: many deltas in one entry of the log, and how they are told apart again. Pure.

A delta has a few bytes, an entry of a stream some twenty more. So a log that has ended is *sealed*: deltas of one epoch
and one kind that follow one another are stored as one entry, at the position of the last, with a second field that
holds how long each is, a byte a delta. Such an entry still holds every position of its deltas: a reader that has some
of them gets the rest.

A row is an entry as it is stored. Who only wants the text takes rows as they come, however many events each stands for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Final

from broker.events import DELTA_FIELDS, Entry

#: Its id, and field and payload; of a joined one also `LENGTHS` and the lengths.
Row = tuple[bytes, Sequence[bytes]]

#: Name of the field with the lengths: bytes of each delta's payload, in order.
LENGTHS: Final = b"c"

#: Text of one joined entry at most, in bytes: as much as a frame carries.
JOINED_BYTES: Final = 32 * 1024

#: A delta that is longer is stored alone: its length would not fit into a byte.
_LONGEST: Final = 255

#: So much of a log's end is joined apart. Redis sets 4 KiB aside for the entries at a stream's end: the end and what is
#: before it fill them, where the end alone would waste them.
_TAIL_BYTES: Final = 3 * 1024


def join(entries: Sequence[Entry]) -> list[Row]:
    """The entries of a whole log, in few rows."""
    sizes = list(accumulate([len(payload) for _, _, payload in entries], initial=0))
    tail = bisect_left(sizes, sizes[-1] - _TAIL_BYTES)
    rows: list[Row] = []
    for part in (entries[:tail], entries[tail:]):
        for field, same in groupby(part, itemgetter(1)):
            run = list(same)
            one_epoch = _epoch(run[0]) == _epoch(run[-1])
            rows += _joined(field, run) if field in DELTA_FIELDS and one_epoch else rows_of(run)
    return rows


def _joined(field: bytes, run: list[Entry]) -> list[Row]:
    """Deltas that follow one another."""
    rows: list[Row] = []
    at = 0
    for is_short, same in groupby([len(payload) <= _LONGEST for _, _, payload in run]):
        few = run[at : at + len(list(same))]
        at += len(few)
        if not is_short:
            rows += rows_of(few)
            continue
        payloads = [payload for _, _, payload in few]
        ends = list(accumulate(map(len, payloads), initial=0))
        first = 0
        while first < len(few):
            stop = bisect_right(ends, ends[first] + JOINED_BYTES) - 1
            stored = [field, b"".join(payloads[first:stop])]
            if stop - first > 1:
                stored += [LENGTHS, bytes(map(len, payloads[first:stop]))]
            rows.append((few[stop - 1].position.encode(), stored))
            first = stop
    return rows


def _epoch(entry: Entry) -> str:
    return entry.position.partition("-")[2]


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """A row each."""
    return [(entry[0].encode(), entry[1:]) for entry in entries]


def split(rows: Iterable[Row]) -> list[Entry]:
    """The inverse of `join`: every event as an entry."""
    make = tuple.__new__  # in half the time of a call of the class
    entries: list[Entry] = []
    for place, stored in rows:
        if len(stored) == 2:
            entries.append(make(Entry, (place.decode(), stored[0], stored[1])))
            continue
        field, payload, _, lengths = stored
        seq, _, epoch = place.decode().partition("-")
        number, start = int(seq) - len(lengths), 0
        for length in lengths:
            number += 1
            entries.append(make(Entry, (f"{number}-{epoch}", field, payload[start : start + length])))
            start += length
    return entries


def events_of(row: Row) -> int:
    """How many events a row stands for."""
    stored = row[1]
    return len(stored[3]) if len(stored) > 2 else 1


def behind(rows: list[Row], seq: int) -> list[Row]:
    """`rows` without the events up to `seq`, of which only the first row holds any."""
    if not rows:
        return rows
    first = rows[0]
    count = events_of(first)
    seen = seq - int(first[0].partition(b"-")[0]) + count
    if seen <= 0:
        return rows
    return rows[1:] if seen >= count else [_part(first, seen, count), *rows[1:]]


def up_to(rows: list[Row], most: int) -> list[Row]:
    """The first `most` events of `rows`."""
    kept: list[Row] = []
    for row in rows:
        count = events_of(row)
        if count >= most:
            return [*kept, row if count == most else _part(row, 0, most)]
        most -= count
        kept.append(row)
    return kept


def _part(row: Row, begin: int, end: int) -> Row:
    """Events `begin` (from 0) to before `end` of a joined row. It is cut between deltas, so between characters."""
    place, (field, payload, _, lengths) = row
    seq, _, epoch = place.partition(b"-")
    start = sum(lengths[:begin])
    text = payload[start : start + sum(lengths[begin:end])]
    return b"%d-%b" % (int(seq) - len(lengths) + end, epoch), [field, text, LENGTHS, lengths[begin:end]]

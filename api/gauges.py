"""The gauges of all processes behind one port, added up: whichever of them is asked for `/metrics` answers for all.

They are in a file that the processes map, a row each; only its own process writes a row. One alone has a row in memory.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final, NamedTuple

_ROW: Final = struct.Struct("=4d")


class Row(NamedTuple):
    """What one process counts."""

    viewers: float
    topics: float
    subscriptions: float
    draining: float


class Gauges:
    """Rows of `places` processes, of which this is the one at `place`."""

    def __init__(self, path: Path | None = None, *, place: int = 0, places: int = 1) -> None:
        self._place = place
        self.places = places
        if path is None:
            self._rows = mmap.mmap(-1, _ROW.size * places)
        else:
            with path.open("r+b") as file:
                self._rows = mmap.mmap(file.fileno(), _ROW.size * places)

    @staticmethod
    def create(path: Path, places: int) -> None:
        """Make the file."""
        path.write_bytes(bytes(_ROW.size * places))

    def put(self, row: Row) -> None:
        """What this process counts now."""
        _ROW.pack_into(self._rows, self._place * _ROW.size, *row)

    def clear(self, place: int) -> None:
        """There is no process at this place any more."""
        _ROW.pack_into(self._rows, place * _ROW.size, *Row(0, 0, 0, 0))

    def total(self) -> Row:
        """All rows added up."""
        rows = [_ROW.unpack_from(self._rows, place * _ROW.size) for place in range(self.places)]
        return Row(*(sum(column) for column in zip(*rows, strict=True)))

"""A piece of a large file in its place, with the numbers that its rows have in the whole file.

::

    text      ▆▁▁▁▁▁▆▆▆▆▁▁▁▁    the file's beginning, which tells how it is written, then the piece
    Parquet   ▁▁▁▁▁▁▆▆▆▆▁▁▁▁    some of its row groups
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from memworker.ingestion.readers.objects import ObjectRows

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FilePiece:
    """The rows of a text file that begin in the bytes from `start` to `end`.

    `lines` are before `start`. The first `head` bytes, of so many lines, are read again before
    it: a header, and what tells a dialect; their rows are another piece's.
    """

    start: int
    end: int
    lines: int = 0
    head: int = 0
    head_lines: int = 0

    def blocks(self, file: IO[bytes], count: Callable[[int], None]) -> Iterator[bytes]:
        """Yield the bytes to be read, and count those of the piece itself."""
        yield from _range(file, 0, self.head)
        for block in _range(file, self.start, self.end):
            count(len(block))
            yield block

    def numbered(self, rows: ObjectRows) -> ObjectRows | None:
        """Give the rows that are the piece's own, by their lines in the file; None for none."""
        own = np.flatnonzero(rows.lines > self.head_lines)
        if not len(own):
            return None
        first = int(own[0])
        lines = rows.lines[first:] + (self.lines - self.head_lines)
        raw = rows.raw
        return replace(
            rows,
            lines=lines,
            objects=rows.objects[first:],
            raw=lambda i: raw(i + first),
            faults={i - first: why for i, why in rows.faults.items() if i >= first},
        )


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Some row groups of a Parquet file, with so many rows before them."""

    first: int
    end: int
    rows: int


def _range(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    at = start
    while at < end:
        block = os.pread(file.fileno(), min(_BLOCK, end - at), at)
        if not block:
            return
        yield block
        at += len(block)

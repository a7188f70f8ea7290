"""A part of a file in place of all of it: pieces from several places, or its beginning.

::

    plain text      ▆▁▁▁▁▆▁▁▁▁▆▁▁▁▁▆    each piece from a line's begin to a line's end
    packed text     ▆▆▆▆▁▁▁▁▁▁▁▁▁▁▁▁    for nothing behind it can be read by itself
    Parquet, Arrow  rows of some row groups, or batches; how many rows there are, is written there
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memworker.ingestion.readers.dialects import Cells

# Little, for what is left of the last block when the sample ends is not known.
SAMPLED_AT_ONCE = 1 << 10
# A piece should hold so many lines, or the long ones would be missed at its ends.
_LINES = 16
_PIECE_AT_MOST = 8 << 20
_GROUPS = 8


@dataclass(slots=True)
class FileSample:
    """How much of a source is read, and what came of it; may be read once.

    `budget` is in bytes, of text unpacked, and `places` is 1 for its beginning alone. `newline`
    ends a line in the text's encoding. What came of it: `whole`, or so many bytes that were
    `read` of `size` (as they lie on the disk), and the `rows` of a file that tells them itself.
    """

    budget: int
    places: int = 64
    newline: bytes = b"\n"
    whole: bool = False
    read: int = 0
    size: int = 0
    rows: int | None = None
    cells: Cells | None = None

    @property
    def is_head(self) -> bool:
        """Whether the beginning alone was read, so that its last row may be cut off."""
        return self.places == 1 and not self.whole

    # ── text ──

    def counted(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Count what is taken of packed blocks."""
        for block in blocks:
            self.read += len(block)
            yield block

    def head(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Give unpacked blocks up to the budget, and the line's end before it."""
        self.places, given = 1, 0
        for block in blocks:
            given += len(block)
            if given > self.budget:
                self.read -= min(self.read, SAMPLED_AT_ONCE) // 2
                yield block[: _behind_last(block, self.newline)]
                return
            yield block
        self.whole = True

    def pieces(self, file: IO[bytes]) -> Iterator[bytes]:
        """Give pieces of a plain file."""
        self.size = os.fstat(file.fileno()).st_size
        if self.size <= self.budget:
            self.whole, self.read = True, self.size
            file.seek(0)
            while block := file.read(1 << 20):
                yield block
            return
        each = max(1, self.budget // self.places)
        apart = (self.size - each) // max(1, self.places - 1)
        behind = 0
        for number in range(self.places):
            # Four bytes are the widest letter there is: none is torn.
            start = number * apart // 4 * 4
            if start < behind:
                continue
            piece, behind = self._piece(file, start, each)
            self.read += len(piece)
            yield piece

    def _piece(self, file: IO[bytes], start: int, size: int) -> tuple[bytes, int]:
        """Read whole lines from a place on, and say where the place ends."""
        while True:
            file.seek(start)
            data = _read(file, size)
            short = data.count(self.newline) < _LINES and len(data) == size
            if not short or size >= _PIECE_AT_MOST:
                break
            size *= 8
        begin = 0 if start == 0 else _behind_first(data, self.newline)
        end = _behind_last(data, self.newline)
        if start == 0 and end <= 0:
            end = len(data)  # no line ends: it is one value, or text of another kind
        return data[begin:end], start + len(data)

    # ── columns ──

    def of_groups(
        self, parquet: Any, columns: list[str] | None, bytes_a_row: float, most: int
    ) -> Iterator[Any]:
        """Give rows of some row groups of a Parquet file."""
        self.rows = parquet.metadata.num_rows
        count = parquet.metadata.num_row_groups
        wanted = int(self.budget / max(1.0, bytes_a_row)) + 1
        self.whole = self.rows <= wanted
        chosen = range(count) if self.whole else spread(count, _GROUPS)
        share = self.rows if self.whole else max(1, wanted // max(1, len(chosen)))
        for group in chosen:
            left = share
            for batch in parquet.iter_batches(max(1, min(most, share)), [group], columns=columns):
                yield batch.slice(0, left)
                left -= batch.num_rows
                if left <= 0:
                    break

    def of_batches(self, reader: Any, size: int) -> Iterator[Any]:
        """Give some record batches of an Arrow file, or parts of them."""
        self.size, count = size, reader.num_record_batches
        self.whole = size <= self.budget
        chosen = range(count) if self.whole else spread(count, _GROUPS)
        met = 0
        for number in chosen:
            batch = reader.get_batch(number)
            met += batch.num_rows
            # What the reader itself makes of too few is an estimate.
            self.rows = met * count // len(chosen)
            part = self.budget / len(chosen) / max(1, batch.nbytes)
            yield batch if part >= 1 else batch.slice(0, int(part * batch.num_rows) + 1)

    def first_batches(self, batches: Iterator[Any], file: Any) -> Iterator[Any]:
        """Give the first record batches of an Arrow stream."""
        self.size, met = file.size(), 0
        for batch in batches:
            self.read, met = file.tell(), met + batch.num_rows
            self.rows = met * self.size // max(1, self.read)
            yield batch
            if self.read >= self.budget:
                return
        self.whole, self.rows = True, met


def spread(count: int, most: int) -> list[int]:
    """Choose up to `most` of the numbers below `count`, evenly, the first among them."""
    if count <= most:
        return list(range(count))
    return [number * count // most for number in range(most)]


def _read(file: IO[bytes], size: int) -> bytes:
    """Read as many bytes as there are: a raw file may give fewer at a time."""
    pieces = []
    while size and (block := file.read(size)):
        pieces.append(block)
        size -= len(block)
    return b"".join(pieces)


def _behind_first(data: bytes, newline: bytes) -> int:
    at = data.find(newline)
    while at > 0 and at % len(newline):
        at = data.find(newline, at + 1)
    return len(data) if at < 0 else at + len(newline)


def _behind_last(data: bytes, newline: bytes) -> int:
    at = data.rfind(newline)
    while at > 0 and at % len(newline):
        at = data.rfind(newline, 0, at + len(newline) - 1)
    return 0 if at < 0 else at + len(newline)

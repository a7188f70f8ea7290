"""Blocks of text as lines that never outgrow a cap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from memworker.ingestion.readers.encodings import BOM, TornStream
from memworker.ingestion.readers.paths import Source
from memworker.ingestion.readers.streams import text_blocks

_LINES_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines without their newline; `first` is the 1-based number of the first.

    Of the lines at the indices `too_long` only the beginning is there. Where
    `torn` is not empty, the last line is what was left when the stream broke.
    The lines at `with_nuls` hold NUL bytes.
    """

    first: int
    lines: list[bytes]
    too_long: frozenset[int] = frozenset()
    torn: str = ""
    with_nuls: tuple[int, ...] = ()


def line_blocks(source: Source, max_rows: int, max_line_bytes: int) -> Iterator[LineBlock]:
    """Yield blocks of at most `max_rows` lines and about 8 MiB, without byte-order marks.

    Raises InputError where the source is no text that can be read.
    """
    return lines_of(_with_newlines(text_blocks(source)), max_rows, max_line_bytes)


def _with_newlines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Give the lines of a text that knows carriage returns alone the ends that others have."""
    old_mac = None
    for block in blocks:
        if old_mac is None and block:
            old_mac = b"\n" not in block and block.count(b"\r") > 1
        yield block.replace(b"\r", b"\n") if old_mac else block


def lines_of(blocks: Iterator[bytes], max_rows: int, max_line_bytes: int) -> Iterator[LineBlock]:
    """Cut blocks of text as `line_blocks` does."""
    batcher = _Batcher(max_rows)
    cutter = _LineCutter(max_line_bytes)
    try:
        for block in blocks:
            if not block:
                yield from batcher.flush()
            batcher.nuls = batcher.nuls or b"\0" in block
            # A piece no longer than the cap cannot hold an inner line over it.
            for at in range(0, len(block), max_line_bytes):
                yield from batcher.add(*cutter.cut(block[at : at + max_line_bytes]))
        yield from batcher.add(*cutter.rest())
        yield from batcher.flush()
    except TornStream as error:
        lines, too_long = cutter.rest()
        yield from batcher.add(lines or [b""], too_long)
        yield batcher.last(str(error))


class _LineCutter:
    """Cuts blocks into lines; of a line over the cap it keeps the beginning alone."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._pieces: list[bytes] = []
        self._size = 0
        self._over = False

    def cut(self, block: bytes) -> tuple[list[bytes], bool]:
        """Return the whole lines that end in this block, and whether the first is too long."""
        head, newline, tail = block.partition(b"\n")
        self._append(head)
        if not newline:
            return [], False
        first, over = self._take()
        lines = tail.split(b"\n")
        if BOM in tail:
            # Files with marks, one behind the other: each mark begins a line.
            lines = [line.removeprefix(BOM) for line in lines]
        self._append(lines.pop())
        return [first.removeprefix(BOM), *lines], over

    def rest(self) -> tuple[list[bytes], bool]:
        """Return what stands after the last newline: one line or none."""
        if not self._size:
            return [], False
        line, over = self._take()
        return [line.removeprefix(BOM)], over

    def _append(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._over:
            return
        self._pieces.append(piece)
        if self._size > self._cap:
            self._over = True
            self._pieces = [b"".join(self._pieces)[:1024]]

    def _take(self) -> tuple[bytes, bool]:
        line, over = b"".join(self._pieces), self._over
        self._pieces, self._size, self._over = [], 0, False
        return line, over


class _Batcher:
    """Gathers lines into blocks of a bounded number of rows and bytes."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._lines: list[bytes] = []
        self._too_long: list[int] = []
        self._bytes = 0
        self._first = 1
        # Whether any block so far held a NUL: then each line is looked at.
        self.nuls = False

    def add(self, lines: list[bytes], first_too_long: bool) -> Iterator[LineBlock]:
        if first_too_long:
            self._too_long.append(len(self._lines))
        # In steps: slicing a long list once for every block cut from it would be quadratic.
        for at in range(0, len(lines), self._max_rows):
            part = lines[at : at + self._max_rows]
            self._lines += part
            self._bytes += sum(map(len, part))
            while len(self._lines) > self._max_rows:
                yield self._take(self._max_rows)
        if self._bytes >= _LINES_BYTES:
            yield from self.flush()

    def flush(self) -> Iterator[LineBlock]:
        if self._lines:
            yield self._take(len(self._lines))

    def last(self, torn: str) -> LineBlock:
        block = self._take(len(self._lines))
        return replace(block, torn=torn)

    def _take(self, rows: int) -> LineBlock:
        too_long = frozenset(i for i in self._too_long if i < rows)
        lines = self._lines[:rows]
        nuls = tuple(i for i, line in enumerate(lines) if b"\0" in line) if self.nuls else ()
        block = LineBlock(self._first, lines, too_long, with_nuls=nuls)
        self._first += rows
        self._lines = self._lines[rows:]
        self._too_long = [i - rows for i in self._too_long if i >= rows]
        self._bytes = sum(map(len, self._lines))
        return block

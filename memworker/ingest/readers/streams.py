"""Files and stdin as blocks of decompressed bytes, and as lines that never outgrow a cap."""

from __future__ import annotations

import io
import select
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import IO, cast

import zstandard

from memworker.diagnosis import told
from memworker.errors import InputError
from memworker.ingest.readers.paths import STDIN, Source

READ_BYTES = 1 << 20
_LINES_BYTES = 8 << 20
_IDLE_S = 1.0
# One block of 2 KiB can at worst unpack to 64 MiB of zstd run-length blocks.
_ZSTD_PIECE = 2 << 10
_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}


class TornStream(Exception):
    """A compressed stream is damaged or ends too early; all before it was delivered."""


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines without their newline; `first` is the 1-based number of the first.

    Of the lines at the indices `too_long` only the beginning is there. Where
    `torn` is not empty, the last line is what was left when the stream broke.
    """

    first: int
    lines: list[bytes]
    too_long: frozenset[int] = frozenset()
    torn: str = ""


def line_blocks(source: Source, max_rows: int, max_line_bytes: int) -> Iterator[LineBlock]:
    """Yield blocks of at most `max_rows` lines and about 8 MiB; a byte-order mark is dropped."""
    batcher = _Batcher(max_rows)
    cutter = _Cutter(max_line_bytes)
    # A block no longer than the cap cannot hold an inner line over it.
    blocks = _without_bom(byte_blocks(source, min(READ_BYTES, max_line_bytes)))
    try:
        for block in blocks:
            yield from batcher.add(*cutter.cut(block)) if block else batcher.flush()
        yield from batcher.add(*cutter.rest())
        yield from batcher.flush()
    except TornStream as error:
        lines, too_long = cutter.rest()
        yield from batcher.add(lines or [b""], too_long)
        yield batcher.last(str(error))


def byte_blocks(source: Source, size: int = READ_BYTES) -> Iterator[bytes]:
    """Yield decompressed blocks of about `size` bytes; an empty one when stdin has been idle.

    Raises TornStream after the last good block of a damaged compressed stream.
    """
    with _opened(source) as file:
        blocks = _raw_blocks(source, file, size)
        compression = source.compression
        if source.path == STDIN and not compression:
            compression, blocks = _sniffed(blocks)
        if compression == "gz":
            blocks = _gunzip(blocks, size)
        elif compression == "zst":
            blocks = _unzstd(blocks)
        yield from blocks


@contextmanager
def spooled(source: Source) -> Iterator[IO[bytes]]:
    """Give the decompressed source as a seekable, unlinked temporary file."""
    try:
        file = tempfile.TemporaryFile(prefix="memworker-")
    except OSError as error:
        raise InputError(_unspooled(source, error)) from error
    with file:
        for block in byte_blocks(source):
            try:
                file.write(block)
            except OSError as error:
                raise InputError(_unspooled(source, error)) from error
        file.seek(0)
        yield file


def _unspooled(source: Source, error: OSError) -> str:
    return (
        f"{source.path} has to be read from a temporary file, which could not be written:"
        f" {told(error)}; TMPDIR can name a folder for it"
    )


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    if source.path == STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file, or pipe something in")
        yield sys.stdin.buffer
        return
    try:
        file = open(source.path, "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{source.path} cannot be opened: {error.strerror}") from error
    with file:
        yield cast(IO[bytes], file)


def _raw_blocks(source: Source, file: IO[bytes], size: int) -> Iterator[bytes]:
    # read1 on stdin: what a slow producer has written goes on at once.
    read = getattr(file, "read1", file.read)
    try:
        while True:
            while source.path == STDIN and not _has_data(file):
                yield b""
            block = read(size)
            if not block:
                return
            source.count(len(block))
            yield block
    except OSError as error:
        raise InputError(f"{source.path} cannot be read: {error.strerror}") from error


def _has_data(file: IO[bytes]) -> bool:
    """Wait a moment for data, or for the end; true also for what is no real stream."""
    try:
        ready, _, _ = select.select([file], [], [], _IDLE_S)
    except (ValueError, io.UnsupportedOperation):
        return True
    return bool(ready)


def _sniffed(blocks: Iterator[bytes]) -> tuple[str, Iterator[bytes]]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 4:
            break
    compression = next((c for magic, c in _MAGIC.items() if head.startswith(magic)), "")
    return compression, chain([head] if head else [], blocks)


def _gunzip(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    member = None
    for data in blocks:
        while data:
            if member is None or member.eof:
                # Between members there may be zeros, padding that tape drives leave.
                data = data.lstrip(b"\0") if member else data
                if not data:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                out = member.decompress(data, size)
            except zlib.error as error:
                raise TornStream(f"damaged gzip data: {error}") from error
            data = member.unused_data if member.eof else member.unconsumed_tail
            if out:
                yield out
    if member is not None and not member.eof:
        if out := member.flush():
            yield out
        if not member.eof:
            raise TornStream("the gzip data ends too early; the file is cut off")


def _unzstd(blocks: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    for block in blocks:
        for at in range(0, len(block), _ZSTD_PIECE):
            data = block[at : at + _ZSTD_PIECE]
            while data:
                if frame is None or frame.eof:
                    frame = decompressor.decompressobj()
                try:
                    out = frame.decompress(data)
                except zstandard.ZstdError as error:
                    raise TornStream(f"damaged zstd data: {error}") from error
                data = frame.unused_data if frame.eof else b""
                if out:
                    yield out
    if frame is not None and not frame.eof:
        raise TornStream("the zstd data ends too early; the file is cut off")


def _without_bom(blocks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= len(_BOM):
            break
    if head.startswith(_BOM):
        head = head[len(_BOM) :]
    if head:
        yield head
    yield from blocks


class _Cutter:
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
        self._append(lines.pop())
        return [first, *lines], over

    def rest(self) -> tuple[list[bytes], bool]:
        """Return what stands after the last newline: one line or none."""
        if not self._size:
            return [], False
        line, over = self._take()
        return [line], over

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
        return LineBlock(block.first, block.lines, block.too_long, torn)

    def _take(self, rows: int) -> LineBlock:
        too_long = frozenset(i for i in self._too_long if i < rows)
        block = LineBlock(self._first, self._lines[:rows], too_long)
        self._first += rows
        self._lines = self._lines[rows:]
        self._too_long = [i - rows for i in self._too_long if i >= rows]
        self._bytes = sum(map(len, self._lines))
        return block

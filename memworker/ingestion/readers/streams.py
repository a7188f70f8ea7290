"""Files, pipes and standard input as blocks of decompressed bytes; each is opened once.

Nothing is looked at and then opened again: a pipe would have lost what was looked at.
"""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, cast

import zstandard

from memworker.diagnosis import told
from memworker.errors import InputError
from memworker.ingestion.readers.encodings import TornStream, begun, utf8_blocks
from memworker.ingestion.readers.ours import Ours, begins_reject_list
from memworker.ingestion.readers.paths import STDIN, Source
from memworker.ingestion.readers.pieces import FilePiece
from memworker.ingestion.readers.sampling import SAMPLED_AT_ONCE

READ_BYTES = 1 << 20
_IDLE_S = 1.0
# A pipe without a writer is waited for, and that is said.
_SILENT_S = 5.0
# One block of 2 KiB can at worst unpack to 64 MiB of zstd run-length blocks.
_ZSTD_PIECE = 2 << 10
_HEAD_BYTES = 16
PACKED = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst"}
# What people give by mistake: how it begins, what it is, what to do with it.
_STRANGERS = (
    (b"\x1f\x8b", "compressed twice", "unpack it once: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed twice", "unpack it once: unzstd"),
    (b"BZh", "bzip2 data", "unpack it: bunzip2"),
    (b"\xfd7zXZ\0", "xz data", "unpack it: unxz"),
    (b"\x04\x22\x4d\x18", "lz4 data", "unpack it: unlz4"),
    (b"\x1f\x9d", "data of compress", "unpack it: uncompress"),
    (b"\xff\x06\0\0sNaPpY", "snappy data", "unpack it"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet or document)", "unpack or export it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it: 7z x"),
    (b"%PDF-", "a PDF document", "extract its text: pdftotext"),
    (b"SQLite format 3", "an SQLite database", "ask it: --sql 'SELECT …' --from sqlite:///FILE"),
    (b"Obj\x01", "an Avro file", "convert it to Parquet or JSON lines"),
    (b"\x89HDF\r\n", "an HDF5 file", "convert it to Parquet or JSON lines"),
    (b"\x93NUMPY", "a numpy array", "it holds no texts"),
    (b"\x89PNG", "an image", "it holds no texts"),
    (b"\xff\xd8\xff", "an image", "it holds no texts"),
)
# What parallel compressors write before the frames of data.
_SKIPPABLE = b"\x2a\x4d\x18"
_TAR, _TAR_AT = b"ustar", 257
_COLUMNAR = (
    (b"PAR1", "Parquet", "parquet"),
    (b"ARROW1", "an Arrow file", "arrow"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "arrow"),
)

_log = logging.getLogger(__name__)


def text_blocks(source: Source, size: int = READ_BYTES) -> Iterator[bytes]:
    """Yield blocks of UTF-8 of about `size` bytes, without a mark; empty ones as `byte_blocks`.

    Raises InputError where the source is no text, and says what it is instead; Ours where
    it was found in a folder, and is a list of rejected rows.
    """
    head, blocks = begun(byte_blocks(source, size), _HEAD_BYTES)
    if source.left_out is not None and begins_reject_list(head):
        raise Ours
    for magic, name, format in _COLUMNAR:
        if head.startswith(magic):
            raise InputError(
                f"{source.told} is {name}, and is read as {source.format}; say --format {format}"
            )
    for magic, name, advice in _STRANGERS:
        if head.startswith(magic):
            raise InputError(f"{source.told} is {name}, which is not read; {advice}")
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        raise InputError(f"{source.told} is a tar archive, which is not read; unpack it: tar xf")
    given = source.dialect.encoding or ""
    yield from utf8_blocks(source.told, chain([head] if head else [], blocks), given)


def byte_blocks(source: Source, size: int = READ_BYTES) -> Iterator[bytes]:
    """Yield decompressed blocks of about `size` bytes; an empty one when a pipe has been idle.

    How it is packed is told by its first bytes, whatever its suffix says. Raises
    TornStream after the last good block of a damaged compressed stream.
    """
    sample = source.sample
    with _opened(source) as file:
        if isinstance(source.piece, FilePiece):
            yield from source.piece.blocks(file, source.count)
            return
        if sample is not None:
            size = min(size, SAMPLED_AT_ONCE)
        head, blocks = begun(_raw_blocks(source, file, size), 4)
        packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), "")
        if head[1:4] == _SKIPPABLE:
            packed = "zst"
        blocks = chain([head] if head else [], blocks)
        if sample is not None and packed:
            blocks = sample.counted(blocks)
        if packed == "gz":
            blocks = _gunzip(blocks, size)
        elif packed == "zst":
            blocks = _unzstd(blocks)
        elif source.compression and head and not _is_text(head):
            name = "gzip" if source.compression == "gz" else "zstd"
            raise TornStream(f"damaged {name} data: it does not begin as such")
        if sample is not None:
            blocks = sample.head(blocks) if packed else sample.pieces(file)
        yield from blocks


def is_packed(source: Source) -> bool:
    """Tell whether a regular file is compressed, by how it begins."""
    try:
        with open(source.path, "rb", buffering=0) as file:
            head = file.read(4)
    except OSError:
        return False
    return head.startswith(tuple(PACKED))


def _is_text(head: bytes) -> bool:
    try:
        head[:512].decode()
    except UnicodeDecodeError as error:
        return error.start > 500
    return b"\0" not in head


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
        f"{source.told} has to be read from a temporary file, which could not be written:"
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
        # A named pipe then opens at once, even without a writer.
        fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK * source.stream)
    except OSError as error:
        raise InputError(f"{source.path} cannot be opened: {error.strerror}") from error
    with open(fd, "rb", buffering=0) as file:
        if not source.stream and not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError(f"{source.path} is no longer a file; run the command again")
        yield cast(IO[bytes], file)


def _raw_blocks(source: Source, file: IO[bytes], size: int) -> Iterator[bytes]:
    # read1 on stdin: what a slow producer has written goes on at once.
    read = getattr(file, "read1", file.read)
    waiting = _Waiting(source, file) if source.stream else None
    try:
        while True:
            while waiting is not None and not waiting.is_ready():
                yield b""
            block = read(size)
            if block is None:
                continue  # another reader of the same pipe was quicker
            if not block:
                return
            source.count(len(block))
            yield block
    except OSError as error:
        raise InputError(f"{source.told} cannot be read: {error.strerror}") from error


class _Waiting:
    """Waits for data in a pipe, and says once that nothing has come."""

    def __init__(self, source: Source, file: IO[bytes]) -> None:
        self._name = source.told if source.path == STDIN else f"the pipe {source.told}"
        self._waited_s = 0.0
        self._poll: select.poll | None = select.poll()
        try:
            self._poll.register(file, select.POLLIN)
        except (ValueError, TypeError, io.UnsupportedOperation):
            self._poll = None  # a stand-in for a stream, without a descriptor

    def is_ready(self) -> bool:
        """Wait a moment for data, or for the end; true also for what is no real stream."""
        if self._poll is None:
            return True
        ready = self._poll.poll(1000 * _IDLE_S)
        before, self._waited_s = self._waited_s, self._waited_s + _IDLE_S
        if ready:
            self._waited_s = float("-inf")
        elif before < _SILENT_S <= self._waited_s:
            _log.warning("memworker: waiting for %s: nothing has come yet", self._name)
        return bool(ready)


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

"""Vectors that wait beside a table until all of its texts have one of the new space.

::

    DB/.memworker/TABLE/reembed/
        space.json    the space they are of, and which indices the table had
        vectors.f32   float32[n, dim], appended to, forced to the disk first …
        texts.xxh3    … and then 16 bytes a vector: xxh3-128 of the text it belongs to

A vector is found by its text, never by its row, so a row whose text has changed
cannot get the vector of the former one. What a killed run had not appended
whole is cut off when the folder is opened again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from xxhash import xxh3_128_digest

from memworker.errors import TableMismatch
from memworker.store.disk import disk_errors
from memworker.store.durable import sync_path
from memworker.store.keys import string_array
from memworker.store.schema import Vectors
from memworker.store.sortedruns import SortedRuns
from memworker.store.space import VectorSpace

FOLDER = "reembed"

Digests = npt.NDArray[np.bytes_]

_SPACE, _VECTORS, _TEXTS = "space.json", "vectors.f32", "texts.xxh3"
_DIGEST = np.dtype("S16")
_READ_ROWS = 1 << 16
_AS_IT_WAS = "The table is as it was. Make room, and run the same command again to go on"


class Staged:
    """The vectors of one space that are there already; its one user holds the job lock."""

    def __init__(self, folder: Path, space: VectorSpace, indices: Sequence[str]) -> None:
        self.space, self.indices = space, tuple(indices)
        self.folder = folder
        self._row_bytes = 4 * space.dim
        self._places = SortedRuns(np.int64, folder)
        self._files: list[int] = []
        with disk_errors(folder, _AS_IT_WAS):
            self._rows = _whole_rows(folder, space.dim)
            try:
                self._files += (_opened(folder / name) for name in (_VECTORS, _TEXTS))
                self._cut_off()
                for first in range(0, self._rows, _READ_ROWS):
                    there = np.fromfile(
                        folder / _TEXTS, _DIGEST, _READ_ROWS, offset=first * _DIGEST.itemsize
                    )
                    self._note(there, first)
            except BaseException:
                self.close()
                raise

    @classmethod
    def open(cls, folder: Path, table: str, space: VectorSpace) -> Staged:
        """Go on with what an earlier run has filled, or begin.

        Raises TableMismatch when that run was for another space (see `discard`), StoreUnwritable.
        """
        path = folder / FOLDER
        there = _read(path)
        if there is None:
            discard(folder)
            with disk_errors(path, _AS_IT_WAS):
                path.mkdir(mode=0o700)
            _write_space(path, space, ())
            return cls(path, space, ())
        if there[0] != space:
            raise TableMismatch(other_is_unfinished(folder, table, there[0]))
        return cls(path, *there)

    def __len__(self) -> int:
        return self._rows

    def has(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Tell for each text whether its vector is there."""
        return self._places.find(digests)[0]

    def add(self, digests: Digests, vectors: Vectors) -> None:
        """Keep vectors (float32[n, dim]) for good. Raises StoreUnwritable when the disk is full."""
        with disk_errors(self.folder, _AS_IT_WAS):
            try:
                # The digests last: they say that the vectors before them are whole.
                for fd, data in zip(self._files, (vectors, digests), strict=True):
                    _write(fd, np.ascontiguousarray(data).data.cast("B"))
            except OSError:
                # If that fails too, the next run does it: what is there in part counts as nothing.
                with suppress(OSError):
                    self._cut_off()
                raise
        self._note(digests, self._rows)
        self._rows += len(digests)

    def take(self, digests: Digests) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Return float32[n, dim] and which rows have a vector; the others are undefined."""
        there, places = self._places.find(digests)
        if not self._rows:
            return np.zeros((len(places), self.space.dim), np.float32), there
        shape = (self._rows, self.space.dim)
        with disk_errors(self.folder / _VECTORS, _AS_IT_WAS, doing="read"):
            file = np.memmap(self.folder / _VECTORS, np.float32, "r", shape=shape)
        return np.asarray(file[places]), there

    def note_indices(self, indices: Sequence[str]) -> None:
        """Note which indices the table has, to be built again after the switch."""
        self.indices = tuple(indices)
        _write_space(self.folder, self.space, self.indices)

    def close(self) -> None:
        """Close the files; all they hold was forced to the disk when it was added."""
        for fd in self._files:
            with suppress(OSError):
                os.close(fd)
        self._files = []

    def _cut_off(self) -> None:
        for fd, width in zip(self._files, (self._row_bytes, _DIGEST.itemsize), strict=True):
            os.ftruncate(fd, self._rows * width)

    def _note(self, digests: Digests, first: int) -> None:
        self._places.add(digests, np.arange(first, first + len(digests)))


def text_digests(texts: pa.Array | pa.ChunkedArray) -> Digests:
    """Return 16 bytes a text, by which its vector is found."""
    rows = string_array(texts).cast(pa.binary()).to_pylist()
    return np.frombuffer(b"".join(map(xxh3_128_digest, rows)), _DIGEST)


def unfinished(folder: Path) -> VectorSpace | None:
    """Return the space that a re-embedding, begun and not ended, goes to."""
    there = _read(folder / FOLDER)
    return there[0] if there is not None else None


def other_is_unfinished(folder: Path, table: str, space: VectorSpace) -> str:
    """Say that vectors of another space wait beside the table, and what to do about them."""
    filled = _whole_rows(folder / FOLDER, space.dim)
    return (
        f"table {table!r} is half way to {space.model!r} ({space.precision}, at most"
        f" {space.max_tokens} tokens, {space.dim} dimensions): {filled:,} texts are embedded. Run"
        " that command again to finish, or give --discard to drop them"
    )


def discard(folder: Path) -> None:
    """Drop what a re-embedding has filled; the table is as it is. Raises StoreUnwritable."""
    path = folder / FOLDER
    with disk_errors(path, "Remove that folder, which nobody needs any more", doing="removed"):
        # Without this file the rest counts as nothing.
        (path / _SPACE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _read(path: Path) -> tuple[VectorSpace, list[str]] | None:
    """Return the space and the indices noted; None where there is nothing to go on with.

    Raises StoreUnwritable: what cannot be read now may hold hours of work.
    """
    with disk_errors(path, "The table is as it was. Run the same command again", doing="read"):
        try:
            told = json.loads((path / _SPACE).read_text())
            return VectorSpace(**told["space"]), told["indices"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def _write_space(path: Path, space: VectorSpace, indices: Sequence[str]) -> None:
    temporary = path / f"{_SPACE}.tmp"
    with disk_errors(path / _SPACE, _AS_IT_WAS):
        try:
            told = {"space": asdict(space), "indices": list(indices)}
            temporary.write_text(json.dumps(told))
            sync_path(temporary)
            os.replace(temporary, path / _SPACE)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def _whole_rows(path: Path, dim: int) -> int:
    widths = {_VECTORS: 4 * dim, _TEXTS: _DIGEST.itemsize}
    files = [(path / name, width) for name, width in widths.items()]
    return min(file.stat().st_size // width if file.exists() else 0 for file, width in files)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)

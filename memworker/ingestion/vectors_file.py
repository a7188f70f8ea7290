"""Vectors to a .npy or .parquet file: row i of the file is row i of the input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from memworker.errors import StoreUnwritable, UsageError
from memworker.locks import draft_of

Floats = npt.NDArray[np.float32]
# numpy itself writes a header of 128 bytes for such an array: by its length ours is known.
_NPY_HEADER_BYTES = 192
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\0\xb6\0\{'descr': '<f4', 'fortran_order': False,"
    rb" 'shape': \(\d+, \d+\), \} +\n"
)
MARK = b"memworker.rows"


class VectorsFile(Protocol):
    """Takes blocks of rows in order; a row of NaN is one that was rejected."""

    def write(self, vectors: Floats, texts: pa.Array, ids: pa.Array) -> None: ...
    def close(self) -> None: ...


def check_suffix(path: Path) -> None:
    """Raise UsageError unless the suffix names a format that can be written."""
    if path.suffix not in (".npy", ".parquet"):
        raise UsageError(f"--out must end in .npy or .parquet, not {path.name!r}")


def is_vectors_file(path: Path) -> bool:
    """Tell whether a file was made by `vectors_file`, and not by another tool."""
    try:
        with path.open("rb") as file:
            head = file.read(_NPY_HEADER_BYTES)
        if head[:4] != b"PAR1":
            return bool(_NPY_HEADER.fullmatch(head))
        facts = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    # Other tools keep marks when they copy a table, but not the number of its rows.
    return (facts.metadata or {}).get(MARK) == str(facts.num_rows).encode()


@contextmanager
def vectors_file(path: Path, dim: int) -> Iterator[VectorsFile]:
    """Write to a temporary name; the file takes its own name when all is written.

    What a killed run left under such a name is removed.
    """
    kind = _NpyFile if path.suffix == ".npy" else _ParquetFile
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(draft_of(path, mode=0o666))
            file: VectorsFile = kind(temporary, dim)
        except OSError as error:
            raise StoreUnwritable(
                f"cannot write {path}: {error.strerror or error}; name a file in a directory that"
                " is there and that you may write to"
            ) from error
        try:
            yield file
        finally:
            file.close()


class _NpyFile:
    """Appends float32 rows behind a header whose shape is filled in at the end."""

    def __init__(self, path: Path, dim: int) -> None:
        self._dim, self._rows = dim, 0
        self._file: IO[bytes] = path.open("wb")
        self._file.write(bytes(_NPY_HEADER_BYTES))

    def write(self, vectors: Floats, texts: pa.Array, ids: pa.Array) -> None:
        self._file.write(np.ascontiguousarray(vectors).data)
        self._rows += len(vectors)

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.seek(0)
        self._file.write(_npy_header(self._rows, self._dim))
        self._file.close()


def _npy_header(rows: int, dim: int) -> bytes:
    """Give version 1.0's header, padded to `_NPY_HEADER_BYTES` (numpy.lib.format)."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    room = _NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"


class _ParquetFile:
    """Columns id, text and vector; the vector of a rejected row is null."""

    def __init__(self, path: Path, dim: int) -> None:
        self._dim = dim
        self._schema = pa.schema(
            [
                pa.field("id", pa.string()),
                pa.field("text", pa.string()),
                # Not of fixed size: pyarrow before 26 cannot write such lists with nulls.
                pa.field("vector", pa.list_(pa.float32())),
            ]
        )
        self._writer: Any = pq.ParquetWriter(path, self._schema)
        self._rows = 0

    def write(self, vectors: Floats, texts: pa.Array, ids: pa.Array) -> None:
        missing = np.isnan(vectors[:, 0])
        ends = np.cumsum(np.where(missing, 0, self._dim))
        offsets = pa.array(np.concatenate(([0], ends)).astype(np.int32))
        flat = pa.array(vectors[~missing].reshape(-1))
        column = pa.ListArray.from_arrays(offsets, flat, mask=pa.array(missing))
        self._writer.write_table(pa.table([ids, texts, column], schema=self._schema))
        self._rows += len(vectors)

    def close(self) -> None:
        if self._writer.is_open:
            self._writer.add_key_value_metadata({MARK: str(self._rows)})
        self._writer.close()

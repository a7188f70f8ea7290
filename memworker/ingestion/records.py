"""The records that readers deliver: batches of rows, and the rows they refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.ingestion.fields import SCOPE_COLUMNS

EXCERPT_CHARS = 200


@dataclass(slots=True)
class ReadProgress:
    """How far reading has come, in bytes as they lie on the disk; `total` is None if unknown."""

    total: int | None = None
    read: int = 0

    @property
    def share(self) -> float | None:
        """Share of the input that has been read, 0 to 1; None if the total is unknown."""
        return min(1.0, self.read / self.total) if self.total else None


def row_batch(
    lines: npt.NDArray[np.int64],
    texts: pa.Array,
    ids: pa.Array | None = None,
    scopes: Mapping[str, pa.Array] | None = None,
    metadata: pa.Array | None = None,
) -> pa.RecordBatch:
    """Join the columns of n rows: line int64, then id, text, scopes and metadata as strings.

    `lines` are 1-based line (or row) numbers. An id is null where a row has none; of the
    scopes there are those that were mapped, "" where a row has none; the metadata are JSON
    objects, null where a row has no other fields.
    """
    none = pa.nulls(len(texts), pa.string())
    columns = {
        "line": pa.array(lines),
        "id": none if ids is None else ids,
        "text": texts,
        **(scopes or {}),
        "metadata": none if metadata is None else metadata,
    }
    return pa.RecordBatch.from_pydict(columns)


def scopes_of(rows: pa.RecordBatch) -> dict[str, pa.Array]:
    """Give the scope columns that a batch has."""
    return {name: rows[name] for name in SCOPE_COLUMNS if name in rows.schema.names}


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was refused: where it stands, why, and how it begins."""

    path: str
    line: int
    ordinal: int
    reason: str
    id: str | None = None
    excerpt: str = ""


def path_of(rows: pa.RecordBatch, row: int, path: str) -> str:
    """Name the input of a row: that of its batch, where the batch is not of several."""
    return rows["path"][row].as_py() if "path" in rows.schema.names else path


def rejected(path: str, rows: pa.RecordBatch, row: int, reason: str) -> Reject:
    """Describe one row of a batch as refused."""
    line, ordinal, row_id = (rows[name][row].as_py() for name in ("line", "ordinal", "id"))
    path = path_of(rows, row, path)
    return Reject(path, line, ordinal, reason, row_id, rows["text"][row].as_py()[:EXCERPT_CHARS])


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A run of rows of one input: those accepted, in input order, and those refused.

    `rows` has the columns of `row_batch`, none of its texts null, and `ordinal` int64,
    which counts all rows of all inputs from 0, refused ones included. Small inputs share
    a batch: it has a column `path` then, and `path` names the first of them.
    """

    path: str
    rows: pa.RecordBatch
    rejects: tuple[Reject, ...] = ()

    @property
    def read(self) -> int:
        """Rows seen: accepted and refused."""
        return self.rows.num_rows + len(self.rejects)  # type: ignore[no-any-return]

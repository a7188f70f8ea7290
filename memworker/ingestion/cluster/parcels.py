"""What travels between the nodes of a cluster and the driver.

One parcel is one row of a Ray block, so that it does not matter how Ray joins or parts blocks:
the rows as an Arrow stream, and beside them what is told of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from memworker.errors import MemworkerError
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import Reject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadPart:
    """What was read: a batch's rows refused; at a part's end, what the readers found out."""

    path: str
    read: int = 0
    read_bytes: int = 0
    rejects: tuple[Reject, ...] = ()
    found: Findings | None = None
    fields_seen: bool = False
    missing: MemworkerError | None = None
    error: MemworkerError | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """Rows that are not embedded: known ones, and those whose ids stand for others.

    `conflicts` are listed unless conflicts are skipped; `contested` are ids that came with a text
    other than the table's.
    """

    duplicates: int = 0
    conflicts: tuple[Reject, ...] = ()
    n_conflicts: int = 0
    contested: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddedPart:
    """What became of a part's rows on a node; `work` is what its pool has done since the last.

    `failures` are reasons by the number of the row that has no vector; of rows that the node has
    written to a file, `fragment`, they are told as `unstorable`.
    """

    part: ReadPart
    left: Left = Left()
    failures: dict[int, str] = field(default_factory=dict)
    fragment: str = ""
    unstorable: tuple[Reject, ...] = ()
    reused: int = 0
    took_s: float = 0.0
    work: dict[str, float] = field(default_factory=dict)
    node: str = ""
    workers: int = 0
    notes: tuple[str, ...] = ()


def packed(told: object, rows: pa.RecordBatch | None = None, known: Any = None) -> pa.Table:
    """Make a block of one parcel."""
    columns = {
        "told": pa.array([pickle.dumps(told)], pa.large_binary()),
        "rows": _stream(rows),
        "known": _stream(known),
    }
    return pa.table(columns)


def unpacked(block: pa.Table, kind: type[T]) -> Iterator[tuple[T, Any, Any]]:
    """Give each parcel of a block: what is told, its rows, and rows known; None for none."""
    for i in range(block.num_rows):
        told = pickle.loads(block["told"][i].as_buffer())
        assert isinstance(told, kind)
        yield told, _rows(block["rows"][i]), _rows(block["known"][i])


def _stream(rows: pa.RecordBatch | None) -> pa.Array:
    """Give the rows as one binary value, which is null for none."""
    if rows is None:
        return pa.nulls(1, pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    stream = sink.getvalue()
    offsets = pa.array([0, stream.size], pa.int64()).buffers()[1]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])


def _rows(value: Any) -> pa.RecordBatch | None:
    if not value.is_valid:
        return None
    (batch,) = pa.ipc.open_stream(value.as_buffer())
    return batch

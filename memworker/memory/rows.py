"""One row of the table in Python, and batches of them to and from Arrow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.memory.scope import SCOPE_IDS, Scope
from memworker.store import json_column, records

Vector = npt.NDArray[np.float32]

NARROW = (
    *("id", "dedup_key", "text", "metadata", "user_id", "agent_id", "run_id"),
    *("created_at", "updated_at", "expires_at", "superseded_at"),
)
"""All columns but the vector."""

WIDE = (*NARROW, "vector")


@dataclass(frozen=True, slots=True)
class Row:
    """A memory, or an older version of one. `vector` (float32[dim]) is None when not read."""

    id: str
    key: str
    text: str
    vector: Vector | None
    metadata_json: str | None
    scope: Scope
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    superseded_at: datetime | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        return json.loads(self.metadata_json) if self.metadata_json else {}


def read(table: pa.Table) -> list[Row]:
    """Turn what the store returned (columns NARROW or WIDE) into rows, in its order."""
    vectors = _vectors(table)
    columns = [table[name].to_pylist() for name in NARROW]
    rows = []
    for values, vector in zip(zip(*columns, strict=True), vectors, strict=True):
        row_id, key, text, metadata, user, agent, run, created, updated, expires, gone = values
        scope = Scope(user, agent, run)
        rows.append(
            Row(row_id, key, text, vector, metadata, scope, created, updated, expires, gone)
        )
    return rows


def build(rows: Sequence[Row]) -> pa.Table:
    """Turn rows, which all have their vectors, into a batch for the store."""
    strings = pa.string()
    moments = pa.timestamp("us", tz="UTC")
    return records(
        pa.array([row.id for row in rows], strings),
        pa.array([row.text for row in rows], strings),
        np.stack([row.vector for row in rows if row.vector is not None]),
        scopes={
            name: pa.array([getattr(row.scope, name) for row in rows], strings)
            for name in SCOPE_IDS
        },
        metadata_json=json_column(pa.array([row.metadata_json for row in rows], strings)),
        dedup_keys=pa.array([row.key for row in rows], strings),
        created_at=pa.array([row.created_at for row in rows], moments),
        updated_at=pa.array([row.updated_at for row in rows], moments),
        expires_at=pa.array([row.expires_at for row in rows], moments),
        superseded_at=pa.array([row.superseded_at for row in rows], moments),
    )


def _vectors(table: pa.Table) -> Sequence[Vector | None]:
    if "vector" not in table.column_names:
        return [None] * table.num_rows
    column = table["vector"].combine_chunks()
    flat: Vector = column.flatten().to_numpy(zero_copy_only=False)
    return list(flat.reshape(len(column), -1)) if len(column) else []

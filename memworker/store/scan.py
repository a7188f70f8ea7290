"""Reading a whole table, or a part of it, without holding it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from memworker.store.filters import to_sql
from memworker.store.lance import lance_errors
from memworker.store.table import Table

BATCH_ROWS = 8192


def scan_table(
    table: Table, where: Mapping[str, Any] | None = None, *, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows that meet a filter, in the order of their commits, superseded ones too.

    They are those of the version at the first step, whatever is written meanwhile, and no
    clean-up deletes that until the last step. Raises StoreError, TableLocked.
    """
    with table.keeping_versions(), lance_errors(f"reading table {table.name!r}"):
        query = table._handle.search().select(list(columns))
        if where:
            query = query.where(to_sql(where))
        yield from query.to_batches(BATCH_ROWS)

"""Reading rows without a query vector: by filter, by key, by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import UsageError
from memworker.store.filters import key_in, to_sql, visible
from memworker.store.keys import string_array
from memworker.store.schema import CHUNK_COLUMNS, has_chunks, table_schema
from memworker.values import shown, whole

if TYPE_CHECKING:
    from lancedb.table import LanceTable

SCAN_ROWS = 65_536
# What is handed on batch by batch, as large as a reader's batch.
BATCH_ROWS = 8192
# Planning `id IN (…)` costs about 40 µs an id; from here on a scan of the column is cheaper.
IN_LIST_MAX = 256

# LanceDB takes no more than 64 bits; no caller needs more than this.
_MOST = 1_000_000_000
ROW_COLUMNS = tuple(table_schema(1).names)


def rows(
    table: LanceTable,
    where: Mapping[str, Any] | None,
    *,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
    offset: int = 0,
    visible_only: bool = False,
) -> pa.Table:
    """Return the rows that meet a filter, in the order of their commits."""
    query = table.search().select(list(columns or row_columns(table)))
    where = visible(where) if visible_only else where
    query = query.where(sql_of(table, where)) if where else query
    most = None if limit is None else _count("limit", limit)
    # To LanceDB a limit of 0 is none.
    query = query if most is None else query.limit(max(1, most))
    return query.offset(_count("offset", offset)).to_arrow().slice(0, most)


def row_columns(table: LanceTable) -> tuple[str, ...]:
    """Name the columns of a row; those that another program has added are none of them."""
    return ROW_COLUMNS + CHUNK_COLUMNS if has_chunks(table.schema) else ROW_COLUMNS


def sql_of(table: LanceTable, where: Mapping[str, Any]) -> str:
    """Return the SQL of a filter on a table."""
    return to_sql(where, chunks=has_chunks(table.schema))


def _count(name: str, value: Any) -> int:
    found = whole(value)
    if found is None or not 0 <= found <= _MOST:
        raise UsageError(f"{name} must be a whole number from 0 to {_MOST:,}, not {shown(value)}")
    return found


def scan(
    table: LanceTable,
    where: Mapping[str, Any] | None,
    *,
    columns: Sequence[str],
    visible_only: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows that meet a filter, some thousand at a time."""
    where = visible(where) if visible_only else where
    query = table.search().select(list(columns))
    query = query.where(sql_of(table, where)) if where else query
    yield from query.to_batches(BATCH_ROWS)


def count(table: LanceTable, where: Mapping[str, Any] | None, *, visible_only: bool = False) -> int:
    """Return how many rows meet a filter."""
    where = visible(where) if visible_only else where
    return int(table.count_rows(sql_of(table, where) if where else None))


def find(
    table: LanceTable,
    column: str,
    values: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    visible_only: bool = False,
) -> pa.Table:
    """Return the rows whose `column` has exactly one of these values."""
    names = list(columns or row_columns(table))
    condition = to_sql(visible(None)) if visible_only else ""
    if len(values) <= IN_LIST_MAX:
        parts = [key_in(column, values), condition] if condition else [key_in(column, values)]
        return table.search().select(names).where(" AND ".join(parts)).to_arrow()
    read = table.search().select(list(dict.fromkeys([column, *names])))
    read = read.where(condition) if condition else read
    wanted = pa.array(list(values), pa.string())
    found = [
        batch.filter(pc.is_in(string_array(batch[column]), wanted))
        for batch in read.to_batches(SCAN_ROWS)
    ]
    return (pa.Table.from_batches(found) if found else read.limit(0).to_arrow()).select(names)


def addresses(table: LanceTable, ids: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Yield (id, address) of every row with one of these ids, also of equal ones."""
    wanted = string_array(ids)
    for batch in table.search().select(["id"]).with_row_id(True).to_batches(SCAN_ROWS):
        found = batch.filter(pc.is_in(string_array(batch["id"]), wanted))
        yield from zip(found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True)

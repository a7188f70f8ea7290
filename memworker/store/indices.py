"""All indices: which columns have one, and how each kind is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memworker.store import index, text
from memworker.store.apart import IndexBuild
from memworker.store.lance import lance_errors
from memworker.store.policy import CHUNK_SCALAR_COLUMNS, SCALAR_COLUMNS
from memworker.store.writes import Writes

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_SCALAR = (*SCALAR_COLUMNS, *CHUNK_SCALAR_COLUMNS)
COLUMNS = (*_SCALAR, "text", "vector")
"""The columns that can have an index of ours."""


def indexed_columns(table: LanceTable) -> set[str]:
    """Return the columns that are indexed, wholly or in part. Raises StoreError."""
    with lance_errors(f"reading table {table.name!r}"):
        return {column for each in table.list_indices() for column in each.columns}


def build_index(writes: Writes, column: str) -> bool:
    """Build the index of a column, replacing it; tell whether it is one of ours.

    Raises StoreError; then searches read what is not indexed row by row.
    """
    if column == "vector":
        index.build(writes)
    elif column == "text":
        text.build(writes)
    elif column in _SCALAR:
        build_scalar(writes, column)
    else:
        return False
    return True


def build_scalar(writes: Writes, column: str) -> None:
    """Build the index by which rows of one id, key or scope are found, replacing it."""
    work = IndexBuild(column, f"{column}_idx", "BTree")
    writes.build(f"indexing {column} of table {writes.handle.name!r}", work)

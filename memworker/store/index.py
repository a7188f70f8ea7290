"""The vector index: when a table deserves one, how it is built, how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memworker.store.lance import lance_errors

if TYPE_CHECKING:
    from lancedb.table import LanceTable

INDEX_MIN_ROWS = 50_000
"""Below this an exact scan answers in well under 200 ms on two cores and forgets nothing."""

INDEX_NAME = "vector_idx"
NPROBES = 32
REFINE_FACTOR = 10


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index of a table, and how many rows it does not cover yet."""

    name: str
    kind: str
    columns: tuple[str, ...]
    unindexed_rows: int


def has_vector_index(table: LanceTable) -> bool:
    """Tell whether searches of this table go through an index."""
    return any("vector" in index.columns for index in table.list_indices())


def build(table: LanceTable, distance: str) -> None:
    """Build the vector index, replacing the one there is."""
    from lancedb.index import IvfPq

    with lance_errors(f"indexing table {table.name!r}"):
        table.create_index(
            vector_column_name="vector",
            name=INDEX_NAME,
            replace=True,
            config=IvfPq(distance_type=distance),
        )


def tune(query: Any) -> Any:
    """Set how much of the index a query looks at."""
    return query.nprobes(NPROBES).refine_factor(REFINE_FACTOR)


def describe(table: LanceTable) -> tuple[IndexInfo, ...]:
    """Return what indices there are."""
    found = []
    for index in table.list_indices():
        stats = table.index_stats(index.name)
        unindexed = stats.num_unindexed_rows if stats else 0
        found.append(IndexInfo(index.name, index.index_type, tuple(index.columns), unindexed))
    return tuple(found)

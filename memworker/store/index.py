"""The vector index: how it is built, how it is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memworker.errors import StoreError
from memworker.store.apart import IndexBuild
from memworker.store.writes import Writes

if TYPE_CHECKING:
    from lancedb.table import LanceTable

INDEX_NAME = "vector_idx"
# LanceDB makes partitions of about 8,192 rows, so up to 500,000 rows all are probed.
NPROBES = 64
# So many times `limit` candidates are compared again by their full vectors.
REFINE_FACTOR = 4
# Rows from which each partition, and each of 256 steps of a number, is learnt. With LanceDB's
# 256 their reading, row by row, took more than all the rest; answers are no worse.
SAMPLE_RATE = 64
_FEWER = re.compile(r"num_partitions to <= (\d+)")


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index of a table, and how many rows it does not cover yet."""

    name: str
    kind: str
    columns: tuple[str, ...]
    unindexed_rows: int


def build(writes: Writes, partitions: int | None = None) -> None:
    """Build the vector index, replacing the one there is; LanceDB knows how many partitions.

    Of vectors that are few, however many rows have them, it cannot make so many, and
    says how many it can.
    """
    distance = writes.table.space.distance
    options = {"distance_type": distance, "num_partitions": partitions, "sample_rate": SAMPLE_RATE}
    work = IndexBuild("vector", INDEX_NAME, "IvfSq", options)
    try:
        writes.build(f"indexing table {writes.table.name!r}", work)
    except StoreError as error:
        found = _FEWER.search(str(error.__cause__))
        fewer = max(1, int(found[1])) if found else None
        if fewer is None or fewer == partitions:
            raise
        build(writes, fewer)


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

"""Search: one query vector to ranked hits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from memworker.errors import BadVector, UsageError
from memworker.store import index, read
from memworker.store.lance import lance_errors
from memworker.store.schema import Vectors, has_chunks
from memworker.store.space import VectorSpace
from memworker.values import shown, whole

if TYPE_CHECKING:
    from lancedb.table import LanceTable

# LanceDB takes no more than 64 bits; no caller needs more than this.
MAX_LIMIT = 1_000_000_000
HIT_COLUMNS = (
    "id",
    "text",
    "metadata",
    "user_id",
    "agent_id",
    "run_id",
    "created_at",
    "updated_at",
    "expires_at",
)
CHUNK_HIT_COLUMNS = ("parent_id", "chunk", "char_start", "char_end", "context")


@dataclass(frozen=True, slots=True)
class Hit:
    """A found row. Higher scores are better.

    `score` is the cosine or the dot product of a search by vector, BM25 of one by
    text, from 0 to 1 of a hybrid one (see fuse.py). What was not asked for by
    `columns` has its default. Of a chunk `parent_id` is the text that it is of, `chunk` its
    number there, and `char_start` to `char_end` are its characters; others have None. `before`
    and `after` are the rows beside it, in the order of time, where a search asks for them.
    """

    id: str
    score: float
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    user_id: str = ""
    agent_id: str = ""
    run_id: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    parent_id: str | None = None
    chunk: int | None = None
    char_start: int | None = None
    char_end: int | None = None
    context: str | None = None
    before: tuple[Hit, ...] = ()
    after: tuple[Hit, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search; see `Table.search`."""

    limit: int = 10
    where: Mapping[str, Any] | None = None
    exact: bool = False
    columns: Sequence[str] | None = None
    group: bool = False
    context: int = 0
    half_life_s: float | None = None


def search(
    table: LanceTable, space: VectorSpace, vector: Vectors, options: SearchOptions
) -> list[Hit]:
    """Return the nearest rows, best first."""
    return vector_hits(_nearest(table, space, _checked(vector, space), options))


def search_many(
    table: LanceTable, space: VectorSpace, vectors: Vectors, options: SearchOptions
) -> list[list[Hit]]:
    """Return the nearest rows of each vector; 64 at once cost a third of one by one."""
    if not len(vectors):
        return []
    queries = np.stack([_checked(vector, space) for vector in vectors])
    if len(queries) == 1:
        return [vector_hits(_nearest(table, space, queries[0], options))]
    found = _nearest(table, space, list(queries), options)
    each: list[list[Hit]] = [[] for _ in queries]
    numbers = found["query_index"].to_pylist()
    for number, hit in zip(numbers, vector_hits(found.drop_columns("query_index")), strict=True):
        each[number].append(hit)
    # LanceDB promises no order among the queries' rows.
    return [sorted(hits, key=lambda hit: -hit.score) for hits in each]


def _nearest(
    table: LanceTable, space: VectorSpace, query: Vectors | list[Vectors], options: SearchOptions
) -> pa.Table:
    columns = asked_columns(options, table)
    with lance_errors(f"searching table {table.name!r}"):
        builder = table.search(query, vector_column_name="vector")
        builder = builder.distance_type(space.distance).limit(checked_limit(options.limit))
        builder = builder.bypass_vector_index() if options.exact else index.tune(builder)
        if options.where:
            # Before the search, so that a small scope still gets its `limit` hits.
            builder = builder.where(read.sql_of(table, options.where), prefilter=True)
        return builder.select([*columns, "_distance"]).to_arrow()


def _checked(vector: Vectors, space: VectorSpace) -> Vectors:
    query = np.asarray(vector, np.float32)
    if query.shape != (space.dim,):
        raise UsageError(
            f"the query vector has shape {query.shape}, the table's vectors have {space.dim} "
            f"dimensions; embed the query with {space.model!r}"
        )
    length = float(np.dot(query, query))
    if not 0 < length < np.inf:
        raise BadVector("the query vector is zero, or holds NaN or infinity; it has no direction")
    return query


def asked_columns(options: SearchOptions, table: LanceTable) -> list[str]:
    """Return the columns to read. Raises UsageError for a limit or a column that cannot be."""
    chunks = has_chunks(table.schema)
    there = (*HIT_COLUMNS, *(CHUNK_HIT_COLUMNS if chunks else ()))
    unknown = [name for name in options.columns or () if name not in there]
    if unknown:
        raise UsageError(f"a hit has no {unknown}; it has {', '.join(there)}")
    grouped = ("parent_id",) if options.group and chunks else ()
    return list(dict.fromkeys(["id", *(options.columns or there), *grouped]))


def checked_limit(limit: int) -> int:
    """Return how many hits are wanted. Raises UsageError for a number that cannot be."""
    found = whole(limit)
    if found is None or not 1 <= found <= MAX_LIMIT:
        raise UsageError(f"a search needs a limit from 1 to {MAX_LIMIT:,}, got {shown(limit)}")
    return found


def vector_hits(found: pa.Table) -> list[Hit]:
    """Return the rows of a search by vector as hits."""
    # LanceDB's distance is 1 minus the cosine, or 1 minus the dot product.
    return [_hit(row, 1.0 - row.pop("_distance")) for row in found.to_pylist()]


def text_hits(found: pa.Table) -> list[Hit]:
    """Return the rows of a search by text as hits."""
    return [_hit(row, row.pop("_score")) for row in found.to_pylist()]


def _hit(row: dict[str, Any], score: float) -> Hit:
    if "metadata" in row:
        row["metadata"] = json.loads(row["metadata"]) if row["metadata"] else {}
    return Hit(score=score, **row)

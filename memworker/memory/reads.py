"""What reads the table: search, get, list, count and history. Blocks, and waits for no write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal, get_args

import pyarrow as pa

from memworker import values
from memworker.errors import UsageError
from memworker.memory import history, rows
from memworker.memory.rows import NARROW, Vector
from memworker.memory.scope import scoped
from memworker.memory.shapes import Record, hit_record, record, results
from memworker.pool import Embedded, Reranker, paired, sigmoid
from memworker.store import MAX_LIMIT, Snapshot, Table, check_search

Mode = Literal["vector", "text", "hybrid"]
# Up to here the newest are found by their times first and then read by id.
_BY_ID = 1000
# What a reranker is given at least: the best that the search itself has.
_RERANKED = 50
_NEWEST = [("created_at", "descending"), ("id", "descending")]


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched for, and how; see `Memory.search`."""

    query: str
    filters: Mapping[str, Any] | None
    limit: int
    threshold: float | None
    mode: Mode
    group: bool
    context: int
    recency_half_life: timedelta | float | None
    rerank: Reranker | None = None

    def checked(self) -> Question:
        """Return itself. Raises UsageError or ScopeMissing for a search that cannot be."""
        if not isinstance(self.query, str) or not self.query.strip():
            raise UsageError(f"a query is some text, not {values.shown(self.query)}")
        values.checked_choice("mode", self.mode, get_args(Mode))
        if self.threshold is not None and values.number(self.threshold) is None:
            raise UsageError(
                f"threshold must be a finite number or None, not {values.shown(self.threshold)}"
            )
        _checked_limit(self.limit)
        if self.rerank is not None and not isinstance(self.rerank, Reranker):
            raise UsageError(f"rerank is an open Reranker, not {values.shown(self.rerank)}")
        check_search(self.context, self.recency_half_life, self.group)
        scoped(self.filters)
        return self

    @property
    def found_first(self) -> Question:
        """What is searched for before a reranker has its say: more, whatever their scores."""
        if self.rerank is None:
            return self
        return replace(self, limit=max(self.limit, _RERANKED), threshold=None)


def get(table: Table, memory_id: str) -> Record | None:
    """Return one memory, or None."""
    found = rows.read(table.rows({"id": checked_id(memory_id)}, columns=NARROW, visible_only=True))
    return record(found[0]) if found else None


def get_all(table: Table, filters: Mapping[str, Any] | None, limit: int | None) -> dict[str, Any]:
    """Return memories that meet the filters, newest first, as they stood at one moment."""
    where = scoped(filters)
    if limit is not None:
        limit = _checked_limit(limit)
    if limit is not None and limit <= _BY_ID:
        found = table.at_one_version(partial(_newest, where, limit))
    else:
        found = (
            table.rows(where, columns=NARROW, visible_only=True).sort_by(_NEWEST).slice(0, limit)
        )
    records = [record(row) for row in rows.read(found)]
    return results(records, "" if records else table.note_on(where))


def _newest(where: Mapping[str, Any], limit: int, at: Snapshot) -> pa.Table:
    """Find the newest by their times, then read those."""
    times = at.rows(where, columns=("id", "created_at"), visible_only=True)
    newest = times.sort_by(_NEWEST)["id"].slice(0, limit).to_pylist()
    # Those that expire just now, too: they were alive when they were chosen.
    return at.rows({"id": {"in": newest}}, columns=NARROW).sort_by(_NEWEST)


def count(table: Table, filters: Mapping[str, Any] | None) -> int:
    """Return how many visible memories meet the filters."""
    return table.count(filters, visible_only=True)


def events(table: Table, memory_id: str) -> list[Record]:
    """Return the history of a memory, oldest first."""
    found = table.rows(history.versions_of(checked_id(memory_id)), columns=NARROW)
    return history.tell(memory_id, rows.read(found))


def search(table: Table, vector: Vector | None, asked: Question) -> dict[str, Any]:
    """Return the memories that answer a query best; `vector` is None in mode text."""
    how: dict[str, Any] = {
        "limit": asked.limit,
        "where": asked.filters,
        "group": asked.group,
        "context": asked.context,
        "recency_half_life": asked.recency_half_life,
    }
    if asked.mode == "text":
        hits = table.search_text(asked.query, **how)
    elif asked.mode == "hybrid" and vector is not None:
        hits = table.search_hybrid(asked.query, vector, **how)
    else:
        assert vector is not None
        hits = table.search(vector, **how)
    least = asked.threshold
    kept = [
        hit_record(hit, with_context=bool(asked.context))
        for hit in hits
        if least is None or hit.score >= least
    ]
    return results(kept, "" if hits else table.note_on(asked.filters))


def reranked(found: dict[str, Any], embedded: Embedded, asked: Question) -> dict[str, Any]:
    """Return what was found in the order of a reranker's scores, which become theirs."""
    embedded.raise_first()
    scores = sigmoid(embedded.vectors[:, 0]).tolist()
    told = [
        record | {"score": score} for record, score in zip(found["results"], scores, strict=True)
    ]
    least = asked.threshold
    told = [record for record in told if least is None or record["score"] >= least]
    told.sort(key=lambda record: -record["score"])
    return found | {"results": told[: asked.limit]}


def to_rerank(asked: Question, found: Mapping[str, Any]) -> list[str]:
    """Return the pairs that a reranker is to score."""
    return paired(asked.query, [record["memory"] for record in found["results"]])


def query_vector(embedded: Embedded) -> Vector:
    """Return float32[dim] of an embedded query. Raises TextFailed."""
    embedded.raise_first()
    vector: Vector = embedded.vectors[0]
    return vector


def checked_id(memory_id: Any) -> str:
    """Return a memory's id. Raises UsageError for what is none."""
    if not isinstance(memory_id, str) or not memory_id:
        raise UsageError(f"a memory's id is a str, not {values.shown(memory_id)}")
    try:
        memory_id.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the id {memory_id!r} is not valid Unicode: {error}") from None
    return values.exact_str(memory_id)


def _checked_limit(limit: Any) -> int:
    found = values.whole(limit)
    if found is None or not 1 <= found <= MAX_LIMIT:
        raise UsageError(
            f"limit must be a whole number from 1 to {MAX_LIMIT:,}, not {values.shown(limit)}"
        )
    return found

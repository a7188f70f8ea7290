"""Documents as chunks: cut, held against those that are there, committed document by document.

Size, time and hash of a file stand in its first chunk alone. So an edit writes that one, the
chunks that are new and those that stand elsewhere now, and leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from memworker.ingestion.chunk_commits import ChunkCommitter
from memworker.ingestion.chunks import ChunkWindow, CutBatch, Cutting
from memworker.ingestion.records import ReadBatch
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.sync.outcome import FileCounts
from memworker.ingestion.sync.planning import Underway
from memworker.ingestion.windows import Window
from memworker.store import OnConflict, Table, dedup_keys, embedded_texts

_TAKEN = "id {!r} is there already, of rows that are not of this folder"


class DocumentCommitter(ChunkCommitter):
    """Counts each document when its chunks are committed."""

    def __init__(self, *given: Any, underway: Underway, files: FileCounts) -> None:
        self._underway, self._files = underway, files
        super().__init__(*given)

    def _commit_pending(self) -> None:
        before = set(self._waiting.parents)
        super()._commit_pending()
        for parent in before.difference(self._waiting.parents):
            doing = self._underway.doing.pop(parent, None)
            self._files.added += doing == "added"
            self._files.updated += doing == "updated"


class Unclaimed:
    """Lets through documents whose ids no rows of others have; counts and lists the others."""

    def __init__(
        self, table: Table | None, refusals: Refusals, policy: OnConflict, underway: Underway
    ) -> None:
        self._table, self._refusals = table, refusals
        self._policy, self._underway = policy, underway
        self.conflicts = 0

    def batches(self, windows: Iterable[Window]) -> Iterator[ReadBatch]:
        """Yield the documents as a reader's batches."""
        for window in windows:
            kept = self._kept(window)
            if len(kept):
                yield ReadBatch(kept.path, kept.rows)

    def _kept(self, window: Window) -> Window:
        ids = window.ids.to_pylist()
        new = [row_id for row_id in ids if self._underway.doing.get(row_id) == "added"]
        if self._table is None or not new or self._policy is OnConflict.UPDATE:
            return window
        either = {"OR": [{"parent_id": {"in": new}}, {"id": {"in": new}}]}
        there = self._table.rows(either, columns=["id", "parent_id"])
        taken = {*there["id"].to_pylist(), *there["parent_id"].to_pylist()}.intersection(new)
        if not taken:
            return window
        self.conflicts += len(taken)
        refused = {at: _TAKEN.format(i) for at, i in enumerate(ids) if i in taken}
        if self._policy is OnConflict.REJECT:
            self._refusals.list(window.rejects(refused))
        for row_id in taken:
            del self._underway.doing[row_id]
        return window.keep(np.array([row_id not in taken for row_id in ids]))


def cut_documents(cutting: Cutting, batches: Iterable[ReadBatch]) -> Iterator[CutBatch]:
    """Cut documents; all chunks but the first go without what an edit changes everywhere."""
    for cut in cutting.cut(batches):
        rows = cut.rows
        first = pc.equal(rows["chunk"], 0)
        metadata = pc.if_else(first, rows["metadata"], rows["lasting"])
        place = rows.schema.get_field_index("metadata")
        yield replace(cut, rows=rows.set_column(place, "metadata", metadata))


def chunk_vectors_alike(
    table: Table, window: ChunkWindow, underway: Underway
) -> WindowVectors | None:
    """Return the vectors of a window if documents of the same content have them all, else None."""
    parents = pc.unique(window.rows["parent_id"]).to_pylist()
    others = {underway.alike.get(parent) for parent in parents} - {None}
    columns = ["text", "context", "vector"]
    there = table.rows({"parent_id": {"in": sorted(map(str, others))}}, columns=columns)
    keys = dedup_keys(embedded_texts(there))
    at = pc.index_in(window.text_keys, keys)
    if at.null_count or not len(keys):
        return None
    vectors = there["vector"].combine_chunks()
    taken = vectors.take(at).flatten().to_numpy().reshape(-1, vectors.type.list_size)
    return WindowVectors(taken.astype(np.float32), {})

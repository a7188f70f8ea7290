"""The commits of a folder's documents, and the removal of those that are gone.

Rows of others are neither changed nor removed: a row is the folder's own if it says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.failpoints import reach
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.sync.outcome import FileCounts
from memworker.ingestion.sync.planning import Naming, Underway
from memworker.ingestion.windows import Window
from memworker.store import Appended, OnConflict, Table


class FolderWriter:
    """Writes documents: new ones are appended, held ones replaced, each in one commit.

    `key` is the column that holds their ids: of chunks it is that of their parents.
    """

    def __init__(
        self,
        naming: Naming,
        policy: OnConflict,
        underway: Underway,
        counts: FileCounts,
        key: str = "id",
    ) -> None:
        self._key = key
        self._naming, self._policy = naming, policy
        self._underway, self._counts = underway, counts
        self.conflicts = 0

    def write(self, table: Table, batch: pa.Table) -> Appended:
        """Commit rows; the positions of those whose ids others hold come back as conflicts."""
        ids = batch["id"].to_pylist()
        doing = [self._underway.doing.pop(row_id) for row_id in ids]
        new = [at for at, what in enumerate(doing) if what == "added"]
        held = [at for at, what in enumerate(doing) if what == "updated"]
        conflicts: list[int] = []
        written = duplicates = 0
        version = 0
        if new:
            done = table.append(batch.take(new), on_conflict=self._policy)
            reach("after_added")
            conflicts += [new[at] for at in done.conflicts]
            written, duplicates, version = (
                done.written + done.updated,
                done.duplicates,
                done.version,
            )
            self._counts.added += written
        if held:
            others, version = self._replace(table, batch, held)
            conflicts += others
            written += len(held) - len(others)
            self._counts.updated += len(held) - len(others)
        self.conflicts += len(conflicts)
        return Appended(written, duplicates, tuple(sorted(conflicts)), 0, version)

    def remove(self, table: Table, names: Sequence[str]) -> int:
        """Remove some hundred documents of this folder, and return how many there were."""
        ids = [self._naming.id_of(name) for name in names]
        removed = table.delete({self._key: {"in": ids}, "folder": self._naming.folder})
        reach("after_removed")
        return removed

    def _replace(self, table: Table, batch: pa.Table, held: list[int]) -> tuple[list[int], int]:
        rows = batch.take(held)
        with table.changing() as change:
            columns = ["id", "metadata", "created_at"]
            found = change.find("id", rows["id"].to_pylist(), columns=columns)
            folder = self._naming.folder
            others = {
                row["id"]
                for row in found.to_pylist()
                if json.loads(row["metadata"] or "{}").get("folder") != folder
            }
            ours = [at for at, i in enumerate(rows["id"].to_pylist()) if i not in others]
            change.replace(_still_made(rows.take(ours), found))
        reach("after_replaced")
        return [at for at in held if batch["id"][at].as_py() in others], change.version


def vectors_alike(
    table: Table, window: Window, underway: Underway
) -> Iterator[tuple[Window, WindowVectors | None]]:
    """Part a window into the rows whose vectors the table has, with these, and the others."""
    ids = window.ids.to_pylist()
    alike = [underway.alike.pop(row_id, None) for row_id in ids]
    wanted = sorted({other for other in alike if other is not None})
    if not wanted:
        yield window, None
        return
    there = table.rows({"id": {"in": wanted}}, columns=["dedup_key", "vector"])
    keys = pc.unique(there["dedup_key"].combine_chunks())
    vectors = there["vector"].combine_chunks()
    dim = vectors.type.list_size
    at = pc.index_in(window.rows["key"], there["dedup_key"].combine_chunks())
    known = np.asarray(at.is_valid()) & np.array([other is not None for other in alike])
    if len(keys) and known.any():
        rows = pa.array(np.asarray(at.fill_null(0))[known])
        taken = vectors.take(rows).flatten().to_numpy().reshape(-1, dim).astype(np.float32)
        yield window.keep(known), WindowVectors(taken, {})
    if not known.all():
        yield window.keep(~known), None


def _still_made(rows: pa.Table, found: pa.Table) -> pa.Table:
    """Give rows that replace others the time at which those were made."""
    at = pc.index_in(rows["id"], found["id"].combine_chunks())
    place = rows.schema.get_field_index("created_at")
    before = found["created_at"].take(at)
    created = pc.coalesce(before, rows["created_at"])
    return rows.set_column(place, rows.schema.field(place), created)

"""Windows: the rows that are embedded and committed together, with their ids and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.ingestion.conflicts import note_on_ids, told_conflicts
from memworker.ingestion.fields import SCOPE_COLUMNS
from memworker.ingestion.records import ReadBatch, Reject, rejected, scopes_of
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.report import Counts
from memworker.store import IdStatus, OnConflict, Table, dedup_keys

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of one input: a batch's columns, each row with its id, and `key`, its dedup key."""

    path: str
    rows: pa.RecordBatch

    def __len__(self) -> int:
        return self.rows.num_rows  # type: ignore[no-any-return]

    @property
    def ids(self) -> pa.Array:
        return self.rows["id"]

    @property
    def texts(self) -> pa.Array:
        return self.rows["text"]

    @property
    def text_keys(self) -> pa.Array:
        """Arrow string[n], equal where the texts are, whatever their scopes."""
        return dedup_keys(self.texts) if scopes_of(self.rows) else self.rows["key"]

    def keep(self, mask: Mask) -> Window:
        """Give the window of the rows that `mask` marks."""
        return self if mask.all() else Window(self.path, self.rows.filter(pa.array(mask)))

    def cut(self, ends: Iterable[int]) -> Iterator[Window]:
        """Give the windows that end before these rows, without copying."""
        start = 0
        for end in ends:
            yield Window(self.path, self.rows.slice(start, end - start))
            start = end

    def reject(self, row: int, reason: str) -> Reject:
        """Describe one row as refused."""
        return rejected(self.path, self.rows, row, reason)

    def rejects(self, reasons: dict[int, str]) -> list[Reject]:
        """Describe rows that could not be embedded or written."""
        return [self.reject(row, reason) for row, reason in sorted(reasons.items())]


@dataclass(frozen=True, slots=True)
class Sieve:
    """Lets through the rows that must be embedded; counts and reports the others."""

    table: Table | None
    refusals: Refusals
    on_conflict: OnConflict
    contested: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counts:
        return self.refusals.counts

    def windows(self, batches: Iterable[ReadBatch]) -> Iterator[Window]:
        """Turn batches into windows of new rows, in input order, none of them empty."""
        for batch in batches:
            self.counts.add(read=batch.read)
            self.refusals.add(batch.rejects)
            if not self.notes and (note := note_on_ids(batch.rows)):
                self.notes.append(note)
            window = self._new_rows(window_of(batch))
            if len(window):
                yield window

    def _new_rows(self, window: Window) -> Window:
        if self.table is None or not len(window):
            return window
        scopes, metadata = scopes_of(window.rows), window.rows["metadata"]
        statuses = self.table.classify(
            window.ids, window.rows["key"], scopes=scopes, metadata=metadata
        )
        elsewhere = np.flatnonzero(statuses == IdStatus.ELSEWHERE)
        self.refuse_conflicts(self.table, window, elsewhere)
        conflicts = np.flatnonzero(statuses == IdStatus.CONFLICT)
        if self.on_conflict is OnConflict.UPDATE:
            self.contested.update(window.ids.take(pa.array(conflicts)).to_pylist())
            kept = (statuses != IdStatus.DUPLICATE) | self._is_contested(window)
            kept &= statuses != IdStatus.ELSEWHERE
        else:
            self.refuse_conflicts(self.table, window, conflicts)
            kept = statuses == IdStatus.NEW
        known = (statuses == IdStatus.DUPLICATE) & ~kept
        self.counts.add(duplicates=int(known.sum()))
        return window.keep(kept)

    def _is_contested(self, window: Window) -> Mask:
        """Mark rows whose id came with several texts: the last wins, so none may be left out."""
        if not self.contested:
            return np.zeros(len(window), np.bool_)
        marks = (row_id in self.contested for row_id in window.ids.to_pylist())
        return np.fromiter(marks, np.bool_, len(window))

    def refuse_conflicts(self, table: Table, window: Window, rows: Sequence[int] | Indices) -> None:
        """Count rows whose id stands for another row; report them unless they are skipped."""
        self.counts.add(conflicts=len(rows))
        if self.on_conflict is not OnConflict.SKIP and len(rows):
            reasons = told_conflicts(table, window.rows, list(map(int, rows)))
            self.refusals.list(window.rejects(reasons))


def window_of(batch: ReadBatch) -> Window:
    """Give a batch's rows their keys, and ids where they have none."""
    rows, scopes = batch.rows, scopes_of(batch.rows)
    keys = dedup_keys(rows["text"], *(scopes.get(name) for name in SCOPE_COLUMNS))
    ids = pc.coalesce(rows["id"], keys)
    place = rows.schema.get_field_index("id")
    return Window(batch.path, rows.set_column(place, "id", ids).append_column("key", keys))

"""Windows: the rows that are embedded and committed together, with their ids and keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import RowRejected
from memworker.ingest.records import EXCERPT_CHARS, Chunk, InputBatch, Reject
from memworker.ingest.rejects import RejectFile
from memworker.ingest.report import Counts
from memworker.store import OnConflict, RowStatus, Table, dedup_keys

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of one input with what the store needs: ids and keys (Arrow string[n])."""

    batch: InputBatch
    ids: pa.Array
    keys: pa.Array

    @property
    def texts(self) -> pa.Array:
        return self.batch.texts

    @property
    def rows(self) -> int:
        return self.batch.rows

    @property
    def text_keys(self) -> pa.Array:
        """Arrow string[n], equal where the texts are, whatever their scopes."""
        return dedup_keys(self.texts) if self.batch.scopes else self.keys

    def keep(self, mask: Mask) -> Window:
        """Give the window of the rows that `mask` marks."""
        if mask.all():
            return self
        kept = pa.array(mask)
        batch = replace(
            self.batch,
            texts=self.batch.texts.filter(kept),
            ids=None,
            scopes={name: column.filter(kept) for name, column in self.batch.scopes.items()},
            metadata=None if self.batch.metadata is None else self.batch.metadata.filter(kept),
            lines=self.batch.lines[mask],
            ordinals=self.batch.ordinals[mask],
        )
        return Window(batch, self.ids.filter(kept), self.keys.filter(kept))

    def cut(self, ends: Iterable[int]) -> Iterator[Window]:
        """Give the windows that end before these rows, without copying."""
        start = 0
        for end in ends:
            yield self._slice(start, end)
            start = end

    def _slice(self, start: int, end: int) -> Window:
        batch, rows = self.batch, slice(start, end)
        part = replace(
            batch,
            texts=batch.texts[rows],
            ids=None,
            scopes={name: column[rows] for name, column in batch.scopes.items()},
            metadata=None if batch.metadata is None else batch.metadata[rows],
            lines=batch.lines[rows],
            ordinals=batch.ordinals[rows],
        )
        return Window(part, self.ids[rows], self.keys[rows])

    def reject(self, row: int, reason: str) -> Reject:
        """Describe one row as refused."""
        return Reject(
            path=self.batch.path,
            line=int(self.batch.lines[row]),
            ordinal=int(self.batch.ordinals[row]),
            reason=reason,
            id=self.ids[row].as_py(),
            excerpt=self.texts[row].as_py()[:EXCERPT_CHARS],
        )


@dataclass(frozen=True, slots=True)
class Sieve:
    """Lets through the rows that must be embedded; counts and reports the others."""

    table: Table | None
    counts: Counts
    rejects: RejectFile
    on_conflict: OnConflict
    stop_at_reject: bool
    contested: set[str] = field(default_factory=set)

    def windows(self, chunks: Iterable[Chunk]) -> Iterator[Window]:
        """Turn chunks into windows of new rows, in input order, none of them empty."""
        for chunk in chunks:
            self.counts.add(read=chunk.read)
            self._refuse(list(chunk.rejects))
            window = self._new_rows(_window(chunk.batch))
            if window.rows:
                yield window

    def _new_rows(self, window: Window) -> Window:
        if self.table is None or not window.rows:
            return window
        statuses = self.table.classify(window.ids, window.keys)
        conflicts = np.flatnonzero(statuses == RowStatus.CONFLICT)
        if self.on_conflict is OnConflict.UPDATE:
            self.contested.update(window.ids.take(pa.array(conflicts)).to_pylist())
            kept = (statuses != RowStatus.DUPLICATE) | self._is_contested(window)
        else:
            self.refuse_conflicts(window, conflicts)
            kept = statuses == RowStatus.NEW
        known = (statuses == RowStatus.DUPLICATE) & ~kept
        self.counts.add(duplicates=int(known.sum()))
        return window.keep(kept)

    def _is_contested(self, window: Window) -> Mask:
        """Mark rows whose id came with several texts: the last wins, so none may be left out."""
        if not self.contested:
            return np.zeros(window.rows, np.bool_)
        marks = (row_id in self.contested for row_id in window.ids.to_pylist())
        return np.fromiter(marks, np.bool_, window.rows)

    def refuse_conflicts(self, window: Window, rows: Iterable[int]) -> None:
        """Count rows whose id has another text already; report them unless they are skipped."""
        found = [
            window.reject(
                int(row), f"id {window.ids[int(row)].as_py()!r} is already there with another text"
            )
            for row in rows
        ]
        self.counts.add(conflicts=len(found))
        if self.on_conflict is OnConflict.REJECT:
            self._report(found)

    def refuse_rows(self, window: Window, reasons: dict[int, str]) -> None:
        """Count and report rows that could not be embedded or written."""
        self._refuse([window.reject(row, reason) for row, reason in reasons.items()])

    def _refuse(self, rejects: list[Reject]) -> None:
        self.counts.add(rejected=len(rejects))
        self._report(rejects)

    def _report(self, rejects: list[Reject]) -> None:
        self.rejects.add(rejects)
        if rejects and self.stop_at_reject:
            first = rejects[0]
            raise RowRejected(
                f"{first.path}:{first.line}: {first.reason}. Mend the row, or leave out"
                " --on-error stop to have such rows set aside."
            )


def _window(batch: InputBatch) -> Window:
    keys = dedup_keys(
        batch.texts,
        batch.scopes.get("user_id"),
        batch.scopes.get("agent_id"),
        batch.scopes.get("run_id"),
    )
    ids = keys if batch.ids is None else pc.coalesce(batch.ids, keys)
    return Window(batch, ids, keys)

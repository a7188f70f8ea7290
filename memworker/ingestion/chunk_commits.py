"""Commits the chunks of texts, each text whole: all that is new of it, and what it has no more."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from memworker.failpoints import reach
from memworker.ingestion.chunks import CONFLICT, ELSEWHERE, ChunkSieve, ChunkWindow
from memworker.ingestion.committer import COMMIT_ROWS, COMMIT_S, CommitThread
from memworker.ingestion.records import scopes_of
from memworker.ingestion.reuse import WindowVectors
from memworker.pool import Floats
from memworker.store import CHUNK_FIELDS, Table, json_column, records

INCOMPLETE = (
    "the chunks of {!r} were changed by another program meanwhile; run the same command again"
)


@dataclass(slots=True)
class _Part:
    """Rows of a window on their way; `rows` are those of `records` that have what they need."""

    window: ChunkWindow
    rows: pa.Table
    good: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def parted(self, end: int) -> tuple[_Part, _Part]:
        """Part it before a row of the window."""
        at = int(self.good[:end].sum())
        head, tail = _slice(self.window, 0, end), _slice(self.window, end, len(self.window))
        return (
            _Part(head, self.rows.slice(0, at), self.good[:end]),
            _Part(tail, self.rows.slice(at), self.good[end:]),
        )


@dataclass(slots=True)
class _WaitingTexts:
    parts: list[_Part] = field(default_factory=list)
    parents: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    since: float = 0.0


class ChunkCommitter(CommitThread[ChunkWindow, ChunkSieve]):
    """Gathers windows as that of rows does, but commits a text when its last chunk is there.

    A text that was cut short by the job's end is not committed.
    """

    def __init__(self, *given: object, **more: object) -> None:
        self._waiting = _WaitingTexts()
        super().__init__(*given, **more)  # type: ignore[arg-type]

    @property
    def _pending_rows(self) -> int:
        return self._waiting.rows

    @property
    def _pending_since(self) -> float:
        return self._waiting.since

    def _take(self, window: ChunkWindow, outcome: WindowVectors) -> None:
        reasons = outcome.unstorable()
        self._sieve.refusals.add(window.rejects(reasons))
        part = _part(window, outcome.vectors, reasons)
        if self._comes_again(window):
            self._commit()
        if not self._waiting.rows:
            self._waiting.since = self._outside.monotonic()
        self._waiting.parts.append(part)
        self._waiting.rows += len(window)
        ordinals = window.rows["ordinal"].to_pylist()
        parents = window.rows["parent_id"].to_pylist()
        self._waiting.parents.update(zip(parents, ordinals, strict=True))
        due = self._outside.monotonic() - self._waiting.since >= COMMIT_S
        if self._waiting.rows >= COMMIT_ROWS or due:
            self._commit()

    def _comes_again(self, window: ChunkWindow) -> bool:
        """Tell whether another text of a parent that is waiting comes."""
        begins = zip(
            window.rows["parent_id"].to_pylist(), window.rows["ordinal"].to_pylist(), strict=True
        )
        waiting = self._waiting.parents
        return any(waiting.get(parent, ordinal) != ordinal for parent, ordinal in begins)

    def _commit_pending(self) -> None:
        parts, position = self._whole_texts()
        if not parts:
            return
        if self._table is None:
            self._table = self._open_table()
            reach("after_create")
        batch = pa.concat_tables([part.rows for part in parts])
        reach("before_commit")
        done = self._table.replace_chunks(batch, on_conflict=self._sieve.on_conflict)
        reach("after_commit")
        self._counts.add(
            written=done.written, moved=done.moved, removed=done.removed, duplicates=done.kept
        )
        self._counts.table_version = done.version
        self._counts.last_commit = time.perf_counter()
        self._history.committed(self._table, position)
        reach("after_journal")
        for parents, why in (
            (done.conflicts, CONFLICT),
            (done.elsewhere, ELSEWHERE),
            (done.incomplete, INCOMPLETE),
        ):
            self._refuse(self._table, parts, set(parents), why)

    def _whole_texts(self) -> tuple[list[_Part], int]:
        """Take what waits, up to the last chunk that ends its text; the rest goes on waiting."""
        waiting, self._waiting = self._waiting, _WaitingTexts(since=self._outside.monotonic())
        whole, rest = waiting.parts, list[_Part]()
        while whole:
            last = np.flatnonzero(whole[-1].window.rows["last_chunk"].to_numpy(False))
            end = int(last[-1]) + 1 if len(last) else 0
            part = whole.pop()
            head, tail = part.parted(end)
            if len(tail.window):
                rest.insert(0, tail)
            if end:
                whole.append(head)
                break
        for part in rest:
            self._waiting.parts.append(part)
            self._waiting.rows += len(part.window)
            self._waiting.parents[part.window.rows["parent_id"][0].as_py()] = part.window.rows[
                "ordinal"
            ][0].as_py()
        return whole, whole[-1].window.rows["ordinal"][-1].as_py() + 1 if whole else 0

    def _refuse(self, table: Table, parts: list[_Part], parents: set[str], why: str) -> None:
        for part in parts if parents else ():
            rows = part.window.rows
            found: dict[int, str] = {}
            for row, parent in enumerate(rows["parent_id"].to_pylist()):
                if parent in parents:
                    parents.discard(parent)
                    found[row] = why
            self._sieve.refuse(part.window.path, rows, found)


def _slice(window: ChunkWindow, start: int, end: int) -> ChunkWindow:
    unknown = window.unknown
    begin, stop = int(unknown[:start].sum()), int(unknown[:end].sum())
    return window.part(start, end, begin, stop)


def _part(window: ChunkWindow, vectors: Floats, reasons: dict[int, str]) -> _Part:
    """Make records of a window; chunks that are known have no vector, and failed ones no row."""
    rows, good = window.rows, np.ones(len(window), np.bool_)
    places = np.flatnonzero(window.unknown)
    good[places[list(reasons)]] = False
    known = np.zeros((len(window), vectors.shape[1]), np.float32)
    known[places] = vectors
    made = records(
        rows["id"],
        rows["text"],
        known,
        scopes=scopes_of(rows),
        metadata_json=json_column(rows["metadata"]),
        dedup_keys=rows["key"],
    )
    if not window.unknown.all():
        place = made.schema.get_field_index("vector")
        flat = made["vector"].combine_chunks().flatten()
        masked = pa.FixedSizeListArray.from_arrays(
            flat, vectors.shape[1], mask=pa.array(~window.unknown)
        )
        made = made.set_column(place, made.schema.field(place), masked)
    for column in CHUNK_FIELDS:
        made = made.append_column(column, rows[column.name])
    return _Part(window, made if not reasons else made.filter(pa.array(good)), good)

"""Files that nodes have written, made the table's own in waves: one commit for many of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from memworker.failpoints import reach
from memworker.ingestion.committer import CommitThread
from memworker.ingestion.history import History
from memworker.ingestion.records import scopes_of
from memworker.ingestion.windows import Sieve, Window
from memworker.store import FACTS, Table, Written

WAVE_ROWS = 1 << 18
WAVE_FILES = 64
WAVE_S = 15.0


@dataclass(slots=True)
class _Wave:
    """What waits for a commit: the rows' ids and keys, and never their vectors."""

    files: list[Written] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    rows: int = 0
    since: float = 0.0


class Waves(CommitThread[Window, Sieve]):
    """Commits files in the order of the input, so that of equal ids the first wins."""

    def __init__(self, open_table: Callable[[], Table], sieve: Sieve, history: History) -> None:
        self._wave = _Wave()
        super().__init__(open_table, sieve, history)

    @property
    def _pending_rows(self) -> int:
        return self._wave.rows

    @property
    def _pending_since(self) -> float:
        return self._wave.since

    def _take(self, window: Window, outcome: str) -> None:
        wave = self._wave
        if not wave.rows:
            wave.since = self._outside.monotonic()
        wave.files.append(Written(outcome, _facts(window)))
        wave.windows.append(window)
        wave.rows += len(window)
        due = self._outside.monotonic() - wave.since >= WAVE_S
        if wave.rows >= WAVE_ROWS or len(wave.files) >= WAVE_FILES or due:
            self._commit()

    def _commit_pending(self) -> None:
        wave, self._wave = self._wave, _Wave()
        if not wave.rows:
            return
        if self._table is None:
            self._table = self._open_table()
        reach("before_commit")
        done = self._table.adopt(wave.files, on_conflict=self._sieve.on_conflict)
        reach("after_commit")
        self._counts.add(written=done.written, duplicates=done.duplicates)
        self._counts.table_version = done.version
        self._counts.last_commit = time.perf_counter()
        self._history.committed(self._table, wave.windows[-1].rows["ordinal"][-1].as_py() + 1)
        reach("after_journal")
        start = 0
        for window in wave.windows:
            end = start + len(window)
            inside = [row - start for row in done.conflicts if start <= row < end]
            self._sieve.refuse_conflicts(self._table, window, inside)
            start = end


def _facts(window: Window) -> pa.Table:
    rows, scopes = window.rows, scopes_of(window.rows)
    none = pa.array([""] * len(window), pa.string())
    columns = {
        "id": window.ids,
        "dedup_key": rows["key"],
        "metadata": rows["metadata"],
        **{name: scopes.get(name, none) for name in FACTS[3:]},
    }
    return pa.table(columns)

"""Commits finished windows on a thread, so that writing and embedding overlap."""

from __future__ import annotations

import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from memworker.failpoints import reach
from memworker.ingestion.history import History
from memworker.ingestion.records import scopes_of
from memworker.ingestion.report import Counts
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.windows import Sieve, Window
from memworker.pool import Floats, Outside, System
from memworker.store import Appended, OnConflict, Table, json_column, records

COMMIT_ROWS = 4096
COMMIT_S = 15.0

Write = Callable[[Table, pa.Table], Appended]
"""Commits rows to a table, and tells the positions of those that it refuses."""


class _Passed(Protocol):
    """What let windows through; it knows what becomes of those that cannot be written."""

    @property
    def counts(self) -> Counts: ...


W = TypeVar("W")
S = TypeVar("S", bound=_Passed)


@dataclass(slots=True)
class _Pending:
    windows: list[Window] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    rows: int = 0
    since: float = 0.0
    position: int = 0


class CommitThread(ABC, Generic[W, S]):
    """Gathers windows to commits of about `COMMIT_ROWS` rows or `COMMIT_S` seconds.

    Windows are committed in input order, so that of equal ids the first wins.
    The table is made at the first commit: a job without a good row makes none.
    """

    def __init__(
        self,
        open_table: Callable[[], Table],
        sieve: S,
        history: History,
        outside: Outside | None = None,
    ) -> None:
        self._outside = System() if outside is None else outside
        self._open_table = open_table
        self._table: Table | None = None
        self._sieve = sieve
        self._counts: Counts = sieve.counts
        self._history = history
        self._items: queue.Queue[tuple[W, Any] | None] = queue.Queue(maxsize=2)
        self._error: BaseException | None = None
        self._failed = False
        self._thread = self._outside.thread(self._run, "memworker-commit")
        self._thread.start()

    def put(self, window: W, outcome: Any) -> None:
        """Hand a finished window over, with its vectors or where they are.

        Raises what an earlier commit raised.
        """
        self._raise()
        self._items.put((window, outcome))

    def finish(self) -> Table | None:
        """Commit what is left and return the table, if there is one."""
        if self._thread.is_alive():
            self._items.put(None)
            self._join()
        self._raise()
        return self._table

    def _join(self) -> None:
        try:
            self._thread.join()
        except KeyboardInterrupt:
            # The lock and the journal go with the caller: a commit under way comes first.
            self._thread.join(COMMIT_S)
            raise

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback holds this frame, and all that the frames above it hold.
                del error

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Take what comes next, or commit what has waited long enough; False at the end."""
        try:
            item = self._items.get(timeout=self._patience())
        except queue.Empty:
            self._guard(self._commit)
            return True
        # After an error go on taking windows, or `put` would wait for ever.
        if not self._failed:
            self._guard(self._commit if item is None else partial(self._take, *item))
        return item is not None

    def _patience(self) -> float | None:
        if not self._pending_rows or self._failed:
            return None
        return max(0.0, self._pending_since + COMMIT_S - self._outside.monotonic())

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:  # raised again on the job's own thread
            self._error, self._failed = error, True

    def _commit(self) -> None:
        started = time.perf_counter()
        self._commit_pending()
        self._counts.add(write_s=time.perf_counter() - started)

    @property
    @abstractmethod
    def _pending_rows(self) -> int: ...
    @property
    @abstractmethod
    def _pending_since(self) -> float: ...
    @abstractmethod
    def _take(self, window: W, outcome: Any) -> None: ...
    @abstractmethod
    def _commit_pending(self) -> None: ...


class Committer(CommitThread[Window, Sieve]):
    """Commits rows by `write`; by default it appends, and leaves out or updates known ids."""

    def __init__(
        self,
        open_table: Callable[[], Table],
        sieve: Sieve,
        history: History,
        outside: Outside | None = None,
        write: Write | None = None,
    ) -> None:
        self._pending = _Pending()
        self._write = write or partial(_append, on_conflict=sieve.on_conflict)
        super().__init__(open_table, sieve, history, outside)

    @property
    def _pending_rows(self) -> int:
        return self._pending.rows

    @property
    def _pending_since(self) -> float:
        return self._pending.since

    def _take(self, window: Window, outcome: WindowVectors) -> None:
        good = np.ones(len(window), np.bool_)
        reasons, vectors = outcome.unstorable(), outcome.vectors
        good[list(reasons)] = False
        if not self._pending.rows:
            self._pending.since = self._outside.monotonic()
        self._pending.windows.append(window.keep(good))
        self._pending.vectors.append(vectors[good] if reasons else vectors)
        self._pending.rows += int(good.sum())
        # Windows come in input order: with this commit, all rows before `position` are settled.
        self._pending.position = window.rows["ordinal"][-1].as_py() + 1
        self._sieve.refusals.add(window.rejects(reasons))
        due = self._outside.monotonic() - self._pending.since >= COMMIT_S
        if self._pending.rows >= COMMIT_ROWS or due:
            self._commit()

    def _commit_pending(self) -> None:
        pending, self._pending = self._pending, _Pending()
        if not pending.rows:
            return
        if self._table is None:
            self._table = self._open_table()
            reach("after_create")
        batch = pa.concat_tables(
            [
                as_records(window, vectors)
                for window, vectors in zip(pending.windows, pending.vectors, strict=True)
            ]
        )
        reach("before_commit")
        done = self._write(self._table, batch)
        reach("after_commit")
        self._counts.add(
            written=done.written,
            duplicates=done.duplicates,
            updated=done.updated,
            conflicts=done.updated,
        )
        self._counts.table_version = done.version
        self._counts.last_commit = time.perf_counter()
        self._history.committed(self._table, pending.position)
        reach("after_journal")
        self._refuse_conflicts(self._table, pending.windows, done.conflicts)

    def _refuse_conflicts(self, table: Table, windows: list[Window], rows: tuple[int, ...]) -> None:
        start = 0
        for window in windows:
            inside = [row - start for row in rows if start <= row < start + len(window)]
            self._sieve.refuse_conflicts(table, window, inside)
            start += len(window)


def _append(table: Table, batch: pa.Table, *, on_conflict: OnConflict) -> Appended:
    return table.append(batch, on_conflict=on_conflict)


def as_records(window: Window, vectors: Floats) -> pa.Table:
    """Give the rows of a window as a table holds them."""
    return records(
        window.ids,
        window.texts,
        vectors,
        scopes=scopes_of(window.rows),
        metadata_json=json_column(window.rows["metadata"]),
        dedup_keys=window.rows["key"],
    )

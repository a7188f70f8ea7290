"""Maintenance: the indices of a table, and the upkeep that keeps it fast.

What a table deserves, and when, is said in policy.py alone. A Memory does what is due step by
step, in the background; `optimize` does all at once; and one index can be asked for by its column.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from memworker.errors import StoreError, StoreUnwritable, TableLocked, UsageError
from memworker.store import apart, lock
from memworker.store.cleanup import clean
from memworker.store.compaction import compact, gather
from memworker.store.indices import COLUMNS, build_index, indexed_columns
from memworker.store.lance import is_damage, lance_errors
from memworker.store.optimize import Optimized, Optimizing
from memworker.store.policy import KEEP_VERSIONS, Failures, Step, UpkeepNeeds, worth_an_index
from memworker.store.readers import Readers
from memworker.store.schema import has_chunks
from memworker.store.writelock import hold_writing
from memworker.store.writes import Writes

# Upkeep rests so many times as long as it worked, so that it never takes over the machine.
_REST = 9
# And so long where it has not come to its end.
_REST_S = 60.0
_CLEAN_EVERY_S = 60.0
_TEXT = (Step.INDEX, "text")

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tended:
    """What one call of `tend` did (None: nothing was due, or another process is at it)."""

    step: Step | None
    seconds: float


class Maintenance:
    """Tends one table. May be shared by threads; of all processes one tends it at a time."""

    def __init__(self, writes: Writes, readers: Readers) -> None:
        self._writes, self._handle, self._readers = writes, writes.handle, readers
        self._table = writes.table
        self._failures = Failures()
        # When each step has rested for long enough after it was done.
        self._rested_at: dict[Step, float] = {}
        # When what was written anew has been superseded for long enough.
        self._clean_at: float | None = None
        self._cleaned_at = float("-inf")
        self._has_text_index = False

    @contextmanager
    def hold(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[None]:
        """Hold the lock ``tend`` of compaction, indices and clean-ups. Raises TableLocked."""
        with hold_writing(self._table.db, self._table.name, "tend", timeout_s=timeout_s):
            yield

    # ── all at once ──

    def optimize(self, keep_versions: timedelta = KEEP_VERSIONS) -> Optimized:
        """Do each step that there is: see `Table.optimize`."""
        with self.hold():
            return Optimizing(self._writes, keep_versions).run().must_be_done(self._table.name)

    # ── one index ──

    def wants_index(self, column: str) -> bool:
        """Tell whether a column has no index, and there are rows enough to be worth one."""
        rows = self._read(self._handle.count_rows)
        return column in self._worth(int(rows)) and not self._is_indexed(column)

    def ensure_index(self, column: str, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> bool:
        """Build the index of a column when there is none; tell whether.

        `column` is vector, text, id, dedup_key, a scope's, or parent_id where there are chunks.
        Raises StoreError, TableLocked.
        """
        if column not in COLUMNS or column not in self._read(lambda: self._handle.schema.names):
            raise UsageError(f"{column!r} gets no index; those that do: {', '.join(COLUMNS)}")
        if self._is_indexed(column):
            return False
        lock.ensure_writable(self._table.db, self._table.name)
        with self.hold(timeout_s=timeout_s):
            # The holder of the lock before us may have built it.
            return not self._is_indexed(column) and build_index(self._writes, column)

    def attempt_text_index(self) -> None:
        """Build the text index if the lock is free now; a search must not fail by it."""
        if self._has_text_index or _TEXT in self._failures.resting():
            return
        try:
            with self._failures.noting(_TEXT):
                self.ensure_index("text", timeout_s=0.0)
            self._has_text_index = True
        except TableLocked:
            self._failures.forget(_TEXT)  # the holder of ``tend`` may be building it
        except StoreError as error:
            if not isinstance(error, StoreUnwritable):
                _log.warning("%s. Searches for words read row by row meanwhile", error)

    def index_bytes(self) -> int:
        """Estimate the memory that building the vector index takes now, on top of what is held."""
        return apart.index_bytes(int(self._read(self._handle.count_rows)), self._table.space.dim)

    # ── step by step ──

    def needs(self) -> UpkeepNeeds:
        """Return what the table needs for searches and commits to stay fast; under 1 ms."""
        return self._read(self._look)

    def due(self) -> bool:
        """Tell whether to call `tend` now: a step is due, and the rest after the last is over."""
        return self.needs().after(self._resting()) is not None

    def tend(self) -> Tended:
        """Do what is due first, if anything. For a background thread. Raises StoreError.

        Searches and commits go on meanwhile, but for some tens of milliseconds in which small
        fragments are gathered. Does nothing while another process tends. What has failed rests
        a while, so that the next call does something else.
        """
        try:
            with self.hold(timeout_s=0):
                return self._tend()
        except TableLocked:
            return Tended(None, 0.0)

    def _tend(self) -> Tended:
        began = time.monotonic()
        needs = self._look()
        due = needs.after(self._resting()) or needs.first
        if due is None:
            return Tended(None, 0.0)
        self._rested_at[due[0]] = began + _REST_S
        safe = True
        try:
            with self._failures.noting(due):
                self._do(*due)
        except Exception as error:
            # What is damaged in this version may be whole in an older one.
            safe = not is_damage(error)
            raise
        finally:
            took = time.monotonic() - began
            self._rested_at[due[0]] = began + took * (1 + _REST)
            if due[0] in (Step.REBUILD, Step.FOLD, Step.GATHER) and safe:
                self._clean_later()
        return Tended(due[0], took)

    def _resting(self) -> list[Step]:
        """Return the steps that rest: a dear one keeps no cheap one from being done."""
        now = time.monotonic()
        return [step for step, rested_at in self._rested_at.items() if now < rested_at]

    def _do(self, step: Step, column: str) -> None:
        with lance_errors(f"upkeep ({step}) of table {self._table.name!r}"):
            if step in (Step.INDEX, Step.REBUILD):
                build_index(self._writes, column)
            elif step is Step.CLEAN:
                self._clean_at = None
                if clean(self._writes, KEEP_VERSIONS).kept:
                    self._clean_later()
                self._cleaned_at = time.monotonic()
            elif step is Step.FOLD or not self._gather():
                compact(self._writes)
                # It reads each version there is: of many small commits there are thousands.
                if time.monotonic() - self._cleaned_at >= _CLEAN_EVERY_S:
                    clean(self._writes, KEEP_VERSIONS)
                    self._cleaned_at = time.monotonic()

    def _clean_later(self) -> None:
        # What is superseded meanwhile puts it off no longer: a writer may never pause.
        if self._clean_at is None:
            self._clean_at = time.monotonic() + KEEP_VERSIONS.total_seconds()

    def _gather(self) -> bool:
        needs = self._look()
        return gather(self._writes, needs.unindexed_rows if needs.indexed else None)

    def _look(self) -> UpkeepNeeds:
        stats = self._handle.stats()
        indices = self._handle.list_indices()
        rows = int(stats["num_rows"])
        covered = {column for each in indices for column in each.columns}
        vector = [each.num_segments or 1 for each in indices if each.columns == ["vector"]]
        return UpkeepNeeds(
            rows=rows,
            small_fragments=int(stats["fragment_stats"]["num_small_fragments"]),
            unindexed_rows=max((each.num_unindexed_rows or 0 for each in indices), default=0),
            segments=max(vector, default=0),
            missing=tuple(name for name in self._worth(rows) if name not in covered),
            indexed=bool(indices),
            leftover=self._clean_at is not None and time.monotonic() >= self._clean_at,
            failing=self._failures.resting(),
        )

    def _worth(self, rows: int) -> list[str]:
        return worth_an_index(rows, chunks=has_chunks(self._handle.schema))

    def _is_indexed(self, column: str) -> bool:
        return column in self._read(partial(indexed_columns, self._handle))

    def _read(self, read: Callable[[], T]) -> T:
        with lance_errors(f"reading table {self._table.name!r}"):
            return self._readers.ask(read)

"""Upkeep: what somebody does now and then, in the background, so that a table stays fast.

::

    commits ─► small fragments ─gather─► one fragment, not indexed ─fold─► indexed, compacted
                                                     every so many folds: the vector index anew

Searches are right at every moment: what no index covers is read row by row,
which costs 10 µs a row for words, and 0.1 ms a fragment for anything. Folding
is dearer than it looks: LanceDB writes the whole table and its indices again
for one new row (40 MB at 20,000 rows), and adds a part to the vector index,
each of which costs a search 0.7 ms. Hence three steps of different prices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from memworker.store import clock, index, lock, text
from memworker.store.cleanup import Cleaned, clean
from memworker.store.lance import lance_errors
from memworker.store.writes import CameFirst, Landed, Writes

# At 200,000 rows a BTREE takes a look-up by id or key from 10 ms to 2, an update from 30 to 8,
# a search in one user's rows from 14 to 9; each is built in 50 ms. BITMAP is no faster here and
# grows with the number of users. On the times, for superseded rows, an index gains nothing.
SCALAR_COLUMNS = ("id", "dedup_key", "user_id", "agent_id", "run_id")
SCALAR_MIN_ROWS = 5_000

FRAGMENTS_MAX = 32
SEGMENTS_MAX = 8
UNINDEXED_MIN = 1_000
_UNINDEXED_SHARE = 0.01

# Another program may still read a version that was superseded so long ago.
KEEP_VERSIONS = timedelta(minutes=5)
# Upkeep rests so many times as long as it worked, so that it never takes over the machine.
_REST = 9
# What has failed fails again, and says so each time.
_REST_AFTER_FAILURE_S = 60.0
_FOR_EVER = timedelta(days=36_500)
# LanceDB joins the rows of a merge in 300 MB.
_GATHER_BYTES = 64 * 2**20

Lock = Callable[[], AbstractContextManager[None]]


class Step(StrEnum):
    """One bounded piece of upkeep."""

    INDEX = "index"
    REBUILD = "rebuild"
    FOLD = "fold"
    GATHER = "gather"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How much a table needs upkeep. Cheap to ask for: under 1 ms.

    `missing` are the columns that are worth an index and have none.
    `segments` are the parts of the vector index. `leftover`: of the table or an
    index there is a former copy, which nobody can be reading any more.
    """

    rows: int
    small_fragments: int
    unindexed_rows: int
    segments: int
    missing: tuple[str, ...]
    leftover: bool = False

    @property
    def step(self) -> Step | None:
        """What should be done first, if anything."""
        if self.missing:
            return Step.INDEX
        if self.segments > SEGMENTS_MAX:
            return Step.REBUILD
        if self.unindexed_rows >= max(UNINDEXED_MIN, _UNINDEXED_SHARE * self.rows):
            return Step.FOLD
        if self.small_fragments >= FRAGMENTS_MAX:
            return Step.GATHER
        return Step.CLEAN if self.leftover else None


@dataclass(frozen=True, slots=True)
class Tended:
    """What one call of `tend` did (None: nothing was due, or another process is at it)."""

    step: Step | None
    seconds: float


class Keeper:
    """Does the upkeep of one table, a step at a time."""

    def __init__(self, writes: Writes, db: Path, distance: str, writing: Lock) -> None:
        self._writes, self._handle, self._db = writes, writes.handle, db
        self._distance, self._writing = distance, writing
        self._rested_at = 0.0
        # When what was written anew has been superseded for long enough.
        self._clean_at: float | None = None

    def look(self) -> Upkeep:
        """Return what the table needs."""
        stats = self._handle.stats()
        indices = self._handle.list_indices()
        rows = int(stats["num_rows"])
        covered = {column for each in indices for column in each.columns}
        vector = [each.num_segments or 1 for each in indices if each.columns == ["vector"]]
        return Upkeep(
            rows=rows,
            small_fragments=int(stats["fragment_stats"]["num_small_fragments"]),
            unindexed_rows=max((each.num_unindexed_rows or 0 for each in indices), default=0),
            segments=max(vector, default=0),
            missing=tuple(name for name in _worth_an_index(rows) if name not in covered),
            leftover=self._clean_at is not None and time.monotonic() >= self._clean_at,
        )

    def due(self) -> bool:
        """Tell whether something should be done, and the last step is rested from."""
        return time.monotonic() >= self._rested_at and self.look().step is not None

    def tend(self) -> Tended:
        """Do what is due first, if anything."""
        began = time.monotonic()
        self._rested_at = began + _REST_AFTER_FAILURE_S
        upkeep = self.look()
        if upkeep.step is not None:
            self._do(upkeep, upkeep.step)
        took = time.monotonic() - began
        if upkeep.step in (Step.REBUILD, Step.FOLD, Step.GATHER):
            self._clean_at = began + took + KEEP_VERSIONS.total_seconds()
        self._rested_at = began + took * (1 + _REST)
        return Tended(upkeep.step, took)

    def _do(self, upkeep: Upkeep, step: Step) -> None:
        with lance_errors(f"upkeep ({step}) of table {self._handle.name!r}"):
            if step is Step.INDEX:
                self._build(upkeep.missing[0])
            elif step is Step.CLEAN:
                self._clean_at = None
                clean(self._writes, self._db, KEEP_VERSIONS, self._writing)
            elif step is Step.REBUILD:
                self._build("vector")
            elif step is Step.FOLD or not self._gather(upkeep.unindexed_rows):
                fold(self._writes, self._db, KEEP_VERSIONS, self._writing)

    def _build(self, column: str) -> None:
        if column == "vector":
            index.build(self._writes, self._distance)
        elif column == "text":
            text.build(self._writes)
        else:
            build_scalar(self._writes, column)

    def _gather(self, unindexed_rows: int) -> bool:
        """Write the small fragments at the end again as one; tell whether that was possible.

        Under the commit lock, for tens of milliseconds: a merge that has to be tried
        again after somebody else's update would put the older row back.
        """
        addresses = self._handle.search().select(["_rowid"]).to_arrow()["_rowid"].to_numpy()
        newest = np.sort(addresses)[-unindexed_rows:] >> 32
        # Otherwise the small fragments are elsewhere, or are the whole table.
        if not FRAGMENTS_MAX // 2 <= len(np.unique(newest)) or not 0 < unindexed_rows < len(
            addresses
        ):
            return False
        cut = newest[0] << 32
        at_most = 2 * unindexed_rows + FRAGMENTS_MAX
        with self._writing():
            query = self._handle.search().where(f"_rowid >= {cut}").limit(at_most + 1)
            tail = query.to_arrow()
            # More rows: a compaction has given all of them higher addresses.
            if not 0 < tail.num_rows <= at_most or tail.nbytes > _GATHER_BYTES:
                return False
            self._write_again(tail)
        return True

    def _write_again(self, rows: pa.Table) -> None:
        def write() -> Landed:
            merge = self._handle.merge_insert("id").when_matched_update_all()
            return Landed(int(merge.execute(rows).version), rows.num_rows)

        def came(_: int) -> Landed:
            # Whether it came or not: the same rows once more change nothing.
            return write()

        doing = f"gathering rows of table {self._handle.name!r}"
        seen = int(self._handle.version)
        self._writes.commit(doing, write, came, seen=seen, spills=True)


def fold(writes: Writes, db: Path, keep_versions: timedelta, writing: Lock) -> Cleaned:
    """Compact fragments, bring the indices up to date, delete older versions.

    With the lock ``tend`` held. What was compacted is looked at, and in a durable table on
    the disk, before the files that it came from are deleted.
    """
    compact(writes, db, writing)
    return clean(writes, db, keep_versions, writing)


def compact(writes: Writes, db: Path, writing: Lock) -> None:
    """Write small fragments again as large ones, and bring the indices up to date.

    Without the commit lock, for it takes seconds at 200,000 rows. Only when updates of
    compacted rows have come first a few times, with it held. Raises StoreError, also when
    our clock is days ahead (see clock.py).
    """
    name = str(writes.handle.name)
    doing = f"compacting table {name!r}"
    # LanceDB also removes what it takes for leftovers of writers, by its age.
    clock.must_agree(lock.state_dir(db, name), doing)
    with writing():
        pass  # Whoever was in the middle of a commit, stopped for days even, has ended it.
    run = partial(writes.handle.optimize, cleanup_older_than=_FOR_EVER)
    try:
        writes.build(doing, run)
    except CameFirst:
        with writing():
            writes.build(doing, run)


def build_scalar(writes: Writes, column: str) -> None:
    """Build the index by which rows of one id, key or scope are found, replacing it."""
    from lancedb.index import BTree

    name = f"{column}_idx"
    create = partial(writes.handle.create_index, column, name=name, replace=True, config=BTree())
    writes.build(f"indexing {column} of table {writes.handle.name!r}", create)


def _worth_an_index(rows: int) -> list[str]:
    names = [*SCALAR_COLUMNS, "text"] if rows >= SCALAR_MIN_ROWS else []
    return [*names, "vector"] if rows >= index.INDEX_MIN_ROWS else names

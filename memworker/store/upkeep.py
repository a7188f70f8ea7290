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

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from memworker.errors import StoreError, TableLocked
from memworker.store import clock, index, text
from memworker.store.apart import Compaction, IndexBuild
from memworker.store.cleanup import clean
from memworker.store.lance import brief, is_damage, lance_errors
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
# What has failed is tried again after so long, twice as long each time.
_AGAIN_S = 60.0
_AGAIN_AT_MOST_S = 3600.0
# LanceDB joins the rows of a merge in 300 MB.
_GATHER_BYTES = 64 * 2**20

_log = logging.getLogger(__name__)


class Step(StrEnum):
    """One bounded piece of upkeep."""

    INDEX = "index"
    REBUILD = "rebuild"
    FOLD = "fold"
    GATHER = "gather"
    CLEAN = "clean"


Due: TypeAlias = tuple[Step, str]
"""A step, and the column that it is for, if it is for one."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How much a table needs upkeep. Cheap to ask for: under 1 ms.

    `missing` are the columns that are worth an index and have none; `failing` is
    what was tried lately, and failed.
    `segments` are the parts of the vector index. `leftover`: of the table or an
    index there is a former copy, which nobody can be reading any more.
    """

    rows: int
    small_fragments: int
    unindexed_rows: int
    segments: int
    missing: tuple[str, ...]
    leftover: bool = False

    failing: frozenset[Due] = frozenset()

    @property
    def step(self) -> Step | None:
        """What should be done first, if anything."""
        return self.first[0] if self.first else None

    @property
    def first(self) -> Due | None:
        """The same with the column that it is for; what has failed lately lets others pass."""
        return next((due for due in self._due() if due not in self.failing), None)

    def _due(self) -> Iterator[Due]:
        yield from ((Step.INDEX, column) for column in self.missing)
        if self.segments > SEGMENTS_MAX:
            yield Step.REBUILD, "vector"
        if self.unindexed_rows >= max(UNINDEXED_MIN, _UNINDEXED_SHARE * self.rows):
            yield Step.FOLD, ""
        if self.small_fragments >= FRAGMENTS_MAX:
            yield Step.GATHER, ""
        if self.leftover:
            yield Step.CLEAN, ""


@dataclass(frozen=True, slots=True)
class Tended:
    """What one call of `tend` did (None: nothing was due, or another process is at it)."""

    step: Step | None
    seconds: float


class Keeper:
    """Does the upkeep of one table, a step at a time."""

    def __init__(self, writes: Writes) -> None:
        self._writes, self._handle = writes, writes.handle
        self._rested_at = 0.0
        # What has failed: how often in a row, and when it is tried again.
        self._failed: dict[Due, tuple[int, float]] = {}
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
            missing=tuple(name for name in worth_an_index(rows) if name not in covered),
            leftover=self._clean_at is not None and time.monotonic() >= self._clean_at,
            failing=frozenset(
                due for due, (_, again_at) in self._failed.items() if time.monotonic() < again_at
            ),
        )

    def due(self) -> bool:
        """Tell whether something should be done, and the last step is rested from."""
        return time.monotonic() >= self._rested_at and self.look().step is not None

    def tend(self) -> Tended:
        """Do what is due first, if anything. Raises StoreError; then the next is something else.

        What has failed is tried again after a minute, then after two, and so on.
        """
        began = time.monotonic()
        self._rested_at = began + _AGAIN_S
        due = self.look().first
        if due is None:
            self._rested_at = began
            return Tended(None, 0.0)
        failures, _ = self._failed.pop(due, (0, 0.0))
        safe = True
        try:
            self._do(*due)
        except Exception as error:
            wait_s = min(_AGAIN_S * 2**failures, _AGAIN_AT_MOST_S)
            self._failed[due] = (failures + 1, time.monotonic() + wait_s)
            # What is damaged in this version may be whole in an older one.
            safe = not is_damage(error)
            raise
        finally:
            took = time.monotonic() - began
            self._rested_at = began + took * (1 + _REST)
            if due[0] in (Step.REBUILD, Step.FOLD, Step.GATHER) and safe:
                self._clean_at = began + took + KEEP_VERSIONS.total_seconds()
        return Tended(due[0], took)

    def _do(self, step: Step, column: str) -> None:
        with lance_errors(f"upkeep ({step}) of table {self._handle.name!r}"):
            if step in (Step.INDEX, Step.REBUILD):
                build_index(self._writes, column)
            elif step is Step.CLEAN:
                self._clean_at = None
                clean(self._writes, KEEP_VERSIONS)
            elif step is Step.FOLD or not self._gather(self.look().unindexed_rows):
                compact(self._writes)
                clean(self._writes, KEEP_VERSIONS)

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
        with self._writes.lock.take():
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


def compact(writes: Writes) -> list[str]:
    """Write small fragments again as large ones, and bring the indices up to date.

    Without the commit lock, for it takes seconds at 200,000 rows. Only when updates of
    compacted rows have come first a few times, with it held. An index that cannot be read is
    dropped, for it would never be brought up to date; returns the columns of those. Raises
    StoreError, also when our clock is days ahead (see clock.py).
    """
    before = _unindexed(writes)
    failed: StoreError | None = None
    try:
        _compact(writes)
        # LanceDB passes over an index that it cannot read, and says so nowhere.
        after = _unindexed(writes)
        doubtful = [name for name, rows in before.items() if 0 < rows <= after.get(name, 0)]
    except TableLocked:
        raise
    except StoreError as error:
        failed, doubtful = error, list(before)
    dropped = _drop_unreadable(writes, doubtful)
    if dropped:
        _compact(writes)
    elif failed is not None:
        raise failed
    return dropped


def _unindexed(writes: Writes) -> dict[str, int]:
    """Return how many rows each index does not cover."""
    with lance_errors(f"reading table {writes.handle.name!r}"):
        indices = writes.handle.list_indices()
    return {each.name: int(each.num_unindexed_rows or 0) for each in indices}


def _compact(writes: Writes) -> None:
    doing = f"compacting table {writes.table.name!r}"
    # LanceDB also removes what it takes for leftovers of writers, by its age.
    clock.must_agree(writes.table.made_state(), doing)
    with writes.lock.take():
        pass  # Whoever was in the middle of a commit, stopped for days even, has ended it.
    try:
        writes.build(doing, Compaction())
    except CameFirst:
        with writes.lock.take():
            writes.build(doing, Compaction())


def _drop_unreadable(writes: Writes, names: list[str]) -> list[str]:
    """Drop those of the indices that cannot be read; return their columns."""
    columns = []
    for each in [one for one in writes.handle.list_indices() if one.name in names]:
        try:
            writes.handle.prewarm_index(each.name)
        except Exception as error:
            doing = f"dropping index {each.name} of table {writes.handle.name!r}"
            writes.build(doing, partial(writes.handle.drop_index, each.name))
            columns += each.columns
            _log.warning(
                "index %s of table %r cannot be read (%s), and was dropped to be built anew",
                each.name,
                writes.handle.name,
                brief(error),
            )
    return columns


def build_index(writes: Writes, column: str) -> bool:
    """Build the index of a column, replacing it; tell whether it is one of ours.

    Raises StoreError; then searches read what is not indexed row by row.
    """
    if column == "vector":
        index.build(writes)
    elif column == "text":
        text.build(writes)
    elif column in SCALAR_COLUMNS:
        build_scalar(writes, column)
    else:
        return False
    return True


def build_scalar(writes: Writes, column: str) -> None:
    """Build the index by which rows of one id, key or scope are found, replacing it."""
    work = IndexBuild(column, f"{column}_idx", "BTree")
    writes.build(f"indexing {column} of table {writes.handle.name!r}", work)


def worth_an_index(rows: int) -> list[str]:
    names = [*SCALAR_COLUMNS, "text"] if rows >= SCALAR_MIN_ROWS else []
    return [*names, "vector"] if rows >= index.INDEX_MIN_ROWS else names

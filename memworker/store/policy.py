"""What a table deserves, and when: indices, compaction, clean-ups; how long what failed rests.

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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

# Measured on 2 cores at 384 dims, 10 hits: an exact scan takes 40 ms at 50,000 rows and
# 100 to 700 ms at 200,000. IVF_SQ is built in 0.3 s and 3 s, answers in 4 and 11 ms at
# recall@10 1.0 (clustered vectors); IVF_PQ took 13 s at 50,000 and had 0.81 with refinement.
INDEX_MIN_ROWS = 50_000
# At 200,000 rows a BTREE takes a look-up by id or key from 10 ms to 2, an update from 30 to 8,
# a search in one user's rows from 14 to 9; each is built in 50 ms. BITMAP is no faster here and
# grows with the number of users. On the times, for superseded rows, an index gains nothing.
SCALAR_COLUMNS = ("id", "dedup_key", "user_id", "agent_id", "run_id")
# By which an edited text finds its chunks.
CHUNK_SCALAR_COLUMNS = ("parent_id",)
SCALAR_MIN_ROWS = 5_000

FRAGMENTS_MAX = 32
SEGMENTS_MAX = 8
UNINDEXED_MIN = 1_000
_UNINDEXED_SHARE = 0.01

KEEP_VERSIONS = timedelta(minutes=5)
"""A version that was superseded so shortly ago may still be read by another program."""

# What has failed is tried again after so long, twice as long each time.
_AGAIN_S = 60.0
_AGAIN_AT_MOST_S = 3600.0


class Step(StrEnum):
    """One bounded piece of upkeep."""

    INDEX = "index"
    REBUILD = "rebuild"
    FOLD = "fold"
    GATHER = "gather"
    CLEAN = "clean"


DueStep: TypeAlias = tuple[Step, str]
"""A step, and the column that it is for, if it is for one."""


@dataclass(frozen=True, slots=True)
class UpkeepNeeds:
    """How much a table needs upkeep. Cheap to ask for: under 1 ms.

    `missing` are the columns that are worth an index and have none; `failing` is
    what was tried lately, and failed.
    `indexed`: there is an index, of whatever column.
    `segments` are the parts of the vector index. `leftover`: of the table or an
    index there is a former copy, superseded long enough to be deleted.
    """

    rows: int
    small_fragments: int
    unindexed_rows: int
    segments: int
    missing: tuple[str, ...]
    leftover: bool = False
    indexed: bool = True

    failing: frozenset[DueStep] = frozenset()

    @property
    def step(self) -> Step | None:
        """The step to do first, if any is due."""
        return self.first[0] if self.first else None

    @property
    def first(self) -> DueStep | None:
        """The same with its column; a step that failed lately lets others go first."""
        return self.after(())

    def after(self, resting: Collection[Step]) -> DueStep | None:
        """Return what is due first while some steps rest."""
        due = (each for each in self._due() if each not in self.failing)
        return next((each for each in due if each[0] not in resting), None)

    def _due(self) -> Iterator[DueStep]:
        yield from ((Step.INDEX, column) for column in self.missing)
        if self.segments > SEGMENTS_MAX:
            yield Step.REBUILD, "vector"
        if self.unindexed_rows >= max(UNINDEXED_MIN, _UNINDEXED_SHARE * self.rows):
            yield Step.FOLD, ""
        if self.small_fragments >= FRAGMENTS_MAX:
            yield Step.GATHER, ""
        if self.leftover:
            yield Step.CLEAN, ""


def worth_an_index(rows: int, *, chunks: bool) -> list[str]:
    """Return the columns that want an index in a table of so many rows, with chunks or without."""
    scalar = SCALAR_COLUMNS + CHUNK_SCALAR_COLUMNS if chunks else SCALAR_COLUMNS
    names = [*scalar, "text"] if rows >= SCALAR_MIN_ROWS else []
    return [*names, "vector"] if rows >= INDEX_MIN_ROWS else names


class Failures:
    """Steps that have failed: each rests a minute, then two, up to an hour, while others pass."""

    def __init__(self) -> None:
        # How often in a row, and when it is tried again.
        self._failed: dict[DueStep, tuple[int, float]] = {}

    def resting(self) -> frozenset[DueStep]:
        """Return the steps that are not to be tried now."""
        now = time.monotonic()
        return frozenset(due for due, (_, again_at) in self._failed.items() if now < again_at)

    @contextmanager
    def noting(self, due: DueStep) -> Iterator[None]:
        """Run a step in this context: an exception is counted as a failure, success clears it."""
        times, _ = self._failed.pop(due, (0, 0.0))
        try:
            yield
        except Exception:
            wait_s = min(_AGAIN_S * 2**times, _AGAIN_AT_MOST_S)
            self._failed[due] = (times + 1, time.monotonic() + wait_s)
            raise

    def forget(self, due: DueStep) -> None:
        """Clear a step's failures, so that it may be tried at once."""
        self._failed.pop(due, None)

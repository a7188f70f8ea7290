"""Which rows a table already holds: 16 bytes a row, in sorted runs.

::

    find(8192 hashes) ──► newest run ─► older run ─► … ─► oldest, largest run
                          (a hit in a newer run hides older ones of that id)

Runs grow geometrically, as in a log-structured merge tree: a batch becomes a
run, and neighbours of like size are merged, so a million rows added by
batches of 8,192 are at most a handful of runs, each row moved a few times.
Long runs are kept in files (see hashruns.py), so that memory does not grow with the rows.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.store.hashruns import Run, merge
from memworker.store.keys import Hashes, hash_rows

Statuses = npt.NDArray[np.uint8]


class RowStatus(IntEnum):
    """What a table knows of a row with this id."""

    NEW = 0
    DUPLICATE = 1
    CONFLICT = 2


class KnownIds:
    """Hashes of the ids, and of id and dedup key together, of all rows of a table.

    A row is called DUPLICATE on 128 equal bits. One that agrees in its id's 64
    bits only may be a collision: `find` calls it CONFLICT, and the caller
    looks it up. The seed is random, so nobody can prepare ids that collide. `folder` is
    where long runs may lie.
    """

    def __init__(self, seed: int | None = None, folder: Path | None = None) -> None:
        self._folder = folder
        self._seed = secrets.randbits(64) if seed is None else seed
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def hash(self, ids: pa.Array, dedup_keys: pa.Array) -> tuple[Hashes, Hashes]:
        """Return the two hashes of each row that `find` and `add` take."""
        return hash_rows(ids, dedup_keys, self._seed)

    def find(self, keys: Hashes, records: Hashes) -> Statuses:
        """Return a RowStatus a row; CONFLICT is not yet confirmed."""
        # Sorted questions walk through a run's cache lines once instead of at random.
        order = np.argsort(keys)
        keys, records = keys[order], records[order]
        found = np.zeros(len(keys), np.uint8)
        for run_keys, run_records in reversed(self._runs):
            at = np.searchsorted(run_keys, keys)
            at[at == len(run_keys)] = 0
            hit = np.flatnonzero((run_keys[at] == keys) & (found == RowStatus.NEW))
            same = run_records[at[hit]] == records[hit]
            found[hit] = np.where(same, RowStatus.DUPLICATE, RowStatus.CONFLICT)
        statuses = np.empty_like(found)
        statuses[order] = found
        return statuses

    def add(self, keys: Hashes, records: Hashes) -> None:
        """Remember rows; of equal ids the ones added last count."""
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        self._runs.append((keys[order], records[order]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(merge(older, newer, self._folder))

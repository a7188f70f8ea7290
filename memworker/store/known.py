"""Which rows a table already holds: 16 bytes a row, in sorted runs (see sortedruns.py).

Long runs are kept in files, so that memory does not grow with the rows.
"""

from __future__ import annotations

import secrets
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.store.keys import Hashes, hash_rows, hash_texts
from memworker.store.sortedruns import SortedRuns

Statuses = npt.NDArray[np.uint8]


class IdStatus(IntEnum):
    """What a table knows of a row with this id."""

    NEW = 0
    DUPLICATE = 1
    CONFLICT = 2
    """It is there with another text, or other metadata."""
    ELSEWHERE = 3
    """It is there in another scope."""


class KnownIds:
    """Hashes of the ids, and of id, dedup key and metadata together, of all rows of a table.

    A row is called DUPLICATE on 128 equal bits. One that agrees in its id's 64
    bits only may be a collision, or its metadata written in another way: `find` calls it
    CONFLICT, and the caller looks it up. The seed is random, so no input can prepare ids
    that collide. `folder` is where long runs may lie.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._seed = secrets.randbits(64)
        self._records = SortedRuns(np.uint64, folder)
        self._parents = SortedRuns(np.bool_, folder)

    def hash(
        self,
        ids: pa.Array,
        dedup_keys: pa.Array,
        metadata: pa.Array | None = None,
        places: pa.Array | None = None,
    ) -> tuple[Hashes, Hashes]:
        """Return the two hashes of each row that `find` and `add` take."""
        return hash_rows(ids, dedup_keys, self._seed, metadata, places)

    def find(self, keys: Hashes, records: Hashes) -> Statuses:
        """Return an IdStatus a row; CONFLICT is not yet confirmed."""
        there, known = self._records.find(keys)
        status = np.where(known == records, IdStatus.DUPLICATE, IdStatus.CONFLICT)
        return np.where(there, status, IdStatus.NEW).astype(np.uint8)

    def add(self, keys: Hashes, records: Hashes) -> None:
        """Add rows; of equal ids the ones added last count."""
        self._records.add(keys, records)

    def add_parents(self, parents: pa.Array) -> None:
        """Note that there are chunks of these texts; nulls are none."""
        hashes = hash_texts(parents.drop_null().unique(), self._seed)
        fresh = hashes[~self._parents.find(hashes)[0]]
        self._parents.add(fresh, np.ones(len(fresh), np.bool_))

    def has_chunks_of(self, parents: pa.Array) -> npt.NDArray[np.bool_]:
        """Tell of which texts there may be chunks: of all of which there are, and hardly more."""
        return self._parents.find(hash_texts(parents, self._seed))[0]

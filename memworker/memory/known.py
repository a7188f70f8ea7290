"""Which memories cannot be there yet, so that adding new ones looks nothing up.

A look-up reads the whole column of keys; the hashes of all keys, once read, say of
nearly every new key that it is in no row. That holds for one version of the table:
after a commit of another process it is the look-up again, until this one has had
two turns in a row.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from memworker.store import Change, Hashes, SortedRuns


class KnownKeys:
    """The dedup keys that may be in the table; to be asked within a change of it.

    Those of a large table lie in a file without a name in `folder` (see store/sortedruns.py).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        # No input can prepare keys whose hashes collide, which would each cost a look-up.
        self._seed = secrets.randbits(64)
        self._keys = SortedRuns(np.bool_)
        self._version = -1
        self._last_own = -1

    def possible(self, change: Change, keys: list[str]) -> list[str]:
        """Return those of the keys that may be in the table; all others are certainly not."""
        if change.version != self._version:
            if change.version != self._last_own:
                return keys
            self._load(change)
        if not keys:
            return keys
        there, _ = self._keys.find(self._hashes(keys))
        return [keys[at] for at in np.flatnonzero(there).tolist()]

    def committed(self, before: int, after: int, keys: list[str]) -> None:
        """Note that a change made version `after` of `before` by writing rows with these keys."""
        self._last_own = after
        # Between any other two versions someone else has written.
        if before == self._version and after in (before, before + 1):
            self._version = after
            self._add(self._hashes(keys))

    def _load(self, change: Change) -> None:
        self._keys = SortedRuns(np.bool_, self._folder)
        for batch in change.scan(["dedup_key"]):
            self._add(self._hashes(batch["dedup_key"].to_pylist()))
        self._version = change.version

    def _add(self, hashes: Hashes) -> None:
        self._keys.add(hashes, np.ones(len(hashes), np.bool_))

    def _hashes(self, keys: list[str]) -> Hashes:
        # Not by Arrow: for the one key of a lone add that took ten times as long.
        found = (xxh3_64_intdigest(key.encode(), self._seed) for key in keys)
        return np.fromiter(found, np.uint64, len(keys))

"""A map from keys to values in sorted runs, the long ones in files without a name.

::

    find(8192 keys) ──► newest run ─► older run ─► … ─► oldest, largest run
                        (a hit in a newer run hides older ones of that key)

Runs grow geometrically, as in a log-structured merge tree: a batch becomes a
run, and neighbours of like size are merged, so a million rows added by
batches of 8,192 are at most a handful of runs, each row moved a few times.

The file of a long run holds its keys, sorted, and then their values. It is written whole, then
mapped to be read: its pages are the system's, which takes them back where memory is short. It
goes with the arrays over it, or with its process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = tuple[Column, Column]

# 4 MiB of ids. What is shorter is merged more often, and is little.
SPILLED_ROWS = 1 << 18
_PIECE_ROWS = 1 << 16


class SortedRuns:
    """Values by key; of equal keys the ones added last count. `folder`: where long runs may lie."""

    def __init__(self, values: npt.DTypeLike, folder: Path | None = None) -> None:
        self._values, self._folder = values, folder
        self._runs: list[Run] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def find(self, keys: Column) -> tuple[npt.NDArray[np.bool_], Column]:
        """Return which keys are there, and their values; those of the others say nothing."""
        # Sorted questions walk through a run's cache lines once instead of at random.
        order = np.argsort(keys)
        keys = keys[order]
        there, values = np.zeros(len(keys), bool), np.zeros(len(keys), self._values)
        for run_keys, run_values in reversed(self._runs):
            at = np.searchsorted(run_keys, keys)
            at[at == len(run_keys)] = 0
            hit = np.flatnonzero((run_keys[at] == keys) & ~there)
            there[hit], values[hit] = True, run_values[at[hit]]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return there[back], values[back]

    def add(self, keys: Column, values: Column) -> None:
        """Remember values; of equal keys in one call the first counts."""
        if not len(keys):
            return
        order = np.argsort(keys, kind="stable")
        self._runs.append((keys[order], values[order]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(self._merge(older, newer))

    def _merge(self, older: Run, newer: Run) -> Run:
        if self._folder is not None and len(older[0]) + len(newer[0]) >= SPILLED_ROWS:
            try:
                return _spilled(older, newer, self._folder)
            except OSError:
                pass  # a full disk must not end a job that has memory enough
        return _merged(older, newer)


def _spilled(older: Run, newer: Run, folder: Path) -> Run:
    rows, written = len(older[0]) + len(newer[0]), 0
    widths = [column.itemsize for column in newer]
    values_at = rows * widths[0]
    with tempfile.TemporaryFile(dir=folder, prefix=".known-", buffering=0) as file:
        for keys, values in _pieces(older, newer):
            # Written, not through a map: a full disk is an error here, and there a SIGBUS.
            _write(file.fileno(), keys, written * widths[0])
            _write(file.fileno(), values, values_at + written * widths[1])
            written += len(keys)
        mapped = mmap.mmap(file.fileno(), rows * sum(widths), access=mmap.ACCESS_READ)
    keys = np.frombuffer(mapped, newer[0].dtype, rows)
    return keys, np.frombuffer(mapped, newer[1].dtype, rows, values_at)


def _pieces(older: Run, newer: Run) -> Iterator[Run]:
    """Merge a piece of the older run at a time, with what of the newer belongs before its end."""
    taken = 0
    for start in range(0, len(older[0]), _PIECE_ROWS):
        piece = older[0][start : start + _PIECE_ROWS], older[1][start : start + _PIECE_ROWS]
        end = int(np.searchsorted(newer[0], piece[0][-1], side="right"))
        yield _merged(piece, (newer[0][taken:end], newer[1][taken:end]))
        taken = end
    if taken < len(newer[0]):
        yield newer[0][taken:], newer[1][taken:]


def _merged(older: Run, newer: Run) -> Run:
    # "left" puts a newer row before the older ones of its key.
    at = np.searchsorted(older[0], newer[0], side="left") + np.arange(len(newer[0]))
    from_older = np.ones(len(older[0]) + len(newer[0]), bool)
    from_older[at] = False
    keys = _interleave(older[0], newer[0], at, from_older)
    values = _interleave(older[1], newer[1], at, from_older)
    return keys, values


def _interleave(
    older: Column, newer: Column, at: npt.NDArray[np.int64], from_older: npt.NDArray[np.bool_]
) -> Column:
    merged = np.empty(len(from_older), newer.dtype)
    merged[at] = newer
    merged[from_older] = older
    return merged


def _write(fd: int, column: Column, offset: int) -> None:
    left = np.ascontiguousarray(column).view(np.uint8).data
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done

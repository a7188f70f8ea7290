"""Long sorted runs of hashes in files without a name, so that memory does not grow with them.

::

    keys     uint64[n]  sorted
    records  uint64[n]  in the order of the keys

The file is written whole, then mapped to be read: its pages are the system's, which takes
them back where memory is short. It goes with the arrays over it, or with its process.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from memworker.store.keys import Hashes

Run: TypeAlias = tuple[Hashes, Hashes]

# 4 MiB. What is shorter is merged more often, and is little.
SPILLED_ROWS = 1 << 18
_PIECE_ROWS = 1 << 16
_WIDTH = 8


def merge(older: Run, newer: Run, folder: Path | None) -> Run:
    """Merge two runs; of equal keys the newer come first. A long run goes to a file of `folder`.

    Without a folder, or where nothing can be written there, it stays in memory.
    """
    if folder is not None and len(older[0]) + len(newer[0]) >= SPILLED_ROWS:
        try:
            return _spilled(older, newer, folder)
        except OSError:
            pass  # a full disk must not end a job that has memory enough
    return _merged(older, newer)


def _spilled(older: Run, newer: Run, folder: Path) -> Run:
    rows, written = len(older[0]) + len(newer[0]), 0
    with tempfile.TemporaryFile(dir=folder, prefix=".known-", buffering=0) as file:
        for keys, records in _pieces(older, newer):
            # Written, not through a map: a full disk is an error here, and there a SIGBUS.
            _write(file.fileno(), keys, written * _WIDTH)
            _write(file.fileno(), records, (rows + written) * _WIDTH)
            written += len(keys)
        mapped = mmap.mmap(file.fileno(), 2 * rows * _WIDTH, access=mmap.ACCESS_READ)
    keys = np.frombuffer(mapped, np.uint64, rows)
    return keys, np.frombuffer(mapped, np.uint64, rows, rows * _WIDTH)


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
    records = _interleave(older[1], newer[1], at, from_older)
    return keys, records


def _interleave(
    older: Hashes, newer: Hashes, at: npt.NDArray[np.int64], from_older: npt.NDArray[np.bool_]
) -> Hashes:
    merged = np.empty(len(from_older), np.uint64)
    merged[at] = newer
    merged[from_older] = older
    return merged


def _write(fd: int, hashes: Hashes, offset: int) -> None:
    left = np.ascontiguousarray(hashes).data.cast("B")
    while left:
        done = os.pwrite(fd, left, offset)
        left, offset = left[done:], offset + done

"""Where LanceDB puts what does not fit into memory: beside the table, and not in TMPDIR.

For an index, a compaction or a merge LanceDB makes folders of random names in TMPDIR, which
stay there when the process is killed. It has no setting for another place, but it looks up TMPDIR
each time. So for the time of such a call the variable names a folder of ours, which the next
process removes if this one dies. It is set as C code sees it, not in `os.environ`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from memworker.locks import Busy, Scratch, sweep

FOLDER = "tmp"
_VARIABLE = b"TMPDIR"


@contextmanager
def spilling_beside(state: Path) -> Iterator[None]:
    """Let LanceDB spill into the folder of a table's state (see `lock.state_dir`) meanwhile.

    Where no folder can be made there, it spills where it would.
    """
    place = _of_process(os.getpid())
    place.enter(state / FOLDER)
    try:
        yield
    finally:
        place.leave()


@contextmanager
def folder_beside(state: Path) -> Iterator[Path | None]:
    """Give a folder for what a process that we start spills; None where none can be made."""
    scratch = None
    with suppress(OSError, Busy):
        scratch = Scratch((state / FOLDER).absolute())
    try:
        yield scratch.path if scratch else None
    finally:
        if scratch is not None:
            scratch.remove()


def clear(state: Path) -> None:
    """Remove what killed processes have left beside a table."""
    sweep(state / FOLDER)


class _TempDir:
    """The one value that TMPDIR has for a process; calls that overlap share it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._within = 0
        self._scratch: Scratch | None = None
        # Holds the interpreter's lock, as os.putenv does: no other thread changes a variable now.
        self._libc = ctypes.PyDLL(None)

    def enter(self, home: Path) -> None:
        with self._mutex:
            self._within += 1
            if self._scratch is None:
                with suppress(OSError, Busy):
                    self._scratch = Scratch(home.absolute())
                    self._set(os.fsencode(self._scratch.path))

    def leave(self) -> None:
        with self._mutex:
            self._within -= 1
            if not self._within and self._scratch is not None:
                # Not unset where it was not set: other threads may be looking variables up.
                self._set(os.fsencode(os.environ.get("TMPDIR") or "/tmp"))
                self._scratch.remove()
                self._scratch = None

    def _set(self, value: bytes) -> None:
        self._libc.setenv(_VARIABLE, value, 1)


@lru_cache(maxsize=1)
def _of_process(_pid: int) -> _TempDir:
    # By pid: what a parent was doing is not a forked child's to end.
    return _TempDir()

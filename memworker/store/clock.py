"""The file system's own clock: what a file's age is measured by, and whether ours agrees with it.

Processes and machines that share a table may have clocks that are days apart. The times of
files are given by one clock, that of the file system, and are compared with nothing else.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memworker.errors import StoreError, StoreUnwritable
from memworker.store.objects import ObjectPath
from memworker.store.places import Folder

_DAY_S = 86_400.0
# LanceDB takes a file that no version names for a leftover when it is older than 7 days by the
# clock of the process that compacts. So much of that may be our clock's error.
MAX_AHEAD_S = _DAY_S


def now(folder: Folder) -> float:
    """Return the time by the clock of what holds a folder, as files are stamped there."""
    if isinstance(folder, ObjectPath):
        return _stamped(folder)
    with _new_file(folder) as fd:
        return os.fstat(fd).st_mtime


def ahead_s(folder: Folder) -> float:
    """Return by how many seconds this process's clock is ahead of the file system's."""
    if isinstance(folder, ObjectPath):
        return time.time() - _stamped(folder)
    with _new_file(folder) as fd:
        theirs, ours = os.fstat(fd).st_mtime_ns, time.time_ns()
        # Both read back from the file, so that whatever changes times in between changes both.
        os.utime(fd, ns=(ours, ours))
        return (os.fstat(fd).st_mtime_ns - theirs) / 1e9


def must_agree(folder: Folder, doing: str) -> None:
    """Raise StoreError where what others are writing would look days old to this process."""
    ahead = ahead_s(folder)
    if ahead > MAX_AHEAD_S:
        raise StoreError(
            f"{doing} is left undone: the clock of this process is {ahead / _DAY_S:.1f} days ahead"
            f" of that of the file system of {folder}, so that files which others are writing at"
            " this moment would be taken for old leftovers and removed. Set the clock, and try"
            " again, or do it from another machine"
        )


def _stamped(folder: ObjectPath) -> float:
    try:
        (folder / "clock").write_bytes(b"")
        return (folder / "clock").lstat().st_mtime
    except OSError as error:
        raise StoreUnwritable(
            f"cannot write to {folder}: {error.strerror or error}; look at the storage options and"
            " the rights they give"
        ) from error


@contextmanager
def _new_file(folder: Path) -> Iterator[int]:
    try:
        # Without a name where the system can, so that a kill leaves no file behind.
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file.fileno()
    except OSError as error:
        raise StoreUnwritable(
            f"no file can be made in {folder}: {error.strerror or error}; make room, or change its"
            " permissions"
        ) from error

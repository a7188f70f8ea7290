"""Folders of a process's own for files that no other needs: removed by it, or after its death.

::

    HOME/17f3….lock     held for as long as the folder is used
    HOME/17f3…/         removed by the next process to get the lock: its own is gone then
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from memworker.locks.filelock import Busy, FileLock


class Scratch:
    """A new folder below `home`, of this process alone until `remove`. Raises OSError.

    `orphaned` is called with each folder whose process is gone, before that is removed.
    """

    def __init__(self, home: Path, orphaned: Callable[[Path], None] | None = None) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        sweep(home, patient=True, orphaned=orphaned)
        self.path = home / secrets.token_hex(8)
        self._lock = FileLock(_lock_of(self.path))
        self._lock.acquire()
        try:
            self.path.mkdir(mode=0o700)
        except BaseException:
            self._lock.release()
            raise

    def remove(self) -> None:
        """Remove the folder, with all that is in it; what cannot be, is left to the next sweep."""
        with self._lock, contextlib.suppress(OSError):
            _remove(self.path)


def sweep(
    home: Path, *, patient: bool = False, orphaned: Callable[[Path], None] | None = None
) -> None:
    """Remove the folders below `home` whose processes are gone; what cannot be, stays.

    Only when `patient` is a process on another machine waited for that may be dead.
    """
    try:
        names = {name.removesuffix(_SUFFIX) for name in os.listdir(home) if _is_ours(name)}
    except OSError:
        return
    for name in names:
        lock = FileLock(_lock_of(home / name))
        with contextlib.suppress(Busy, OSError), lock:
            lock.acquire(patient=patient)
            if orphaned is not None:
                orphaned(home / name)
            _remove(home / name)


_SUFFIX = ".lock"


def _is_ours(name: str) -> bool:
    stem = name.removesuffix(_SUFFIX)
    return len(stem) == 16 and all(letter in "0123456789abcdef" for letter in stem)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _SUFFIX)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        # With the lock held, and the folder first: a lock without a folder is swept as well.
        for path in folder.parent.glob(f"{folder.name}{_SUFFIX}*"):
            path.unlink(missing_ok=True)

"""The locks of a table: who may write, ingest, tend or clean up, and who reads for long.

``commit``: one writer at a time, held for the time of a commit. ``job``: one
ingest at a time, held for the whole run. ``tend``: one that compacts, indexes or cleans
up, for as long as that takes. ``read``: shared by those who read one version in many
steps, and taken alone to delete versions. ``apart``: shared by the child processes of the
holder of ``tend``, which may outlive it by a moment. Each is ``DB/.memworker/TABLE/PURPOSE.lock``
(see locks/), so a killed holder leaves nothing behind that has to be broken. The
holder's pid lies in the file, for the message of one that waited in vain.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memworker.errors import LockLost, StoreUnwritable, TableLocked
from memworker.locks import Busy, FileLock, Lost, Process, held, holder_of
from memworker.paths import Place
from memworker.store import places
from memworker.store.bucketlock import BucketLock

COMMIT_TIMEOUT_S = 60.0
"""A commit takes well under a second; a minute of waiting means that something hangs."""

# Asking for the holder takes the lock for a moment, which must turn no job away.
_JOB_PATIENCE_S = 0.2
_WRITING = ("commit", "tend")
_DOING = {
    "job": "is ingesting into table {0!r}, or re-embedding it",
    "tend": "is optimising table {0!r} or building an index of it",
    "read": "is deleting old versions of table {0!r}",
}


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock of a table that is held; `between` is the one between machines, in a bucket."""

    lock: FileLock
    between: BucketLock | None = None

    def confirm(self) -> None:
        """Raise LockLost if another process may hold the lock by now. Call this before a commit."""
        if self.between is not None:
            self.between.confirm()
        try:
            self.lock.confirm()
        except Lost as lost:
            raise LockLost(
                f"the lock was lost before the commit, so nothing was written: {lost}. Leave"
                " .memworker alone while the table is in use, and run the same again"
            ) from lost


@contextmanager
def hold(
    folder: Path, purpose: str, *, timeout_s: float = COMMIT_TIMEOUT_S, shared: bool = False
) -> Iterator[HeldLock]:
    """Hold the lock `purpose` of one table's folder (see `state_dir`).

    Raises TableLocked with the holder's pid when `timeout_s` runs out, and
    StoreUnwritable when the lock file cannot be made.
    """
    lock = FileLock(folder / f"{purpose}.lock", shared=shared)
    try:
        lock.acquire(timeout_s)
    except Busy as busy:
        raise _locked_error(folder, purpose, timeout_s, busy.holder) from None
    except OSError as error:
        raise StoreUnwritable(_unwritable(folder, error)) from error
    with lock:
        yield HeldLock(lock)


@contextmanager
def hold_job(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of the one ingest into a table. Raises TableLocked with the holder's pid."""
    with hold(folder, "job", timeout_s=max(wait_s, _JOB_PATIENCE_S)):
        yield


def keep(folder: Path) -> None:
    """Keep the locks of a table by which this process writes until the process ends.

    For a write that was given up and may still be under way: no other may write beside it.
    """
    for lock in list(held()):
        if lock.path.parent == folder and lock.path.stem in _WRITING:
            lock.keep()


def holder(folder: Path, purpose: str) -> int | None:
    """Return the pid of the process that holds a lock now, 0 if it is not known, else None."""
    found = holder_of(folder / f"{purpose}.lock")
    return None if found is None else found.pid


def state_dir(db: Place, table: str) -> Path:
    """Make and return the folder of what memworker keeps for a table (mode 0700)."""
    folder = places.state_folder(db, table)
    try:
        # mkdir's mode holds for the last folder only, hence one by one.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(_unwritable(folder.parent, error)) from error
    return folder


def ensure_writable(db: Place, table: str | None = None) -> None:
    """Raise StoreUnwritable unless files can really be made in the database, and for it.

    Leaves no directory that was not there. Permission bits are not asked: they do
    not bind root, and a read-only mount has none. With `table`, the
    folders of that table are asked too, if it is there: with access(2), so as
    to make no file among LanceDB's own.
    """
    folder = places.state_home(db)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without a name where the system can, so that a kill leaves no file behind.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StoreUnwritable(_unwritable(folder, error)) from error
    finally:
        for path in made:
            # Another process may use it already: then it is not empty, and stays.
            with suppress(OSError):
                path.rmdir()
    places.must_hold_to_conditions(db)
    if table is not None and isinstance(lance := places.table_folder(db, table), Path):
        _ensure_table_writable(lance)


def _ensure_table_writable(folder: Path) -> None:
    for path in (folder, folder / "_versions", folder / "data"):
        if path.is_dir() and not os.access(path, os.W_OK):
            raise StoreUnwritable(
                f"cannot write to the table's directory {path}; "
                "change its permissions, or mount it writable"
            )


def _locked_error(
    folder: Path, purpose: str, timeout_s: float, holder: Process | None
) -> TableLocked:
    who, pid = (str(holder), holder.pid) if holder else ("another process", None)
    if purpose in _DOING:
        doing = _DOING[purpose].format(folder.name)
        wait = " with --wait SECONDS" if purpose == "job" else ""
        return TableLocked(
            f"{who} {doing}; wait for it{wait}, or stop it (it resumes), and run the command again",
            pid,
        )
    return TableLocked(
        f"{who} has held the {purpose} lock of table {folder.name!r} for over {timeout_s:g} s; "
        "wait for it to finish, or stop it, and run the command again",
        pid,
    )


def _unwritable(where: Path, error: OSError) -> str:
    return (
        f"cannot write to the database directory {where}: {error.strerror or error}; "
        "name a directory that you may write to, or change its permissions"
    )

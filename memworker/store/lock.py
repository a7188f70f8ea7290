"""The locks of a table, freed by the system when their holder dies.

``commit``: one writer at a time, held for the time of a commit. ``job``: one
ingest at a time, held for the whole run. Each is a ``flock`` on
``DB/.memworker/TABLE/PURPOSE.lock``, so a killed holder leaves nothing behind
that has to be broken. The holder's pid lies in a file beside it, for the
message of whoever waited in vain.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from memworker.errors import StoreUnwritable, TableLocked

COMMIT_TIMEOUT_S = 60.0
"""A commit takes well under a second; a minute of waiting means that something hangs."""

# A commit of a few rows takes 3 ms, so filelock's own 50 ms would leave the lock idle for most
# of the time when two processes take turns. An attempt costs some 10 µs.
_POLL_S = 0.005
# Whoever asks for the holder takes the lock for a moment, which must turn no job away.
_JOB_PATIENCE_S = 0.2


@contextmanager
def hold(folder: Path, purpose: str, *, timeout_s: float = COMMIT_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock `purpose` of one table's folder (see `state_dir`).

    Raises TableLocked with the holder's pid when `timeout_s` runs out, and
    StoreUnwritable when the lock file cannot be made.
    """
    lock = FileLock(folder / f"{purpose}.lock", mode=0o600)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        raise _locked(folder, purpose, timeout_s) from None
    except OSError as error:
        raise StoreUnwritable(_unwritable(folder, error)) from error
    try:
        # For a message only: where the disk is full, the commit is who should say so.
        with suppress(OSError):
            _write_pid(folder / f"{purpose}.pid")
        yield
    finally:
        lock.release()


@contextmanager
def hold_job(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of the one ingest into a table. Raises TableLocked with the holder's pid."""
    with hold(folder, "job", timeout_s=max(wait_s, _JOB_PATIENCE_S)):
        yield


def holder(folder: Path, purpose: str) -> int | None:
    """Return the pid of the process that holds a lock now, 0 if it is not known, else None."""
    path = folder / f"{purpose}.lock"
    if not path.exists():
        return None
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _pid(folder / f"{purpose}.pid") or 0
    lock.release()
    return None


def state_dir(db: Path, table: str) -> Path:
    """Make and return the folder of what memworker keeps beside a table (mode 0700)."""
    folder = db / ".memworker" / table
    try:
        # mkdir's mode holds for the last folder only, hence one by one.
        (db / ".memworker").mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreUnwritable(_unwritable(db, error)) from error
    return folder


def ensure_writable(db: str | Path, table: str | None = None) -> None:
    """Raise StoreUnwritable unless files can really be made in the database directory.

    Leaves no directory that was not there. Permission bits are not asked: they do
    not bind root, and a read-only mount has none. With `table`, the
    folders of that table are asked too, if it is there: with access(2), so as
    to make no file among LanceDB's own.
    """
    folder = Path(db) / ".memworker"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without a name where the system can, so that a kill leaves no file behind.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StoreUnwritable(_unwritable(Path(db), error)) from error
    finally:
        for path in made:
            # Another process may use it already: then it is not empty, and stays.
            with suppress(OSError):
                path.rmdir()
    if table is not None:
        _ensure_table_writable(Path(db) / f"{table}.lance")


def _ensure_table_writable(folder: Path) -> None:
    for path in (folder, folder / "_versions", folder / "data"):
        if path.is_dir() and not os.access(path, os.W_OK):
            raise StoreUnwritable(
                f"cannot write to the table's directory {path}; "
                "change its permissions, or mount it writable"
            )


def _write_pid(holder: Path) -> None:
    # Truncate and write in one descriptor: the lock is held, so nobody else writes it.
    fd = os.open(holder, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, str(os.getpid()).encode())
    finally:
        os.close(fd)


def _locked(folder: Path, purpose: str, timeout_s: float) -> TableLocked:
    pid = _pid(folder / f"{purpose}.pid")
    who = f"process {pid}" if pid else "another process"
    if purpose == "job":
        return TableLocked(
            f"{who} is ingesting into table {folder.name!r}, or re-embedding it; wait for it with"
            " --wait SECONDS, or stop it (it resumes), and run the command again",
            pid,
        )
    return TableLocked(
        f"{who} has held the {purpose} lock of table {folder.name!r} for over {timeout_s:g} s; "
        "wait for it to finish, or stop it, and run the command again",
        pid,
    )


def _pid(holder: Path) -> int | None:
    try:
        return int(holder.read_text())
    except (OSError, ValueError):
        return None


def _unwritable(where: Path, error: OSError) -> str:
    return (
        f"cannot write to the database directory {where}: {error.strerror or error}; "
        "name a directory that you may write to, or change its permissions"
    )

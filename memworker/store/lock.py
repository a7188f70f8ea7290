"""The commit lock: one writer a table at a time, freed by the system when its holder dies.

The lock is a ``flock`` on ``DB/.memworker/TABLE/commit.lock``, so a killed
holder leaves nothing behind that has to be broken. The holder's pid lies in a
file beside it, for the message of whoever waited in vain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from memworker.errors import StoreUnwritable, TableLocked

COMMIT_TIMEOUT_S = 60.0
"""A commit takes well under a second; a minute of waiting means that something hangs."""

# A commit of a few rows takes 3 ms, so filelock's own 50 ms would leave the lock idle for most
# of the time when two processes take turns. An attempt costs some 10 µs.
_POLL_S = 0.005


@contextmanager
def hold(folder: Path, purpose: str, *, timeout_s: float = COMMIT_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock `purpose` of one table's folder (see `state_dir`).

    Raises TableLocked with the holder's pid when `timeout_s` runs out, and
    StoreUnwritable when the lock file cannot be made.
    """
    lock = FileLock(folder / f"{purpose}.lock", mode=0o600)
    holder = folder / f"{purpose}.pid"
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        raise _locked(folder, purpose, holder, timeout_s) from None
    except OSError as error:
        raise StoreUnwritable(_unwritable(folder, error)) from error
    try:
        _write_pid(holder)
        yield
    finally:
        lock.release()


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


def ensure_writable(db: str | Path) -> None:
    """Raise StoreUnwritable unless files can really be made in the database directory.

    Makes the directory when it is not there. Permission bits are not asked:
    they do not bind root, and a read-only mount has none.
    """
    folder = Path(db) / ".memworker"
    probe = folder / f"probe.{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        raise StoreUnwritable(_unwritable(Path(db), error)) from error


def _write_pid(holder: Path) -> None:
    # Truncate and write in one descriptor: the lock is held, so nobody else writes it.
    fd = os.open(holder, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, str(os.getpid()).encode())
    finally:
        os.close(fd)


def _locked(folder: Path, purpose: str, holder: Path, timeout_s: float) -> TableLocked:
    try:
        pid = int(holder.read_text())
    except (OSError, ValueError):
        pid = None
    who = f"process {pid}" if pid else "another process"
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

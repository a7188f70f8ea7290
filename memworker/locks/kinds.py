"""Which kind of lock works in a folder; all who use the folder must take the same.

::

    flock ──not there──► record lock (fcntl, of an open file) ──not there──► lease (lease.py)

The first two are the system's own: it frees them when their holder dies, and a
file system of several machines carries them to the others where it can. What was
found is noted in ``locking-INODE`` beside the locks, so that a process for which
flock fails only now does not take another kind than those who hold one. The inode is the
folder's, for a copy of the folder on another file system finds out anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import sys
import tempfile
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

# With flock: no lock daemon (NFS), no such call (Lustre, some FUSE), not for this file system.
_NOT_THERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
# struct flock: type, whence, start, length, pid. Length 0: the whole file, however long.
_FLOCK = "hhqqi"


class LockKind(StrEnum):
    """What a lock in a folder is made of."""

    FLOCK = "flock"
    RECORD = "record"
    LEASE = "lease"


class Unsupported(OSError):
    """The kind of lock that is agreed on here cannot be taken by this process."""


def kind_in(folder: Path) -> LockKind:
    """Return what locks in this folder are made of. Raises OSError when it cannot be read."""
    return _agreed(str(folder), os.stat(folder).st_ino)


def try_lock(fd: int, kind: LockKind, *, shared: bool) -> bool:
    """Lock an open file, or tell that another process has. Raises Unsupported, OSError."""
    try:
        _lock(fd, kind, shared)
        return True
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _NOT_THERE:
            raise
        raise Unsupported(
            error.errno,
            f"{os.strerror(error.errno or 0)}: locks here are of the kind {kind.value!r}, which"
            " this process cannot take",
        ) from error


def unlock(fd: int, kind: LockKind) -> None:
    """Free a lock, also where another descriptor of the same open file is still there."""
    with contextlib.suppress(OSError):
        if kind is LockKind.FLOCK:
            fcntl.flock(fd, fcntl.LOCK_UN)
        else:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _record(fcntl.F_UNLCK))


@lru_cache(maxsize=256)
def _agreed(folder: str, inode: int) -> LockKind:
    note = Path(folder, f"locking-{inode}")
    noted = _noted(note)
    if noted is not None:
        return noted
    kind = probe_kind(Path(folder))
    draft = Path(folder, f".locking-{secrets.token_hex(8)}")
    try:
        _write(draft, kind)
        return _note(draft, note, kind)
    except OSError:
        # No links here, or a full disk: each finds out by itself, and all find the same.
        return kind
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _noted(note: Path) -> LockKind | None:
    try:
        return LockKind(note.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write(draft: Path, kind: LockKind) -> None:
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(kind.value)


def _note(draft: Path, note: Path, kind: LockKind) -> LockKind:
    try:
        os.link(draft, note)
    except FileExistsError:
        # Another process was quicker, and what it found counts; or a power loss has torn the file.
        noted = _noted(note)
        if noted is not None:
            return noted
        os.replace(draft, note)
    _forget_others(note)
    return kind


def probe_kind(folder: Path) -> LockKind:
    """Find out which kind works in a folder, and leave nothing there. Raises OSError."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for kind in (LockKind.FLOCK, LockKind.RECORD):
                try:
                    try_lock(file.fileno(), kind, shared=False)
                    return kind
                except Unsupported:
                    continue
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            # Nothing can be written here, so there are readers alone.
            return LockKind.FLOCK
        raise
    return LockKind.LEASE


def _forget_others(note: Path) -> None:
    """Remove the notes of the folder that this is a copy of, and what a kill left of them."""
    for path in [*note.parent.glob("locking-*"), *note.parent.glob(".locking-*")]:
        if path != note:
            with contextlib.suppress(OSError):
                path.unlink()


def _lock(fd: int, kind: LockKind, shared: bool) -> None:
    if kind is LockKind.FLOCK:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif sys.platform == "linux":
        # Of the open file, not of the process: threads exclude each other too, and closing
        # another descriptor of the file frees nothing.
        command = _record(fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, command)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _record(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)

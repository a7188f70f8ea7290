"""`FileLock`: one holder at a time, or several who share, whatever the file system offers."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Self

from memworker.locks.kinds import LockKind, Unsupported, kind_in, try_lock, unlock
from memworker.locks.lease import Attempt, Lease
from memworker.locks.process import Process, host

LEASE_S = 30.0
"""How long a holder on another machine may be silent; equal for all who share a folder."""

# A commit of a few rows takes 3 ms, so a longer pause would leave the lock idle for most of
# the time when two processes take turns. An attempt costs some 10 µs, with leases 100.
_POLL_S = 0.005
_LEASE_POLL_S = 0.05


class Busy(Exception):
    """Another process or thread holds the lock; `holder` names it, where that is known."""

    def __init__(self, path: Path, holder: Process | None) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}")
        self.holder = holder


class Lost(Exception):
    """The lock was held and is not any more: another may hold it."""


class FileLock:
    """A lock named by a path: threads and processes exclude each other, unless all are `shared`.

    Not reentrant, and to be held once. A process that is forked off holds nothing.
    """

    def __init__(self, path: Path, *, shared: bool = False, lease_s: float = LEASE_S) -> None:
        self.path = path
        self._shared, self._lease_s = shared, lease_s
        self._kind = LockKind.FLOCK
        self._fd = -1
        self._lease: Lease | None = None
        self._kept = False

    def acquire(self, timeout_s: float = 0.0, *, patient: bool = True) -> None:
        """Take the lock; wait for `timeout_s`, and if `patient`, longer for a silent machine.

        Raises Busy; OSError where lock files cannot be made, Unsupported where this
        process cannot lock as the others do.
        """
        self._kind = kind_in(self.path.parent)
        if self._kind is LockKind.LEASE:
            self._acquire_lease(timeout_s, patient)
        else:
            self._acquire_file(timeout_s)

    def confirm(self) -> None:
        """Raise Lost unless the lock is still held: its file removed, or it was taken over."""
        if self._lease is not None:
            if not self._lease.confirm():
                raise Lost(f"{self.path} was taken over by another process, or removed")
        elif not self._is_at_its_path():
            raise Lost(f"{self.path} was removed")

    def release(self) -> None:
        """Free the lock, if it is held and not kept."""
        if self._kept:
            return
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        if self._fd >= 0:
            # If it fails, closing frees the lock all the same.
            with contextlib.suppress(OSError):
                unlock(self._fd, self._kind)
            self._close()

    def keep(self) -> None:
        """Let the lock, if it is held, be freed by the end of this process alone."""
        if self._lease is not None or self._fd >= 0:
            self._kept = True

    @property
    def kept(self) -> bool:
        """Whether only the end of this process frees it."""
        return self._kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire_file(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        held().add(self)
        while True:
            try:
                if self._attempt():
                    break
                reason: Exception = Busy(self.path, _noted(self.path))
            except Unsupported as error:
                # A lock daemon may be short of memory for a moment.
                reason = error
            if time.monotonic() >= deadline:
                raise reason
            time.sleep(_POLL_S)
        if not self._shared:
            self._note_holder()

    def _attempt(self) -> bool:
        """Try once; what was locked must be what the path names, for else others lock that."""
        while True:
            self._fd = _opened(self.path, self._shared)
            try:
                got = try_lock(self._fd, self._kind, shared=self._shared)
            except BaseException:
                self._close()
                raise
            if got and self._is_at_its_path():
                return True
            self._close()
            if not got:
                return False

    def _is_at_its_path(self) -> bool:
        try:
            ours, there = os.fstat(self._fd), os.stat(self.path)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _acquire_lease(self, timeout_s: float, patient: bool) -> None:
        deadline = time.monotonic() + timeout_s
        held().add(self)
        lease = Lease(self.path, shared=self._shared, lease_s=self._lease_s)
        while (answer := lease.attempt()) is not Attempt.GOT:
            # Who cannot be asked is waited for until it counts on, or is known to be silent.
            unsure = patient and answer is Attempt.UNSURE
            if not unsure and time.monotonic() >= deadline:
                raise Busy(self.path, lease.holder)
            time.sleep(_LEASE_POLL_S)
        self._lease = lease

    def _note_holder(self) -> None:
        # For a message only: where the disk is full, the next write should say so.
        note = f"{os.getpid()} {host()}\n".encode()
        with contextlib.suppress(OSError):
            # Mostly it is the one who held it last.
            if os.pread(self._fd, len(note) + 1, 0) != note:
                os.pwrite(self._fd, note, 0)
                os.ftruncate(self._fd, len(note))

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        # A descriptor is gone after close(2), whatever that says; and nothing of worth was written.
        with contextlib.suppress(OSError):
            os.close(fd)

    def forget(self) -> None:
        """Let go without freeing: for a child of fork(), whose parent still holds it."""
        self._lease = None
        if self._fd >= 0:
            self._close()


@lru_cache(maxsize=1)
def held() -> weakref.WeakSet[FileLock]:
    """Return the locks of this process; a child of fork() forgets them as it begins.

    It would otherwise keep the open file, and with it the lock of a parent that dies.
    """
    locks: weakref.WeakSet[FileLock] = weakref.WeakSet()

    def forget() -> None:
        for lock in list(locks):
            lock.forget()

    os.register_at_fork(after_in_child=forget)
    return locks


def holder_of(path: Path) -> Process | None:
    """Return who holds a lock now, with pid 0 where that is not known, or None."""
    if not path.parent.is_dir():
        return None
    lock = FileLock(path)
    try:
        try:
            lock.acquire(patient=False)
        except OSError:
            # A folder that may not be written: a shared lock is refused as well where it is held.
            if not path.exists():
                return None
            lock = FileLock(path, shared=True)
            lock.acquire(patient=False)
    except Busy as busy:
        return busy.holder or Process(0)
    except OSError:
        return None
    lock.release()
    return None


def _noted(path: Path) -> Process | None:
    try:
        pid, _, there = path.read_text().partition(" ")
        return Process(int(pid), there.strip())
    except (OSError, ValueError):
        return None


def _opened(path: Path, shared: bool) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        if not shared:
            raise
    except OSError as error:
        if not shared or error.errno != errno.EROFS:
            raise
    return os.open(path, os.O_RDONLY)

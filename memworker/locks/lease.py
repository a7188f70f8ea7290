"""A lease: a lock made of a file that its holder keeps alive, for where the system has no locks.

::

    commit.lock.lease-7     held by process 411 on host a, beat 18       the newest number counts
    commit.lock.lease-8     made by who takes over or comes next: only one can create it
    commit.lock.shared-…    one file each for those who share

To take it, a process creates the file of the next number, which succeeds for one alone; so
no process can take away a lease that another took in between. It is there to be taken
when its holder has freed it, is gone from this machine (pid, start time, boot), or, on
another machine, has not counted on for `lease_s` of the waiter's own monotonic clock. No two
clocks are compared. A holder that was stopped for longer finds the next number beside its own:
`confirm` looks for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Self

from memworker.locks.process import Process

_BEATS = 5
"""So many times within a lease its holder counts on."""
_PAGE_BYTES = 4096


class Attempt(Enum):
    """What came of an attempt. UNSURE: the holder may be dead."""

    GOT = auto()
    BUSY = auto()
    UNSURE = auto()


@dataclass(frozen=True, slots=True)
class LeasePage:
    """What a lease's file says."""

    token: str
    process: Process
    beat: int = 0
    free: bool = False

    def write(self) -> bytes:
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def read(cls, raw: bytes) -> Self | None:
        """Return None for a page that is being written, or was left half written."""
        try:
            facts = json.loads(raw)
            return cls(**{**facts, "process": Process(**facts["process"])})
        except (ValueError, TypeError, KeyError):
            return None


class Lease:
    """The wish for a lease, or the lease, of one lock."""

    def __init__(self, path: Path, *, shared: bool, lease_s: float) -> None:
        self._path, self._shared, self._lease_s = path, shared, lease_s
        self._page = LeasePage(secrets.token_hex(8), Process.current())
        self._number = 0
        self._file: Path | None = None
        # What was seen of others, and since when; by the name of the file.
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._moved: set[str] = set()
        # A count that comes after the release would take the lease back.
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self.holder: Process | None = None
        """Who was in the way at the last attempt."""

    def attempt(self) -> Attempt:
        """Try once. Raises OSError where files cannot be made."""
        return self._share() if self._shared else self._take()

    def confirm(self) -> bool:
        """Tell whether the lease is still ours, and count on."""
        return self._beat() and (self._shared or not self._named(self._number + 1).exists())

    def release(self) -> None:
        """Free it; who comes next need not wait."""
        self._stop.set()
        with self._mutex, contextlib.suppress(OSError):
            file, self._file = self._file, None
            if file is not None and self._shared:
                file.unlink()
            elif file is not None:
                # The newest number has to stay, or numbers would come again.
                _turn(file, replace(self._page, free=True))

    def _take(self) -> Attempt:
        numbers, sharers = self._numbers(), self._sharers()
        newest = max(numbers, default=0)
        for file in [self._named(newest), *sharers]:
            answer = self._in_the_way(file)
            if answer is not None:
                return answer
        if not self._create(self._named(newest + 1)):
            return Attempt.BUSY
        # Numbers that were there when we looked may have been cleared away since.
        if max(self._numbers(), default=0) != newest + 1:
            self._named(newest + 1).unlink(missing_ok=True)
            return Attempt.BUSY
        self._number, self._file = newest + 1, self._named(newest + 1)
        # Who came to share meanwhile has seen our file, or we see theirs.
        if any(self._in_the_way(file) for file in self._sharers()):
            self.release()
            self._stop.clear()
            return Attempt.BUSY
        for file in [*map(self._named, numbers), *sharers]:
            file.unlink(missing_ok=True)
        self._begin_beating()
        return Attempt.GOT

    def _share(self) -> Attempt:
        file = self._path.with_name(f"{self._path.name}.shared-{self._page.token}")
        self._create(file)
        answer = self._in_the_way(self._named(max(self._numbers(), default=0)))
        if answer is not None:
            file.unlink(missing_ok=True)
            return answer
        self._file = file
        self._begin_beating()
        return Attempt.GOT

    def _in_the_way(self, file: Path) -> Attempt | None:
        """Tell whether a lease counts: None when it is free, or its holder dead."""
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return None
        page = LeasePage.read(raw)
        if page is not None and (page.free or page.process.is_gone):
            return None
        self.holder = page.process if page is not None else None
        if page is not None and page.process.is_local:
            return Attempt.BUSY
        return self._watched(file.name, raw)

    def _watched(self, name: str, raw: bytes) -> Attempt | None:
        before, since = self._seen.get(name, (None, 0.0))
        if before != raw:
            if before is not None:
                self._moved.add(name)
            self._seen[name] = (raw, time.monotonic())
        elif time.monotonic() - since >= self._lease_s:
            return None
        return Attempt.BUSY if name in self._moved else Attempt.UNSURE

    def _create(self, file: Path) -> bool:
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        try:
            os.write(fd, self._page.write())
        except OSError:
            # A full disk: a page that says nothing would keep everybody away for a lease.
            file.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return True

    def _begin_beating(self) -> None:
        threading.Thread(target=self._keep_beating, name="memworker-lease", daemon=True).start()

    def _keep_beating(self) -> None:
        while not self._stop.wait(self._lease_s / _BEATS):
            self._beat()

    def _beat(self) -> bool:
        """Count on; tell whether the file is there and ours."""
        with self._mutex, contextlib.suppress(OSError):
            if self._file is not None:
                self._page = replace(self._page, beat=self._page.beat + 1)
                return _turn(self._file, self._page)
        return False

    def _numbers(self) -> list[int]:
        stem = f"{self._path.name}.lease-"
        names = (name.removeprefix(stem) for name in self._names(stem))
        return [int(number) for number in names if number.isdecimal()]

    def _sharers(self) -> list[Path]:
        stem = f"{self._path.name}.shared-"
        return [self._path.with_name(name) for name in self._names(stem)]

    def _names(self, stem: str) -> list[str]:
        return [name for name in os.listdir(self._path.parent) if name.startswith(stem)]

    def _named(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.lease-{number}")


def _turn(file: Path, page: LeasePage) -> bool:
    """Write the next page of a lease's file, unless another's is there by now."""
    # Opened each time: that is when a network file system looks at what is there.
    fd = os.open(file, os.O_RDWR)
    try:
        there = LeasePage.read(os.pread(fd, _PAGE_BYTES, 0))
        if there is None or there.token != page.token:
            return False
        os.pwrite(fd, page.write(), 0)
        os.ftruncate(fd, len(page.write()))
        return True
    finally:
        os.close(fd)

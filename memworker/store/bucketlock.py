"""The lock of a table in a bucket: a lease by conditional writes, and a fence for who lost it.

::

    TABLE's lock object     held by process 411 on host a, beat 18    each write of it only if
                            free                                      it still is as it was seen

    take: free ─────────────────────────► ours
          holder dead, or silent ───────► ours ─► fence ─► what the table holds is looked at
    commit: LanceDB's, then proven: the object is still ours ─► acknowledged

A bucket has no locks that the system frees, and no clock proves that a silent holder will not
write any more. So who takes over commits the newest version once more, by LanceDB's
``restore``. With that commit each write conflicts that began before it, whatever kind it is of
and however late it comes, for Lance commits by conditional writes too. A holder that was taken
over finds the object changed after its commit, and acknowledges nothing: if its commit came
before the fence, it is in the table, and running again finds its ids; if not, it is refused.

No two clocks are compared: silent is who has not counted on for `LEASE_S` of the waiter's
own monotonic clock.
"""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from memworker.errors import LockLost, StoreUnwritable, TableLocked
from memworker.failpoints import reach
from memworker.locks import LeasePage, Process
from memworker.paths import Bucket
from memworker.store.objects import NotSwapped, ObjectPath, Seen

LEASE_S = 30.0
"""How long a holder on another machine may be silent; equal for all."""

_BEATS = 5
_POLL_S = (0.01, 0.05)
# Who frees a lock could take it again at once, for ever. So it steps back for longer than others
# poll, where others have said within the last second that they wait.
_STEP_BACK_S = 0.08
_SAY_S, _LOOK_S = 0.5, 1.0
Fence = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _LockPage(LeasePage):
    """What the object says. `unfenced`: a write begun before may still come."""

    unfenced: bool = False


class BucketLock:
    """One lock of one table, for the threads of a process one after the other.

    The caller holds the lock of that name on this machine, so that only machines compete.
    """

    def __init__(self, path: ObjectPath, lease_s: float) -> None:
        self._path, self._lease_s = path, lease_s
        self._token = secrets.token_hex(8)
        self._beat_no = 0
        # What it was when last seen; if others have not changed it, one request takes it.
        self._last: Seen | None = None
        self._since = 0.0
        self._ours: Seen | None = None
        self._waiters = _Waiters(path)
        self._mutex = threading.Lock()
        self._stop = threading.Event()

    def acquire(self, timeout_s: float, fence: Fence) -> None:
        """Take it; raises TableLocked, StoreUnwritable, and what `fence` raises."""
        deadline, pause = time.monotonic() + timeout_s, _POLL_S[0]
        if self._waiters.others():
            time.sleep(_STEP_BACK_S)
        while True:
            try:
                taken = self._attempt()
            except OSError as error:
                raise StoreUnwritable(
                    f"cannot write to {self._path}: {error.strerror or error}; look at the"
                    " storage options and the rights they give"
                ) from error
            if taken is not None:
                break
            if time.monotonic() >= deadline:
                raise self._busy(timeout_s)
            self._waiters.say()
            # At random, so that waiters do not ask in step.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _POLL_S[1])
        self._begin_beating()
        if taken.unfenced:
            try:
                reach("before_fence")
                fence()
                self._turn(unfenced=False)
            except BaseException:
                self.release()
                raise

    def prove(self, version: int) -> None:
        """Raise LockLost unless no other can have taken the lock until now: after a commit."""
        try:
            self._turn()
        except (NotSwapped, OSError) as error:
            raise LockLost(
                f"version {version} was committed, but the lock in {self._path} cannot be shown to"
                " have been held until then, so that the commit may have been refused or undone:"
                " another machine took over from a holder that was silent, or the store does not"
                " answer. Run the same again; rows whose ids are there are not written twice"
            ) from error

    def confirm(self) -> None:
        """Raise LockLost if it is known to be lost: before a commit, without a request."""
        if self._ours is None:
            raise LockLost(
                f"the lock in {self._path} was taken over by another machine before the commit, so"
                " nothing was written: this process was silent for too long. Run the same again"
            )

    def release(self) -> None:
        """Free it; who comes next need not wait. If that fails it is taken from us as silent."""
        self._stop.set()
        with suppress(NotSwapped, OSError):
            self._turn(free=True)

    def _attempt(self) -> _LockPage | None:
        if self._last is None or not self._may_take(self._last):
            self._look()
        now = self._last
        # Where nothing is, the lock may have been removed under a holder.
        page = self._page(unfenced=True)
        if now is not None:
            there = _LockPage.read(now.content)
            if not self._may_take(now):
                return None
            page = replace(page, unfenced=there is None or not there.free or there.unfenced)
        with self._mutex:
            try:
                self._ours = self._last = self._path.swap(page.write(), now)
                return page
            except NotSwapped:
                self._last = None
                return None

    def _look(self) -> None:
        before, self._last = self._last, self._path.seen()
        if before is None or self._last is None or before.content != self._last.content:
            self._since = time.monotonic()

    def _may_take(self, seen: Seen) -> bool:
        page = _LockPage.read(seen.content)
        if page is not None and (page.free or page.process.is_gone or page.token == self._token):
            return True
        local = page is not None and page.process.is_local
        return not local and time.monotonic() - self._since >= self._lease_s

    def _turn(self, *, free: bool = False, unfenced: bool | None = None) -> None:
        """Write the next page over our own. Raises NotSwapped, OSError; then it is lost, or not."""
        with self._mutex:
            if self._ours is None:
                raise NotSwapped(str(self._path))
            there = _LockPage.read(self._ours.content)
            still = there is not None and there.unfenced if unfenced is None else unfenced
            page = replace(self._page(unfenced=still), free=free)
            ours, self._ours = self._ours, None
            try:
                self._last = self._path.swap(page.write(), ours)
            except NotSwapped:
                self._last = None
                raise
            except OSError:
                # A beat that found no answer; the next may.
                self._ours = None if free else ours
                raise
            # A beat that comes after the release must not take it back.
            self._ours = None if free else self._last

    def _page(self, *, unfenced: bool) -> _LockPage:
        self._beat_no += 1
        return _LockPage(self._token, Process.current(), self._beat_no, unfenced=unfenced)

    def _begin_beating(self) -> None:
        self._stop = stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._lease_s / _BEATS):
                with suppress(OSError):
                    try:
                        self._turn()
                    except NotSwapped:
                        return

        threading.Thread(target=beat, name="memworker-lease", daemon=True).start()

    def _busy(self, timeout_s: float) -> TableLocked:
        page = _LockPage.read(self._last.content) if self._last is not None else None
        who = str(page.process) if page is not None else "another process"
        return TableLocked(
            f"{who} has held {self._path} for over {timeout_s:g} s; wait for it to finish, or stop"
            " it, and run the command again",
            page.process.pid if page is not None else None,
        )


class _Waiters:
    """An object beside the lock by which those who wait tell the holder; exact without it."""

    def __init__(self, lock: ObjectPath) -> None:
        self._path = ObjectPath(lock.bucket, lock.key.with_suffix(".waiting"))
        self._said = self._looked = float("-inf")
        self._last: bytes | None = None
        self._others = False

    def say(self) -> None:
        """Tell that this process waits, now and then."""
        if time.monotonic() - self._said >= _SAY_S:
            self._said = time.monotonic()
            self._last = secrets.token_bytes(8)
            with suppress(OSError):
                self._path.write_bytes(self._last)

    def others(self) -> bool:
        """Tell whether others have said so since the last look, of some second ago."""
        if time.monotonic() - self._looked >= _LOOK_S:
            first, before = self._looked == float("-inf"), self._last
            self._looked = time.monotonic()
            with suppress(OSError):
                seen = self._path.seen()
                self._last = seen.content if seen is not None else None
            self._others = not first and self._last != before
        return self._others


@contextmanager
def hold(
    bucket: Bucket,
    table: str,
    purpose: str,
    timeout_s: float,
    fence: Fence,
    kept: Callable[[], bool],
) -> Iterator[BucketLock]:
    """Hold a lock of a table between machines. `kept`: it stays held until the process ends."""
    lock = _lock_of(bucket, table, purpose, os.getpid())
    lock.acquire(timeout_s, fence)
    try:
        yield lock
    finally:
        if not kept():
            lock.release()


@lru_cache(maxsize=256)
def _lock_of(bucket: Bucket, table: str, purpose: str, _pid: int) -> BucketLock:
    return BucketLock(ObjectPath(bucket) / ".memworker" / table / f"{purpose}.lock", LEASE_S)

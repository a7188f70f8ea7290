"""The locks by which a table is written, wherever it is.

In a directory the system's own (lock.py) does it all. In a bucket that keeps the processes of
one machine apart, and behind it a lock in the bucket the machines (bucketlock.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from memworker.errors import StoreError, TableNotFound
from memworker.paths import Bucket, Place
from memworker.store import bucketlock, lock
from memworker.store.lance import connect, lance_errors, open_table
from memworker.store.lock import COMMIT_TIMEOUT_S, HeldLock

_FENCES = 2


@contextmanager
def hold_writing(
    db: Place, name: str, purpose: str, *, timeout_s: float = COMMIT_TIMEOUT_S
) -> Iterator[HeldLock]:
    """Hold ``commit`` or ``tend`` of a table against all processes and machines.

    Raises as `lock.hold` does, and StoreError where a dead holder's writes cannot be fenced off.
    """
    with lock.hold(lock.state_dir(db, name), purpose, timeout_s=timeout_s) as held:
        if not isinstance(db, Bucket):
            yield held
            return
        fence = partial(_fence, db, name)
        kept = partial(getattr, held.lock, "kept")
        with bucketlock.hold(db, name, purpose, timeout_s, fence, kept) as between:
            yield replace(held, between=between)


def _fence(db: Bucket, name: str) -> None:
    """Commit the newest version once more, so that no write begun before can come any more.

    What comes between the look and the commit is not in that, and is brought back: it is either
    of the holder that was taken over, who did not acknowledge it, or of a program without locks.
    """
    doing = f"taking over the lock of table {name!r}"
    with lance_errors(doing):
        try:
            # By a handle that shows the version that it has made, and none that came later.
            handle = open_table(connect(db, writable=False, follow=False), db, name)
        except TableNotFound:
            return
        newest = wanted = int(handle.version)
        for _ in range(_FENCES):
            handle.checkout(wanted)
            handle.restore()
            made = int(handle.version)
            if made == newest + 1:
                return
            newest, wanted = made, made - 1
    raise StoreError(
        f"{doing}: programs that take no lock commit at this moment, and what they wrote between"
        f" versions {wanted} and {newest} may not be in the newest one; stop them, look at those"
        " versions with LanceDB, and run the same again"
    )

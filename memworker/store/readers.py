"""Reads: none waits for ever, and beside clean-ups a short one is asked again, a long one kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from memworker.errors import StoreError, StoreUnwritable
from memworker.paths import Place
from memworker.store import bounded, lock
from memworker.store.lance import is_gone

T = TypeVar("T")

# A clean-up deletes files for a second or two, however large the table.
_WAIT_S = 60.0
_ATTEMPTS = 3


class Readers:
    """The reading of one table."""

    def __init__(self, db: Place, name: str) -> None:
        self._db, self._name = db, name

    def ask(self, read: Callable[[], T]) -> T:
        """Read, and again on the newest version if the one that was read has gone meanwhile.

        The first time at no cost; then with clean-ups kept away, so that it comes to an end.
        Raises StoreError where LanceDB does not come back; `read` may then still go on.
        """
        try:
            return self._bounded(read)
        except Exception as error:
            if not is_gone(error):
                raise
            _let_go(error)
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._kept(read)
            except Exception as error:
                # Another program may clean up too, and takes no lock.
                if not is_gone(error):
                    raise
                _let_go(error)
        return self._kept(read)

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep versions from being deleted meanwhile: for reading one in many steps.

        Where nothing can be written no lock can be made, and a clean-up by another
        process does not know of the read. Raises TableLocked.
        """
        with ExitStack() as held:
            with suppress(StoreUnwritable):
                folder = lock.state_dir(self._db, self._name)
                held.enter_context(lock.hold(folder, "read", timeout_s=_WAIT_S, shared=True))
            yield

    def _kept(self, read: Callable[[], T]) -> T:
        with self.keep():
            return self._bounded(read)

    def _bounded(self, read: Callable[[], T]) -> T:
        try:
            return bounded.read(read)
        except bounded.Stalled as stalled:
            raise StoreError(
                f"reading table {self._name!r}: LanceDB does not come back, {stalled}. Look at the"
                " disk that the table is on, and at the limits of memory and threads; if it stays"
                " so, start this process anew, for LanceDB may wait for what will not come"
            ) from stalled


def _let_go(error: BaseException) -> None:
    """Drop the traceback of an error that is not raised again.

    LanceDB's future holds the error, and a frame of the traceback the future: a cycle
    with all that the callers have in hand, batches of rows too.
    """
    error.__traceback__ = None

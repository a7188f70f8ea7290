"""The exception tree: one root, one branch a room.

::

    MemworkerError
    ├── UsageError (also ValueError)   an argument or option is wrong
    │   └── ScopeMissing               no user_id, agent_id or run_id says whose memories
    ├── ModelError
    │   ├── UnknownModel               no catalogue entry or directory of that name
    │   ├── ModelUnavailable           no source could deliver its files
    │   ├── ModelCorrupt               a file does not have the expected hash or shape
    │   └── ModelUnsupported           the architecture or its options are not handled
    ├── PoolError
    │   ├── PoolClosed                 used after close()
    │   ├── PoolForked                 used in a child made by os.fork()
    │   ├── PoolBusy                   too much is waiting already; carries a hint when to retry
    │   ├── PoolUnavailable            no worker can be had now; carries a hint when to retry
    │   ├── WorkerStartFailed          the pool's first workers could not start: their own words
    │   ├── WorkerCrashed              the pool's own thread failed
    │   ├── SharedMemoryExhausted      not enough shared memory; carries both sizes
    │   ├── TextTooLarge               a text over the size cap
    │   └── TextFailed                 one text could not be embedded; carries its index
    ├── StoreError
    │   ├── TableNotFound              no such database or table
    │   ├── TableMismatch              made with another model, dimension or distance
    │   ├── TableLocked                another process holds the lock; carries its pid
    │   ├── LockLost                   the lock went to another process before the commit
    │   ├── NotOptimized               a step of optimising failed; carries what each step did
    │   ├── StoreUnwritable            the directory cannot be written
    │   ├── BadVector                  NaN, infinite or zero
    │   ├── MemoryNotFound             no memory has this id
    │   └── FilterError (also ValueError)  a filter that cannot be expressed
    ├── ClusterFailed                  a job on a Ray cluster could not be carried to its end
    └── InputError
        ├── InputNotFound              no such file, or nothing readable under it
        ├── MissingField               the named field is not in the input
        ├── NoRows                     the input held no rows
        └── RowRejected                a row was bad and the caller asked to stop

Every message says what happened, with values, then what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from traceback import format_tb
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class MemworkerError(Exception):
    """Root of every error that memworker raises on purpose."""


class UsageError(MemworkerError, ValueError):
    """An argument or option is wrong; nothing was started."""


class ScopeMissing(UsageError):
    """None of user_id, agent_id and run_id says whose memories are meant."""


class ModelError(MemworkerError):
    """A model could not be found, fetched, verified or built."""


class UnknownModel(ModelError):
    """No catalogue entry and no directory has this name."""


class ModelUnavailable(ModelError):
    """No source could deliver the model's files."""


class ModelCorrupt(ModelError):
    """A model file does not have the expected hash or shape."""


class ModelUnsupported(ModelError):
    """The model's architecture or options are not handled."""


class PoolError(MemworkerError):
    """The embedding pool could not do what was asked."""


class PoolClosed(PoolError):
    """The pool was used after close()."""


class PoolForked(PoolError):
    """The pool was used in a child made by os.fork()."""


class PoolBusy(PoolError):
    """So much work is waiting that no more was taken; nothing of the request was begun."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PoolUnavailable(PoolError):
    """Workers keep ending before they have done anything; the pool lives and goes on trying."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerStartFailed(PoolError):
    """A pool's first workers could not start; the message carries their own words."""


class WorkerCrashed(PoolError):
    """The thread that cares for the workers failed, which is a fault of memworker's."""


class SharedMemoryExhausted(PoolError):
    """Shared memory for the slots could not be had."""


class TextTooLarge(PoolError):
    """A text exceeds the size cap."""


class TextFailed(PoolError):
    """One text could not be embedded; its neighbours are not concerned."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class StoreError(MemworkerError):
    """The LanceDB table could not do what was asked."""


class TableNotFound(StoreError):
    """There is no such database or table."""


class TableMismatch(StoreError):
    """The table was made with another model, dimension or distance."""


class TableLocked(StoreError):
    """Another process holds the table's lock."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class LockLost(StoreError):
    """A lock was lost before the commit, so nothing was written."""


class NotOptimized(StoreError):
    """A step of optimising a table failed; the others were done all the same."""

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class StoreUnwritable(StoreError):
    """The database directory cannot be written."""


class BadVector(StoreError):
    """A vector holds NaN or infinity, or is zero."""


class MemoryNotFound(StoreError):
    """No memory has this id, or it was deleted."""


class FilterError(StoreError, ValueError):
    """A filter cannot be expressed."""


class ClusterFailed(MemworkerError):
    """A job on a Ray cluster could not be carried to its end; what was committed is safe."""


class InputError(MemworkerError):
    """The input could not be read."""


class InputNotFound(InputError):
    """There is no such file, or nothing readable under a folder."""


class MissingField(InputError):
    """The named field is not in the input."""

    def __init__(self, message: str, available: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.available = tuple(available)


class NoRows(InputError):
    """The input held no rows."""


class RowRejected(InputError):
    """A row was bad, and the caller asked to stop at the first one."""


def again(error: E) -> E:
    """Make an error anew, with its cause and traceback, for another caller to raise.

    One that many raise would gather the frames of all of them, and what these hold.
    """
    made = type(error).__new__(type(error), *error.args)
    made.__dict__.update(error.__dict__)
    made.__cause__ = error.__cause__
    return made.with_traceback(error.__traceback__)


def detached(error: E) -> E:
    """Part an error, and its causes, from the frames it came through, for another thread.

    They hold the work that failed, with texts and vectors, and mostly the future that shall
    hold the error, so all of it would stay until a full collection. What is no error of ours,
    which would say enough, gets the lines of its traceback as a note.
    """
    chain: BaseException | None = error
    while chain is not None:
        if chain.__traceback__ is not None and not isinstance(chain, MemworkerError):
            chain.add_note("".join(format_tb(chain.__traceback__)))
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error

"""The one thread that commits: whatever has gathered while it was busy becomes one commit.

::

    callers ─► submit(operation) ─► queue ─► [take all there is] ─► one commit ─► their futures

There is no timer: a lone operation is committed at once, and the more callers there
are, the more share a commit.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from memworker.errors import PoolClosed, again, detached
from memworker.memory import group
from memworker.memory.group import Add, Alone, EraseOne, Operation, Sweep
from memworker.memory.known import KnownKeys
from memworker.store import Table, state_dir

# Rows of one commit, so that a caller never waits for much more than its own.
GROUP_ROWS = 4096
CLOSED = "this Memory is closed; make a new one"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class QueuedOperation:
    """An operation, and the future that gets its outcome."""

    operation: Operation | Alone
    future: Future[Any] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.operation.drafts) if isinstance(self.operation, Add) else 1

    @property
    def alone(self) -> bool:
        return isinstance(self.operation, Sweep | EraseOne)


class GroupWriter:
    """Commits operations in the order of their coming; `committed` is told each commit's rows."""

    def __init__(self, table: Table, committed: Callable[[int], None]) -> None:
        self._table = table
        self._known = KnownKeys(state_dir(table.db, table.name))
        self._committed = committed
        self._queue: deque[QueuedOperation] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="memworker-memory", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation | Alone) -> Future[Any]:
        """Queue an operation, which will be carried out; the future completes after its commit."""
        job = QueuedOperation(operation)
        # From here on, cancelling comes too late.
        job.future.set_running_or_notify_cancel()
        with self._wake:
            if self._closing:
                raise PoolClosed(CLOSED)
            self._queue.append(job)
            self._wake.notify()
        return job.future

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Commit what is queued, or with `drain` False give it PoolClosed, and end the thread."""
        with self._wake:
            self._closing = True
            dropped = [] if drain else list(self._queue)
            if not drain:
                self._queue.clear()
            self._wake.notify()
        for job in dropped:
            job.future.set_exception(PoolClosed("the Memory was closed before this was committed"))
        # A forgotten Memory may be collected in any thread, this one too.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while jobs := self._take():
            self._settle_in_order(jobs)
            # Not held until the next ones come: they know texts, vectors and outcomes.
            del jobs

    def _settle_in_order(self, jobs: Sequence[QueuedOperation]) -> None:
        for alone, run in groupby(jobs, lambda job: job.alone):
            for part in ([job] for job in run) if alone else [list(run)]:
                self._settle(part)

    def _take(self) -> list[QueuedOperation]:
        """Take what has gathered, waiting for the first; nothing means the end."""
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            return list(self._gathered())

    def _gathered(self) -> Iterator[QueuedOperation]:
        rows = 0
        while self._queue and (not rows or rows + self._queue[0].rows <= GROUP_ROWS):
            rows += self._queue[0].rows
            yield self._queue.popleft()

    def _settle(self, jobs: Sequence[QueuedOperation]) -> None:
        outcomes = self._attempt(jobs)
        if isinstance(outcomes, BaseException):
            for job in jobs:
                job.future.set_exception(again(detached(outcomes)))
            return
        # Callers first, whatever becomes of the upkeep: what they asked for is committed.
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                job.future.set_exception(detached(outcome))
            else:
                job.future.set_result(outcome)
        try:
            self._committed(sum(job.rows for job in jobs))
        except Exception as error:
            # It is committed, and those after it want to be: the thread must not end here.
            _log.warning("upkeep of table %r cannot begin: %s", self._table.name, error)

    def _attempt(self, jobs: Sequence[QueuedOperation]) -> list[Any] | BaseException:
        try:
            return self._commit(jobs)
        except BaseException as error:
            return error

    def _commit(self, jobs: Sequence[QueuedOperation]) -> list[Any]:
        if jobs[0].alone:
            return [group.commit_alone(self._table, self._known, jobs[0].operation)]  # type: ignore[arg-type]
        return group.commit(self._table, self._known, [job.operation for job in jobs])  # type: ignore[misc]

"""The right to commit into a table: of all threads and processes, one has it at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from memworker.errors import StoreError, TableLocked, UsageError
from memworker.store.lance import lance_errors
from memworker.store.lock import COMMIT_TIMEOUT_S, HeldLock
from memworker.store.manifest import manifest_path
from memworker.store.opened import OpenTable
from memworker.store.schema import is_durable, read_field_metadata
from memworker.store.writelock import hold_writing

_Mark: TypeAlias = tuple[int, ...]


class CommitLock:
    """The commit lock of a table that is open; with it in hand, what the table promises now."""

    def __init__(self, table: OpenTable, held: HeldLock | None = None) -> None:
        self._table = table
        self.mutex = threading.RLock()
        """For this process's threads; by itself it keeps no other process from writing."""
        self.held = held
        """The lock between processes, while it is held; made sure of before each commit."""
        self.schema: pa.Schema = table.handle.schema
        """The columns of the newest version, as the lock was taken."""
        self.version = -1
        """That version's number, once the lock was taken."""
        self.durable = is_durable(self.schema)
        """Whether each commit is forced to the disk before it is acknowledged."""
        self._mark: _Mark | None = None

    @contextmanager
    def take(self, timeout_s: float = COMMIT_TIMEOUT_S) -> Iterator[None]:
        """Hold the right to commit: no other thread or process commits meanwhile.

        Raises TableLocked; UsageError within a change of the same table; StoreError when that
        was made again since it was opened, TableMismatch when it was re-embedded.
        """
        with self.mutex:
            if self.held is not None:
                raise UsageError("a change of this table is open; write through it, or after it")
            db, name = self._table.db, self._table.name
            with hold_writing(db, name, "commit", timeout_s=timeout_s) as self.held:
                try:
                    with lance_errors(f"reading table {self._table.name!r}"):
                        self._look()
                    yield
                finally:
                    self.held = None

    @contextmanager
    def ensure(self) -> Iterator[None]:
        """Do the same; at once where this thread holds the lock already."""
        with self.mutex, nullcontext() if self.held is not None else self.take():
            yield

    @contextmanager
    def within(self, patience_s: float | None) -> Iterator[None]:
        """Let others commit for so long; then hold the lock until what is done here has ended.

        For what commits without the lock, which a busy writer may outrun for ever. Nothing in this
        context may take the lock. None: never hold it.
        """
        if patience_s is None:
            yield
            return
        ended = threading.Event()
        holder = threading.Thread(
            target=self._hold_until, args=(ended, patience_s), name="memworker-lock", daemon=True
        )
        holder.start()
        try:
            yield
        finally:
            ended.set()
            holder.join()

    def _hold_until(self, ended: threading.Event, patience_s: float) -> None:
        if ended.wait(patience_s):
            return
        # Whoever has it for so long outruns nobody; what is wrong with the table is told elsewhere.
        with suppress(TableLocked, StoreError), self.take():
            ended.wait()

    def added(self, version: int) -> None:
        """Note that rows were added, by a commit that made `version`, and nothing else."""
        # Any other number: someone has written between, without the lock, and may have done more.
        if version == self.version + 1:
            self.version, self._mark = version, self._mark_of(version)

    def _look(self) -> None:
        """Read what other holders of the lock have committed since."""
        table = self._table
        self.version = int(table.handle.version)
        mark = self._mark_of(self.version)
        if mark is not None and mark == self._mark:
            return  # the version is known, and with it all that follows
        schema = table.handle.schema
        now, identity = read_field_metadata(schema, table.name)
        self.schema, self.durable = schema, is_durable(schema)
        if identity != table.identity:
            raise StoreError(
                f"table {table.name!r} was dropped and made again since it was opened; "
                "open it again, or start the job afresh"
            )
        table.space.must_still_be(now, table.name)
        self._mark = mark

    def _mark_of(self, version: int) -> _Mark | None:
        """Return what tells a version's manifest from that of a table made anew; None in a bucket.

        A version's number does not: the new table's versions are counted from 1 again.
        """
        if not isinstance(self._table.folder, Path):
            return None
        try:
            there = os.stat(manifest_path(self._table.folder, version))
        except OSError:
            return None
        return version, there.st_dev, there.st_ino, there.st_size, there.st_ctime_ns

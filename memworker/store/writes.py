"""Every commit of a table: made, looked at, forced to the disk where promised, then believed.

::

    write() ──raises──► did it come through? ──no──► again (a conflict), or StoreError
       │                        │ yes
       ▼                        ▼
    the version's new files: there, whole? ──no──► take the version back ─► write() again
       │ yes
       ▼
    a durable table: forced to the disk, read back ──no──► take the version back ─► write() again
       │ yes
       ▼
    acknowledged

What LanceDB says of a commit proves neither its success (see whole.py) nor its failure: an
error may come after the commit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from memworker.errors import MemworkerError, StoreError
from memworker.paths import Place
from memworker.store import apart, bounded, places
from memworker.store.apart import ApartWork
from memworker.store.bounded import Stalled
from memworker.store.commitlock import CommitLock
from memworker.store.handle import renew
from memworker.store.lance import explain, forget_frames, is_commit_conflict
from memworker.store.lock import keep, state_dir
from memworker.store.manifest import INDICES, TornManifest, manifest_path, read_manifest
from memworker.store.opened import OpenTable
from memworker.store.schema import durability, is_durable
from memworker.store.takeback import WRITES, TakeBack
from memworker.store.validate import NotWhole, validator_of

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Landed:
    """A commit that came through: the version that it made, and the rows that it concerned."""

    version: int
    rows: int


Write = Callable[[], Landed]
Came = Callable[[int], Landed | None]
"""Called with the version before a write that raised: its commit if it was made, else None."""
RunWrite = Callable[[Write], Landed]


class CameFirst(StoreError):
    """Other writers' commits came first, again and again."""


class StillWriting(StoreError):
    """A write does not return; whether it will be committed is not known."""


class Writes:
    """Makes the commits of one table. The caller holds the commit lock (but see `build`)."""

    def __init__(self, table: OpenTable, lock: CommitLock | None = None) -> None:
        self.table, self.handle = table, table.handle
        self.lock = lock or CommitLock(table)
        self.validator = validator_of(table, self.lock)
        self._take_back = TakeBack(table, self.lock, self.validator)

    def commit(
        self,
        doing: str,
        write: Write,
        came: Came,
        *,
        seen: int,
        run: RunWrite | None = None,
        spills: bool = False,
    ) -> Landed:
        """Commit by `write`; return once the commit is known to be whole.

        `seen` is the newest version at this moment. `run` takes the place of
        `bounded.run` for a write that looks after interrupts itself. `spills`: LanceDB
        makes temporary files for it, as it does for a merge. Raises StoreError, and says
        then whether something was committed.
        """
        self.validator.force_before(doing, seen)
        for left in reversed(range(WRITES)):
            with self.table.spilling() if spills else nullcontext():
                landed = self._written(doing, partial(run or self.table.run, write), came, seen)
            if landed.version <= seen:
                return landed
            try:
                self.validator.look_at(landed.version)
                return landed
            except OSError as error:
                raise StoreError(
                    f"{doing}: version {landed.version} was committed, but whether it is whole"
                    f" cannot be told: {error.filename}: {error.strerror}. Look at the disk, then"
                    " run `memworker table verify`; it is safe to run the same again"
                ) from error
            except NotWhole as flaw:
                self._take_back.rows(doing, landed.version, flaw)
                seen = self.table.newest(doing)
                if not left:
                    raise StoreError(
                        f"{doing} failed: {flaw}. That was taken back, {WRITES} times, so nothing"
                        " of this batch is committed. Look at the disk, and run the same again"
                    ) from flaw
        raise AssertionError("the last attempt returns or raises")

    def build(
        self,
        doing: str,
        work: ApartWork | Callable[[], object],
        patience_s: float | None = None,
    ) -> None:
        """Commit what changes no row (indices, compaction). Only to undo it is the lock taken.

        And where `patience_s` says so, after so long, for others commit without end. `ApartWork`
        on a large table is done in a child process. Raises StoreError; no row is lost by it.
        """
        for left in reversed(range(WRITES)):
            seen = self.table.newest(doing)
            try:
                with self.lock.within(patience_s):
                    self._built(doing, work)
            except (CameFirst, StillWriting):
                raise
            except StoreError:
                self._settled(doing, seen)  # it may have been committed before it failed
                raise
            flaw = self._settled(doing, seen)
            if flaw is None:
                return
            if not left:
                raise StoreError(
                    f"{doing} failed: {flaw}. That was taken back; the rows are as they were"
                )

    def set_durable(self, durable: bool) -> None:
        """Note in the table whether its commits are forced to the disk; what is there, before."""
        if durable == self.lock.durable:
            return
        if durable:
            self.validator.force()
        doing = f"setting the durability of table {self.table.name!r}"

        def note() -> Landed:
            update = {"path": "vector", "metadata": durability(durable)}
            return Landed(int(self.handle.update_field_metadata(update).version), 0)

        def came(_: int) -> Landed | None:
            there = is_durable(self.handle.schema) == durable
            return Landed(int(self.handle.version), 0) if there else None

        self.lock.durable = self.lock.durable or durable
        try:
            self.commit(doing, note, came, seen=self.table.newest(doing))
        finally:
            self.lock.durable = is_durable(self.handle.schema)

    def gone(self, where: str, seen: int) -> Landed | None:
        """Return the commit of a deletion that raised if no row meets `where` now, else None."""
        if self.handle.count_rows(where):
            return None
        return Landed(int(self.handle.version), self.count_at(seen, where))

    def count_at(self, version: int, where: str) -> int:
        """Return how many rows met a filter in an older version, or 0 when that is gone."""
        older = self.table.again()
        try:
            older.checkout(version)
            return int(older.count_rows(where))
        except (RuntimeError, ValueError, OSError):
            return 0

    def restore(self, version: int) -> None:
        """Make the rows of an older version the newest again, by a commit. Raises StoreError."""
        self._take_back.restore(version)

    # ── what changes rows ──

    def _written(self, doing: str, write: Write, came: Came, seen: int) -> Landed:
        for left in reversed(range(_ATTEMPTS)):
            if self.lock.held is not None:
                self.lock.held.confirm()
            try:
                return write()
            except MemworkerError:
                raise
            except Stalled as stalled:
                raise _unknown_error(doing, stalled) from stalled
            except Exception as error:
                forget_frames(error)
                landed = self._came(doing, came, seen, error)
                if landed is not None:
                    return landed
                if not left or not is_commit_conflict(error):
                    raise StoreError(
                        f"{explain(doing, error)}; nothing of this batch was committed"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _came(self, doing: str, came: Came, seen: int, why: Exception) -> Landed | None:
        try:
            newest = self._take_back.settled_version()
            # It may write again.
            return self.table.run(partial(came, seen)) if newest != seen else None
        except Stalled as stalled:
            raise _unknown_error(doing, stalled) from stalled
        except Exception as error:
            raise StoreError(
                f"{explain(doing, why)}; and whether it was committed cannot be told, for the"
                f" table cannot be read: {explain('reading', error)}. It is safe to run the same"
                " again"
            ) from why

    # ── what changes none ──

    def _built(self, doing: str, work: ApartWork | Callable[[], object]) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._do(work)
                return
            except Stalled as stalled:
                raise _unknown_error(doing, stalled) from stalled
            except Exception as error:
                forget_frames(error)
                if not is_commit_conflict(error):
                    raise StoreError(explain(doing, error)) from error
                if not left:
                    raise CameFirst(explain(doing, error)) from error

    def _do(self, work: ApartWork | Callable[[], object]) -> None:
        if isinstance(work, ApartWork) and apart.is_large(work, self.handle):
            apart.run(work, self.table.db, self.table.name, self.table.made_state())
            return
        with self.table.spilling():
            # Others may be committing meanwhile: their files say nothing.
            write = partial(work.do, self.handle) if isinstance(work, ApartWork) else work
            self.table.run(write, self.table.folder / INDICES)

    def _settled(self, doing: str, seen: int) -> str | None:
        """Look at what a build has committed; what is not whole is taken back, and told."""
        try:
            self.validator.look_at(self.table.newest(doing), before=seen)
        except OSError as error:
            raise StoreError(
                f"{doing}: whether what was committed is whole cannot be told:"
                f" {error.filename}: {error.strerror}. Look at the disk, then run"
                " `memworker table verify`"
            ) from error
        except NotWhole as flaw:
            with self.lock.ensure():
                self._take_back.build(doing, seen, flaw)
            return str(flaw)
        # What is cached of the indices before is of no use now.
        renew(self.handle)
        return None


def _unknown_error(doing: str, stalled: Stalled) -> StoreError:
    return StillWriting(
        f"{doing}: LanceDB does not come back, {stalled}. Whether it was committed is not"
        " known, and it may still be, so that no other process can write into the table until"
        " this one has ended. End it, and run the same again: rows whose ids are there are"
        " not written twice"
    )


def created(connection: LanceDBConnection, db: Place, name: str, schema: pa.Schema) -> LanceTable:
    """Make an empty table; return it once its first version is known to be whole."""
    folder = places.table_folder(db, name)
    for _ in range(WRITES):
        state = state_dir(db, name)
        create = partial(connection.create_table, name, schema=schema)
        try:
            handle = bounded.run(create, places.moving(folder), partial(keep, state))
        except Stalled as stalled:
            raise StillWriting(
                f"making table {name!r}: LanceDB does not come back, {stalled}. End this process,"
                " look at the disk and at the limits of memory and threads, and run the same again"
            ) from stalled
        try:
            read_manifest(folder, int(handle.version))
            return handle
        except TornManifest:
            # No writer can have written into a table that cannot be opened.
            manifest_path(folder, 1).unlink()
    raise StoreError(f"the first version of table {name!r} is not written whole; look at the disk")

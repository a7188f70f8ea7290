"""A LanceDB table of records: create, open, append, search, count, delete, optimise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa

from memworker.errors import TableLocked, TableNotFound, UsageError
from memworker.paths import PathGiven
from memworker.store import apart, fuse, index, lock, read, search, spill, text as words, upkeep
from memworker.store.append import Appender
from memworker.store.change import Change, Edit
from memworker.store.commit import Appended, OnConflict
from memworker.store.commitlock import CommitLock
from memworker.store.filters import visible
from memworker.store.handle import Handle
from memworker.store.info import TableInfo, describe
from memworker.store.keys import string_array
from memworker.store.known import Statuses
from memworker.store.lance import (
    connect,
    database_path,
    lance_errors,
    open_table,
    table_name,
)
from memworker.store.opened import OpenTable
from memworker.store.optimize import Optimized, Optimizing
from memworker.store.readers import Readers
from memworker.store.schema import (
    Vectors,
    VectorSpace,
    conform,
    durability,
    is_durable,
    new_field_metadata,
    refuse_bad_vectors,
    table_schema,
)
from memworker.store.search import Hit, SearchOptions
from memworker.store.snapshot import Snapshot
from memworker.store.upkeep import Keeper, Tended, Upkeep
from memworker.store.writes import Landed, Writes, created

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

T = TypeVar("T")

KEEP_VERSIONS = timedelta(hours=1)
"""A version that was superseded so shortly ago may still be read by another program."""


class Table:
    """One table of one vector space. May be shared by threads; processes open their own.

    Every write holds the table's commit lock for the time of the commit, looks
    at the newest version under it, and leaves out the ids that are known.
    """

    def __init__(
        self, db: Path, name: str, connection: LanceDBConnection, opened: LanceTable
    ) -> None:
        self.db, self.name = db, name
        self._versions = Handle(connection, opened, partial(_opened, db, name))
        handle = self._handle = cast("LanceTable", self._versions)
        table = OpenTable.of(handle, db)
        self.space, self.identity = table.space, table.identity
        self._lock = CommitLock(table)
        self._writes = Writes(table, self._lock)
        self._appender = Appender(self._writes)
        self._may_hide = False
        self._keeper = Keeper(self._writes)
        self._readers = Readers(db, name)
        spill.clear(table.state)
        self._text_index = words.TextIndex(self._writes)

    @classmethod
    def create(
        cls, db: PathGiven, name: str, space: VectorSpace, *, durable: bool = False
    ) -> Table:
        """Make a new, empty table; of a `durable` one each commit is forced to the disk.

        Raises StoreError when there is one of that name.
        """
        path, name = database_path(db), table_name(name)
        connection = connect(path, writable=True)
        schema = table_schema(space.dim, new_field_metadata(space, durable=durable))
        with lance_errors(f"creating table {name!r} in {path}"):
            table = cls(path, name, connection, created(connection, path, name, schema))
        if durable:
            table.sync()
        return table

    @classmethod
    def open(cls, db: PathGiven, name: str) -> Table:
        """Open a table. Raises TableNotFound, naming the tables there are."""
        path, name = database_path(db), table_name(name)
        return cls(path, name, *_opened(path, name))

    @classmethod
    def open_or_create(
        cls, db: PathGiven, name: str, space: VectorSpace, *, durable: bool = False
    ) -> Table:
        """Open the table, or make it. Raises TableMismatch when it is of another space.

        With `durable` it is durable from now on, also if it was there and was not.
        """
        path, name = database_path(db), table_name(name)
        connection = connect(path, writable=True)
        # Under the lock, so that of two processes one creates and the other opens.
        with lock.hold(lock.state_dir(path, name), "commit"):
            try:
                table = cls(path, name, connection, open_table(connection, path, name))
            except TableNotFound:
                return cls.create(path, name, space, durable=durable)
        table.space.must_equal(space, name)
        if durable:
            table.set_durable(True)
        return table

    @property
    def version(self) -> int:
        """The newest version, whoever committed it."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(lambda: int(self._handle.version))

    @property
    def durable(self) -> bool:
        """Whether each commit is forced to the disk before it is acknowledged."""
        return self._lock.durable

    def set_durable(self, durable: bool) -> None:
        """Promise of every commit from now on, whoever makes it, that no power loss takes it.

        What is there is forced to the disk first. Raises StoreError when it cannot be.
        """
        with self._lock.take():
            if durable == self._lock.durable:
                return
            if durable:
                self._writes.validator.force()
            self._set_durable(durable)

    def _set_durable(self, durable: bool) -> None:
        def note() -> Landed:
            update = {"path": "vector", "metadata": durability(durable)}
            return Landed(int(self._handle.update_field_metadata(update).version), 0)

        def came(_: int) -> Landed | None:
            there = is_durable(self._handle.schema) == durable
            return Landed(int(self._handle.version), 0) if there else None

        doing = f"setting the durability of table {self.name!r}"
        self._lock.durable = self._lock.durable or durable
        try:
            self._writes.commit(doing, note, came, seen=self.version)
        finally:
            self._lock.durable = is_durable(self._handle.schema)

    def classify(self, ids: Sequence[str] | pa.Array, dedup_keys: pa.Array) -> Statuses:
        """Return a IdStatus a row (uint8) against the newest version; nothing is locked.

        Of equal ids in `ids` the first counts; the others are duplicates or conflicts of it.
        """
        ids = string_array(ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids))
        with self._lock.mutex, lance_errors(f"reading the ids of table {self.name!r}"):
            classify = partial(self._appender.classify, ids, string_array(dedup_keys))
            statuses = self._readers.ask(classify)
        self.at_one_version(self._must_have_the_same_vectors)
        return statuses

    def append(
        self,
        batch: pa.Table | pa.RecordBatch,
        *,
        on_conflict: str = OnConflict.REJECT,
        timeout_s: float = lock.COMMIT_TIMEOUT_S,
    ) -> Appended:
        """Commit the rows whose ids are not known yet; equal text makes a duplicate.

        A row whose id is known with other text is a conflict: `reject` and
        `skip` leave it out and return its position, `update` replaces text,
        vector, keys, scopes, metadata and times but keeps created_at. All in
        one commit. Raises BadVector before anything is written, TableLocked
        after `timeout_s`, StoreError.
        """
        policy = _policy(on_conflict)
        rows = conform(batch, self.space.dim)
        refuse_bad_vectors(rows, self.space.dim)
        doing = f"appending to table {self.name!r}"
        with self._lock.take(timeout_s), lance_errors(doing):
            return self._appender.append(rows, policy)

    def search(
        self,
        vector: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
    ) -> list[Hit]:
        """Return the rows nearest to `vector` (float32[dim]), best first.

        `where` is applied before the search (see filters.py). `exact` looks at
        every row instead of going through the index. `columns` limits what is
        read. Expired and superseded rows are left out, unless `visible_only` is False.
        Raises TableMismatch when the table was re-embedded since it was opened.
        """
        options = SearchOptions(limit, where, exact, columns)

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            self._must_have_the_same_vectors(at)
            return search.search(at.table, self.space, vector, options)

        return self._found(ask, options, visible_only)

    def search_many(
        self,
        vectors: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
    ) -> list[list[Hit]]:
        """Do what `search` does for each of `vectors` (float32[n, dim]), all in one go."""
        options = SearchOptions(limit, where, exact, columns)

        def ask(at: Snapshot, options: SearchOptions) -> list[list[Hit]]:
            self._must_have_the_same_vectors(at)
            return search.search_many(at.table, self.space, vectors, options)

        return self._found(ask, options, visible_only)

    def search_text(
        self,
        text: str,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
    ) -> list[Hit]:
        """Return the rows that share words with `text`, best first by BM25.

        `text` is data, never syntax; one without words finds nothing. The other
        arguments are those of `search`. Builds the text index when there is none and it
        can be built; without, the texts are read row by row.
        """
        options = SearchOptions(limit, where, columns=columns)
        self._text_index.attempt()

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            return words.search(at.table, text, options)

        return self._found(ask, options, visible_only)

    def search_hybrid(
        self,
        text: str,
        vector: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
    ) -> list[Hit]:
        """Return the best rows by meaning and by words: the two rankings fused (see fuse.py).

        Both are those of one version of the table.
        """
        options = SearchOptions(fuse.depth(limit), where, exact, columns)
        self._text_index.attempt()

        def ask(at: Snapshot, options: SearchOptions) -> list[Hit]:
            self._must_have_the_same_vectors(at)
            near = search.search(at.table, self.space, vector, options)
            return fuse.fuse([near, words.search(at.table, text, options)], limit)

        return self._found(ask, options, visible_only)

    def ensure_text_index(self) -> bool:
        """Build the full-text index when there is none; tell whether. Raises StoreError."""
        return self._text_index.ensure()

    def rows(
        self,
        where: Mapping[str, Any] | None = None,
        *,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        visible_only: bool = False,
    ) -> pa.Table:
        """Return rows that meet a filter, in the order of their commits.

        Superseded and expired rows too, unless `visible_only`.
        """
        wanted: dict[str, Any] = {"columns": columns, "limit": limit, "offset": offset}
        rows = partial(read.rows, self._handle, where, visible_only=visible_only, **wanted)
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(rows)

    def count(self, where: Mapping[str, Any] | None = None, *, visible_only: bool = False) -> int:
        """Return how many rows meet a filter; hidden ones too, unless `visible_only`."""
        with lance_errors(f"counting the rows of table {self.name!r}"):
            count = partial(read.count, self._handle, where, visible_only=visible_only)
            return self._readers.ask(count)

    def at_one_version(self, read: Callable[[Snapshot], T]) -> T:
        """Read by as many steps as it takes from one version, the newest, and return the answer.

        Where that version is deleted meanwhile, `read` is called again with a newer one.
        """

        def once() -> T:
            with lance_errors(f"reading table {self.name!r}"):
                snapshot = self._versions.newest()
                try:
                    return read(snapshot)
                except Exception:
                    self._versions.drop(snapshot)
                    raise

        return self._readers.ask(once)

    @contextmanager
    def changing(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[Change]:
        """Look up and then write while no other process or thread writes; see `Change`.

        What it was given is committed on leaving the block, or nothing if it is left by an
        exception. Raises TableLocked after `timeout_s`, BadVector, StoreError.
        """
        with self._lock.take(timeout_s):
            change = Change(self._writes)
            yield change
            self._remember(change.commit(), change.version)

    @contextmanager
    def editing(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[Edit]:
        """Set or erase all rows that meet a filter, each by a commit at once; see `Edit`.

        Raises TableLocked after `timeout_s`, StoreError.
        """
        with self._lock.take(timeout_s):
            yield Edit(self._writes)

    def delete(self, where: Mapping[str, Any]) -> int:
        """Delete the rows that meet a filter, and return how many. Refuses an empty filter."""
        if not where:
            raise UsageError("an empty filter would delete every row; name the rows to delete")
        with self.editing() as edit:
            self._appender.known.forget()
            return edit.erase(where)

    def sync(self) -> int:
        """Force to the disk what LanceDB has written and not synced; return how many files.

        LanceDB leaves that to the system, which may take half a minute: a
        power loss in between would take commits back, or tear the last ones. A durable
        table needs no call of this.
        """
        return self._writes.validator.force()

    def info(self) -> TableInfo:
        """Return what the table is and holds."""
        return self.at_one_version(lambda at: describe(at.table, self.db, self.name))

    def optimize(self, *, keep_versions: timedelta = KEEP_VERSIONS) -> Optimized:
        """Compact small fragments, build what indices are worth it, delete older versions.

        Each step by itself, as the report tells. A version goes when it was superseded longer
        than `keep_versions` ago, and nobody reads the table for long (`keeping_versions`).
        Appends of other processes go on meanwhile; only where updates come in between again
        and again, it makes them wait. Raises TableLocked while another process tends the
        table; NotOptimized, with the report, when a step failed.
        """
        with self.tending():
            return Optimizing(self._writes, keep_versions).run().must_be_done(self.name)

    @contextmanager
    def tending(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[None]:
        """Let nobody else compact, index or clean up meanwhile. Raises TableLocked."""
        folder = lock.state_dir(self.db, self.name)
        with lock.hold(folder, "tend", timeout_s=timeout_s):
            yield

    def keeping_versions(self) -> AbstractContextManager[None]:
        """Let no version be deleted meanwhile: for who reads one version in many steps."""
        return self._readers.keep()

    def ensure_index(self, *, min_rows: int = index.INDEX_MIN_ROWS) -> bool:
        """Build the vector index when there is none and `min_rows` are there; tell whether."""
        if not self.wants_index(min_rows=min_rows):
            return False
        with self.tending():
            # Whoever had the lock before may have built it.
            if self._has_vector_index():
                return False
            index.build(self._writes)
        return True

    def wants_index(self, *, min_rows: int = index.INDEX_MIN_ROWS) -> bool:
        """Tell whether there is no vector index, and `min_rows` that are worth one."""
        return self.count() >= min_rows and not self._has_vector_index()

    def index_bytes(self) -> int:
        """Estimate the memory that building the vector index takes now, on top of what is held."""
        return apart.index_bytes(self.count(), self.space.dim)

    def _has_vector_index(self) -> bool:
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(partial(index.has_vector_index, self._handle))

    def ensure_scope_indices(self) -> tuple[str, ...]:
        """Build what is missing of the indices on ids, keys and scopes; return their columns."""
        with lance_errors(f"reading table {self.name!r}"):
            indices = self._readers.ask(self._handle.list_indices)
            there = {name for each in indices for name in each.columns}
        missing = tuple(name for name in upkeep.SCALAR_COLUMNS if name not in there)
        if missing:
            with self.tending():
                for column in missing:
                    upkeep.build_scalar(self._writes, column)
        return missing

    def upkeep(self) -> Upkeep:
        """Return what the table needs for searches and commits to stay fast; under 1 ms."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(self._keeper.look)

    def tending_due(self) -> bool:
        """Tell whether to call `tend` now: something is due, and the last call is rested from."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(self._keeper.due)

    def tend(self) -> Tended:
        """Do one step of upkeep, if one is due: see upkeep.py. For a background thread.

        Searches and commits go on meanwhile, but for some tens of milliseconds in
        which small fragments are gathered. Does nothing while another process tends.
        """
        try:
            with self.tending(timeout_s=0):
                return self._keeper.tend()
        except TableLocked:
            return Tended(None, 0.0)

    def _remember(self, rows: pa.Table | None, version: int) -> None:
        if rows is not None:
            ids, keys = string_array(rows["id"]), string_array(rows["dedup_key"])
            self._appender.known.wrote(version, ids, keys)

    def _must_have_the_same_vectors(self, at: Snapshot) -> None:
        """Raise TableMismatch if the table has been re-embedded."""
        self.space.must_still_be(at.space, self.name)

    def _found(
        self,
        ask: Callable[[Snapshot, SearchOptions], T],
        options: SearchOptions,
        visible_only: bool,
    ) -> T:
        """Search one version, leaving expired and superseded rows out unless they are wanted."""

        def read(at: Snapshot) -> T:
            if not visible_only or not self._may_hide_at(at):
                return ask(at, options)
            # By one time, however many looks the answer takes.
            return ask(at, replace(options, where=visible(options.where)))

        return self.at_one_version(read)

    def _may_hide_at(self, at: Snapshot) -> bool:
        # Where there were any, they are left out ever after, without the question.
        self._may_hide = self._may_hide or at.may_hide
        return self._may_hide


def _policy(on_conflict: str) -> OnConflict:
    try:
        return OnConflict(on_conflict)
    except ValueError:
        raise UsageError(
            f"unknown conflict policy {on_conflict!r}; use reject, skip or update"
        ) from None


def _opened(db: Path, name: str) -> tuple[LanceDBConnection, LanceTable]:
    connection = connect(db, writable=False)
    return connection, open_table(connection, db, name)

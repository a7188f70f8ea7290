"""A LanceDB table of records: create, open, append, search, count, delete, optimise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.chunking import Chunking
from memworker.errors import TableMismatch, TableNotFound, UsageError
from memworker.paths import DatabaseGiven, Place
from memworker.store import lock, read, spill
from memworker.store.append import Appender
from memworker.store.change import Change, Edit
from memworker.store.chunks import ChunksThere, ChunkWriter, Replaced
from memworker.store.claims import Claims, HeldRow, held
from memworker.store.commit import Appended, OnConflict
from memworker.store.commitlock import CommitLock
from memworker.store.fragments import Adopted, Adopter, Written, write_fragment
from memworker.store.handle import Handle
from memworker.store.info import TableInfo, describe
from memworker.store.keys import string_array
from memworker.store.known import Statuses
from memworker.store.lance import (
    WRITERS_METADATA_CACHE_BYTES,
    connect,
    database_path,
    lance_errors,
    open_table,
    table_name,
)
from memworker.store.maintenance import Maintenance
from memworker.store.opened import OpenTable
from memworker.store.optimize import Optimized
from memworker.store.policy import KEEP_VERSIONS
from memworker.store.queries import Queries, search_options
from memworker.store.readers import Readers
from memworker.store.schema import (
    Vectors,
    conform,
    new_field_metadata,
    read_chunking,
    readable,
    refuse_bad_vectors,
    table_schema,
)
from memworker.store.search import Hit, SearchOptions
from memworker.store.snapshot import Snapshot
from memworker.store.space import VectorSpace
from memworker.store.writelock import hold_writing
from memworker.store.writes import Writes, created

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

T = TypeVar("T")


class Table:
    """One table of one vector space. May be shared by threads; processes open their own.

    Every write holds the table's commit lock for the time of the commit, looks
    at the newest version under it, and leaves out the ids that are known.
    """

    def __init__(
        self, db: Place, name: str, connection: LanceDBConnection, opened: LanceTable
    ) -> None:
        self.db, self.name = db, name
        self._versions = Handle(connection, opened, partial(_opened, db, name))
        handle = self._handle = cast("LanceTable", self._versions)
        with lance_errors(f"opening table {name!r} of {db}"):
            table = OpenTable.of(handle, db)
            self._lock = CommitLock(table)
        self.space, self.identity = table.space, table.identity
        self._writes = Writes(table, self._lock)
        self._appender = Appender(self._writes)
        self._adopter = Adopter(self._writes, self._appender)
        self._chunks = ChunkWriter(self._writes, self._appender.known)
        self._readers = Readers(db, name)
        self._queries = Queries(table, self._versions, self._readers)
        self.maintenance = Maintenance(self._writes, self._readers)
        """Its indices, and what keeps it fast."""
        spill.clear(table.state)

    @classmethod
    def create(
        cls,
        db: DatabaseGiven,
        name: str,
        space: VectorSpace,
        *,
        durable: bool = False,
        chunking: Chunking | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> Table:
        """Make a new, empty table; of a `durable` one each commit is forced to the disk.

        With `chunking` its rows are chunks of texts, cut in that way. Raises StoreError when
        there is one of that name.
        """
        path, name = database_path(db, storage_options), table_name(name)
        connection = connect(path, writable=True)
        facts = new_field_metadata(space, durable=durable, chunking=chunking)
        schema = table_schema(space.dim, facts, chunks=chunking is not None)
        with lance_errors(f"creating table {name!r} in {path}"):
            table = cls(path, name, connection, created(connection, path, name, schema))
        if durable:
            table.sync()
        return table

    @classmethod
    def open(
        cls, db: DatabaseGiven, name: str, *, storage_options: Mapping[str, str] | None = None
    ) -> Table:
        """Open a table. Raises TableNotFound, naming the tables there are.

        `storage_options` are LanceDB's, for a database in object storage (``s3://…``).
        """
        path, name = database_path(db, storage_options), table_name(name)
        return cls(path, name, *_opened(path, name))

    @classmethod
    def open_or_create(
        cls,
        db: DatabaseGiven,
        name: str,
        space: VectorSpace,
        *,
        durable: bool = False,
        chunking: Chunking | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> Table:
        """Open the table, or make it. Raises TableMismatch when it is of another space.

        With `durable` it is durable from now on, also if it was there and was not.
        """
        path, name = database_path(db, storage_options), table_name(name)
        connection = connect(path, writable=True)
        # Under the lock, so that of two processes one creates and the other opens.
        with hold_writing(path, name, "commit"):
            try:
                table = cls(path, name, connection, open_table(connection, path, name))
            except TableNotFound:
                return cls.create(path, name, space, durable=durable, chunking=chunking)
        table.space.must_equal(space, name)
        if durable:
            table.set_durable(True)
        return table

    @property
    def chunking(self) -> Chunking | None:
        """How the texts were cut that its rows are chunks of; None where rows are whole texts."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(lambda: read_chunking(self._handle.schema))

    def must_be_cut(self, chunking: Chunking | None) -> None:
        """Raise TableMismatch unless texts that are cut so, or not at all, belong here."""
        ours = self.chunking
        if ours == chunking or (ours and chunking and ours.same_as(chunking)):
            return
        holds = f"chunks of texts, cut by {ours.told()}" if ours else "whole texts, not chunks"
        wanted = f"{chunking.told()} would add others" if chunking else "whole texts would be added"
        how = f"give {ours.told()}" if ours else "leave --chunk (chunk=) out"
        raise TableMismatch(
            f"table {self.name!r} holds {holds}, and {wanted}; {how}, or use another table"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns there are, with those that another program has added."""
        with lance_errors(f"reading table {self.name!r}"):
            return tuple(self._readers.ask(lambda: self._handle.schema.names))

    @property
    def version(self) -> int:
        """The newest version, of any writer."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(lambda: int(self._handle.version))

    @property
    def durable(self) -> bool:
        """Whether each commit is forced to the disk before it is acknowledged."""
        return self._lock.durable

    def set_durable(self, durable: bool) -> None:
        """Set whether every commit from now on, by any writer, is forced to the disk.

        What is there is forced to the disk first. Raises StoreError when it cannot be.
        """
        with self._lock.take():
            self._writes.set_durable(durable)

    def classify(
        self,
        ids: Sequence[str] | pa.Array,
        dedup_keys: pa.Array,
        *,
        scopes: Mapping[str, pa.Array] | None = None,
        metadata: pa.Array | None = None,
        newest: bool = True,
    ) -> Statuses:
        """Return an IdStatus a row (uint8) against the newest version; no lock is taken.

        With `newest` False the ids are those of the version that was the newest when this
        object was first asked: what others write all the time is not read again and again.

        Of equal ids in `ids` the first counts; the others are duplicates or conflicts of it.
        What is not given of scopes and metadata is not compared.
        """
        ids = string_array(ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids))
        claims = Claims(ids, string_array(dedup_keys), scopes, metadata)
        with self._lock.mutex, lance_errors(f"reading the ids of table {self.name!r}"):
            statuses = self._readers.ask(partial(self._appender.classify, claims, newest=newest))
        self.at_one_version(self._queries.must_have_the_same_vectors)
        return statuses

    def held(self, ids: Sequence[str]) -> dict[str, HeldRow]:
        """Return what the newest version holds under some ids: keys, scopes, metadata."""
        with lance_errors(f"reading table {self.name!r}"):
            return self._readers.ask(lambda: held(self._handle, list(ids)))

    def append(
        self,
        batch: pa.Table | pa.RecordBatch,
        *,
        on_conflict: str = OnConflict.REJECT,
        timeout_s: float = lock.COMMIT_TIMEOUT_S,
    ) -> Appended:
        """Commit the rows whose ids are not known yet; equal text makes a duplicate.

        An id is one in the whole table. A row whose id is known with other text or
        metadata is a conflict: `reject` and `skip` leave it out and return its position,
        `update` replaces text, vector, keys, metadata and times but keeps created_at. One
        whose id is known in another scope is left out and returned, always: no update moves
        a row from one user to another. All in one commit. Raises BadVector before anything
        is written, TableLocked after `timeout_s`, StoreError.
        """
        policy = _policy(on_conflict)
        rows = conform(batch, self.space.dim)
        refuse_bad_vectors(rows, self.space.dim)
        doing = f"appending to table {self.name!r}"
        with self._lock.take(timeout_s), lance_errors(doing):
            return self._appender.append(rows, policy)

    def compare_chunks(self, rows: pa.Table, texts: npt.NDArray[np.int64]) -> ChunksThere:
        """Hold the chunks of texts against the newest version; no lock is taken.

        `rows` has all chunks of each text, and all columns but the vector and the times;
        `texts` int64[n] numbers the text of each chunk, from 0, ascending.
        """
        with self._lock.mutex, lance_errors(f"reading the ids of table {self.name!r}"):
            there = self._readers.ask(partial(self._chunks.compare, rows, texts))
        self.at_one_version(self._queries.must_have_the_same_vectors)
        return there

    def write_fragment(self, rows: pa.Table) -> str:
        """Write rows to a file that no version names yet, for `adopt`; say what it is, as JSON.

        Any process may, at any time: what is not adopted is deleted by the next clean-up.
        """
        with lance_errors(f"writing a file of table {self.name!r}"):
            return write_fragment(self._writes.table, conform(rows, self.space.dim))

    def adopt(self, files: Sequence[Written], *, on_conflict: str = OnConflict.REJECT) -> Adopted:
        """Take files that `write_fragment` wrote into the table, known ids left out.

        One commit for all whose rows are all new; see fragments.py. Raises as `append` does;
        UsageError with ``update``, for which rows are to be appended.
        """
        policy = _policy(on_conflict)
        if policy is OnConflict.UPDATE:
            raise UsageError("files of rows add rows, and update none: use append")
        doing = f"appending files to table {self.name!r}"
        with self._lock.take(lock.COMMIT_TIMEOUT_S), lance_errors(doing):
            done = self._adopter.adopt(files, policy)
        if done.again is None:
            return done
        more = self.append(done.again, on_conflict=policy)
        return replace(
            done,
            written=done.written + more.written,
            duplicates=done.duplicates + more.duplicates + len(more.conflicts),
            version=more.version,
            again=None,
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep clean-ups away while files are written that no version names yet."""
        with self._readers.keep():
            yield

    def replace_chunks(
        self,
        rows: pa.Table | pa.RecordBatch,
        *,
        gone: Sequence[str] = (),
        on_conflict: str = OnConflict.UPDATE,
        timeout_s: float = lock.COMMIT_TIMEOUT_S,
    ) -> Replaced:
        """Make `rows` all the chunks there are of the texts that they are of, in one commit.

        Chunks that are there, by their ids, stay as they are, and keep their vectors where only
        their place in the text has changed: the vectors of `rows` may be null for them. Those of
        the same parents that are not among `rows` are deleted, and all chunks of `gone`. A parent
        that is there with other chunks is left out and returned unless `on_conflict` is
        ``update``; one of another scope is left out always. Raises UsageError, BadVector before
        anything is written, TableLocked after `timeout_s`, StoreError.
        """
        policy = _policy(on_conflict)
        if isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        doing = f"replacing chunks of table {self.name!r}"
        with self._lock.take(timeout_s), lance_errors(doing):
            return self._chunks.replace(rows, gone, policy)

    def search(
        self,
        vector: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
        group: bool = False,
        context: int = 0,
        recency_half_life: timedelta | float | None = None,
    ) -> list[Hit]:
        """Return the rows nearest to `vector` (float32[dim]), best first.

        `where` is applied before the search (see filters.py). `exact` looks at
        every row instead of going through the index. `columns` limits what is
        read. Expired and superseded rows are left out, unless `visible_only` is False.
        `group` gives each text once, by its best chunk, however many chunks it has.
        `context` puts that many rows of the same scope before and after each hit, by time,
        among those that meet `where`. `recency_half_life`, a timedelta or days, makes scores
        fade with age (see recency.py).
        Raises TableMismatch when the table was re-embedded since it was opened.
        """
        options = search_options(limit, where, exact, columns, group, context, recency_half_life)
        return self._queries.near(vector, options, visible_only)

    def search_many(
        self,
        vectors: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
        group: bool = False,
    ) -> list[list[Hit]]:
        """Do what `search` does for each of `vectors` (float32[n, dim]), all in one go."""
        options = SearchOptions(limit, where, exact, columns, group)
        return self._queries.near_each(vectors, options, visible_only)

    def search_text(
        self,
        text: str,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
        visible_only: bool = True,
        group: bool = False,
        context: int = 0,
        recency_half_life: timedelta | float | None = None,
    ) -> list[Hit]:
        """Return the rows that share words with `text`, best first by BM25.

        `text` is data, never syntax; one without words finds nothing. The other
        arguments are those of `search`. Builds the text index when there is none and it
        can be built; without, the texts are read row by row.
        """
        options = search_options(limit, where, False, columns, group, context, recency_half_life)
        self.maintenance.attempt_text_index()
        return self._queries.with_words(text, options, visible_only)

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
        group: bool = False,
        context: int = 0,
        recency_half_life: timedelta | float | None = None,
    ) -> list[Hit]:
        """Return the best rows by meaning and by words: the two rankings fused (see fuse.py).

        Both are those of one version of the table. With `context` the rows beside a hit share
        their scores with it, and may be hits themselves.
        """
        options = search_options(limit, where, exact, columns, group, context, recency_half_life)
        self.maintenance.attempt_text_index()
        return self._queries.hybrid(text, vector, options, visible_only)

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

        Superseded and expired rows too, unless `visible_only`. The metadata are JSON text.
        """
        wanted: dict[str, Any] = {"columns": columns, "limit": limit, "offset": offset}
        rows = partial(read.rows, self._handle, where, visible_only=visible_only, **wanted)
        with lance_errors(f"reading table {self.name!r}"):
            return readable(self._readers.ask(rows))

    def note_on(self, where: Mapping[str, Any] | None) -> str:
        """Say which metadata fields of a filter no row has, with the nearest names, or "".

        For answers that hold nothing: looking costs a scan of the rows in the filter's scope.
        """
        return self._queries.note_on(where)

    def count(self, where: Mapping[str, Any] | None = None, *, visible_only: bool = False) -> int:
        """Return how many rows meet a filter; hidden ones too, unless `visible_only`."""
        with lance_errors(f"counting the rows of table {self.name!r}"):
            count = partial(read.count, self._handle, where, visible_only=visible_only)
            return self._readers.ask(count)

    def scan(
        self,
        where: Mapping[str, Any] | None = None,
        *,
        columns: Sequence[str],
        visible_only: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that meet a filter, in the order of their commits, superseded ones too.

        Without those, and expired ones, if `visible_only`. Some thousand at a time. They are
        those of the version at the first step, whatever is written meanwhile, and no clean-up
        deletes that until the last step. Raises StoreError, TableLocked.
        """
        with self._readers.keep(), lance_errors(f"reading table {self.name!r}"):
            found = read.scan(self._handle, where, columns=columns, visible_only=visible_only)
            yield from map(readable, found)

    def at_one_version(self, read: Callable[[Snapshot], T]) -> T:
        """Read by as many steps as it takes from one version, the newest, and return the answer.

        Where that version is deleted meanwhile, `read` is called again with a newer one.
        """
        return self._queries.at_one_version(read)

    @contextmanager
    def changing(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[Change]:
        """Look rows up and then write, under the commit lock; see `Change`.

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

    def keep_little(self) -> None:
        """Have LanceDB cache little of the versions read: for a process that writes for long."""
        self._versions.renew_as(partial(_opened, self.db, self.name, WRITERS_METADATA_CACHE_BYTES))

    def info(self) -> TableInfo:
        """Return what the table is and holds."""
        return self.at_one_version(lambda at: describe(at.table, self.db, self.name))

    def optimize(self, *, keep_versions: timedelta = KEEP_VERSIONS) -> Optimized:
        """Compact small fragments, build what indices are worth it, delete older versions.

        Each step by itself, as the report tells. A version goes when it was superseded longer
        than `keep_versions` ago, and no long read (such as `scan`) is under way.
        Appends of other processes go on meanwhile; only where updates come in between again
        and again, it makes them wait. Raises TableLocked while another process tends the
        table; NotOptimized, with the report, when a step failed.
        """
        return self.maintenance.optimize(keep_versions)

    def _remember(self, rows: pa.Table | None, version: int) -> None:
        if rows is not None:
            self._appender.known.wrote(version, rows)


def _policy(on_conflict: str) -> OnConflict:
    try:
        return OnConflict(on_conflict)
    except ValueError:
        raise UsageError(
            f"unknown conflict policy {on_conflict!r}; use reject, skip or update"
        ) from None


def _opened(
    db: Place, name: str, metadata_cache_bytes: int | None = None
) -> tuple[LanceDBConnection, LanceTable]:
    connection = connect(db, writable=False, metadata_cache_bytes=metadata_cache_bytes)
    return connection, open_table(connection, db, name)

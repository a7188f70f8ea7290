"""A LanceDB table of records: create, open, append, search, count, delete, optimise."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import StoreError, TableNotFound, UsageError
from memworker.failpoints import reach
from memworker.store import commit, durable, index, lock, read, search, sync
from memworker.store.change import Change
from memworker.store.commit import Appended, OnConflict, Plan
from memworker.store.filters import id_in, to_sql
from memworker.store.info import TableInfo, describe
from memworker.store.keys import string_array
from memworker.store.known import RowStatus, Statuses
from memworker.store.lance import (
    connect,
    database_path,
    lance_errors,
    open_table,
    retrying,
    table_name,
)
from memworker.store.schema import (
    Vectors,
    VectorSpace,
    conform,
    new_field_metadata,
    read_field_metadata,
    refuse_bad_vectors,
    table_schema,
    widen,
)
from memworker.store.search import Hit, SearchOptions

if TYPE_CHECKING:
    from lancedb.table import LanceTable

KEEP_VERSIONS = timedelta(hours=1)
"""Old versions this young may still be read by a search that is under way elsewhere."""

# One row a delete takes 13 ms a row; a long chain of ORs is a deep tree to the planner.
_DELETE_ROWS = 64


class Table:
    """One table of one vector space. May be shared by threads; processes open their own.

    Every write holds the table's commit lock for the time of the commit, looks
    at the newest version under it, and leaves out the ids that are known.
    """

    def __init__(self, db: Path, name: str, handle: LanceTable) -> None:
        self.db, self.name = db, name
        self.space, self.identity = read_field_metadata(handle.schema, name)
        self._handle = handle
        self._known = sync.KnownRows()
        self._durable = durable.Folder(db / f"{name}.lance")
        self._mortals = (-1, False)
        self._mutex = threading.RLock()
        self._writing_now = False

    @classmethod
    def create(cls, db: str | Path, name: str, space: VectorSpace) -> Table:
        """Make a new, empty table. Raises StoreError when there is one of that name."""
        path, name = database_path(db), table_name(name)
        connection = connect(path, writable=True)
        schema = table_schema(space.dim, new_field_metadata(space))
        with lance_errors(f"creating table {name!r} in {path}"):
            return cls(path, name, connection.create_table(name, schema=schema))

    @classmethod
    def open(cls, db: str | Path, name: str) -> Table:
        """Open a table. Raises TableNotFound, naming the tables there are."""
        path, name = database_path(db), table_name(name)
        return cls(path, name, open_table(connect(path, writable=False), path, name))

    @classmethod
    def open_or_create(cls, db: str | Path, name: str, space: VectorSpace) -> Table:
        """Open the table, or make it. Raises TableMismatch when it is of another space."""
        path, name = database_path(db), table_name(name)
        connection = connect(path, writable=True)
        # Under the lock, so that of two processes one creates and the other opens.
        with lock.hold(lock.state_dir(path, name), "commit"):
            try:
                table = cls(path, name, open_table(connection, path, name))
            except TableNotFound:
                return cls.create(path, name, space)
        table.space.must_equal(space, name)
        return table

    @property
    def version(self) -> int:
        """The newest version, whoever committed it."""
        with lance_errors(f"reading table {self.name!r}"):
            return int(self._handle.version)

    def classify(self, ids: Sequence[str] | pa.Array, dedup_keys: pa.Array) -> Statuses:
        """Return a RowStatus a row (uint8) against the newest version; nothing is locked.

        Of equal ids in `ids` the first counts; the others are duplicates or conflicts of it.
        """
        ids = string_array(ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids))
        with self._mutex, lance_errors(f"reading the ids of table {self.name!r}"):
            known = self._known.refresh(self._handle)
            keys = string_array(dedup_keys)
            hashes = known.hash(ids, keys)
            return commit.classify(ids, keys, known, self._dedup_keys_of, hashes=hashes)[0]

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
        with self._writing("appending to", timeout_s):
            return self._commit(rows, policy)

    def search(
        self,
        vector: Vectors,
        *,
        limit: int = 10,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        columns: Sequence[str] | None = None,
        include_expired: bool = False,
    ) -> list[Hit]:
        """Return the rows nearest to `vector` (float32[dim]), best first.

        `where` is applied before the search (see filters.py). `exact` looks at
        every row instead of going through the index. `columns` limits what is
        read. Expired and superseded rows are left out unless `include_expired`.
        """
        alive_only = not include_expired and self._has_mortals()
        options = SearchOptions(limit, where, exact, columns, alive_only)
        return search.search(self._handle, self.space, vector, options)

    def rows(
        self,
        where: Mapping[str, Any] | None = None,
        *,
        columns: Sequence[str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        live_only: bool = False,
    ) -> pa.Table:
        """Return rows that meet a filter, in the order of their commits.

        Superseded and expired rows too, unless `live_only`.
        """
        with lance_errors(f"reading table {self.name!r}"):
            return read.rows(
                self._handle,
                where,
                columns=columns,
                limit=limit,
                offset=offset,
                live_only=live_only,
            )

    def count(self, where: Mapping[str, Any] | None = None, *, live_only: bool = False) -> int:
        """Return how many rows meet a filter; those that searches hide too, unless `live_only`."""
        with lance_errors(f"counting the rows of table {self.name!r}"):
            return read.count(self._handle, where, live_only=live_only)

    @contextmanager
    def changing(self, *, timeout_s: float = lock.COMMIT_TIMEOUT_S) -> Iterator[Change]:
        """Look up and then write while no other process or thread writes; see `Change`.

        What was told is committed on leaving the block, or nothing if it is left by an
        exception. Raises TableLocked after `timeout_s`, BadVector, StoreError.
        """
        with self._locked(timeout_s):
            change = Change(self._handle, self.space.dim)
            yield change
            self._remember(change.commit(), change.version)

    def delete(self, where: Mapping[str, Any]) -> int:
        """Delete the rows that meet a filter, and return how many. Refuses an empty filter."""
        if not where:
            raise UsageError("an empty filter would delete every row; name the rows to delete")
        with self._writing("deleting from", lock.COMMIT_TIMEOUT_S):
            self._known.forget()
            deleted = retrying(lambda: self._handle.delete(to_sql(where)))
            return int(deleted.num_deleted_rows)

    def sync(self) -> int:
        """Force to the disk what LanceDB has written and not synced; return how many files.

        LanceDB leaves that to the system, which may take half a minute: a
        power loss in between would take commits back, or tear the last ones.
        """
        with lance_errors(f"syncing table {self.name!r} to the disk"):
            return self._durable.sync()

    def info(self) -> TableInfo:
        """Return what the table is and holds."""
        with lance_errors(f"reading table {self.name!r}"):
            return describe(self._handle, self.db, self.name)

    def optimize(self, *, keep_versions: timedelta = KEEP_VERSIONS) -> None:
        """Compact small fragments, bring the index up to date, delete older versions.

        Takes no lock: appends of other processes go on meanwhile.
        """
        with lance_errors(f"optimising table {self.name!r}"):
            retrying(lambda: self._handle.optimize(cleanup_older_than=keep_versions))

    def ensure_index(self, *, min_rows: int = index.INDEX_MIN_ROWS) -> bool:
        """Build the vector index when there is none and `min_rows` are there; tell whether."""
        if self.count() < min_rows or index.has_vector_index(self._handle):
            return False
        index.build(self._handle, self.space.distance)
        return True

    @contextmanager
    def _writing(self, doing: str, timeout_s: float) -> Iterator[None]:
        with self._locked(timeout_s), lance_errors(f"{doing} table {self.name!r}"):
            yield

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        folder = lock.state_dir(self.db, self.name)
        with self._mutex:
            if self._writing_now:
                raise UsageError("a change of this table is open; write through it, or after it")
            with lock.hold(folder, "commit", timeout_s=timeout_s):
                self._writing_now = True
                try:
                    with lance_errors(f"reading table {self.name!r}"):
                        self._must_be_the_same_table()
                    yield
                finally:
                    self._writing_now = False

    def _remember(self, rows: pa.Table | None, version: int) -> None:
        if rows is not None:
            ids, keys = string_array(rows["id"]), string_array(rows["dedup_key"])
            self._known.wrote(version, ids, keys)

    def _must_be_the_same_table(self) -> None:
        _, identity = read_field_metadata(self._handle.schema, self.name)
        if identity != self.identity:
            raise StoreError(
                f"table {self.name!r} was dropped and made again since it was opened; "
                "open it again, or start the job afresh"
            )

    def _commit(self, rows: pa.Table, policy: OnConflict) -> Appended:
        seen = self._handle.version
        plan = self._plan(rows, policy)
        if not len(plan.write) and not len(plan.update):
            return _outcome(plan, policy, seen)
        # Whoever moves the version now does not take our lock: let LanceDB compare the ids.
        moved = self._handle.version != seen
        if moved:
            plan = self._plan(rows, policy)
        if moved or len(plan.update):
            version, written = self._merge(rows, plan)
        else:
            version, written = self._add(rows, plan, seen)
        chosen = np.concatenate([plan.write, plan.update])
        self._known.committed(version, plan.keys[chosen], plan.records[chosen])
        return _outcome(plan, policy, version, written)

    def _has_mortals(self) -> bool:
        """Tell whether any row expires or is superseded, asking once a version.

        Filtering them out costs 10 ms and more a search at 200,000 rows, this
        question 2.5 ms, and most tables have none.
        """
        version, found = self._mortals
        newest = self.version
        if version != newest:
            either = {"OR": [{"expires_at": {"ne": None}}, {"superseded_at": {"ne": None}}]}
            found = self.count(either) > 0
            self._mortals = (newest, found)
        return found

    def _plan(self, rows: pa.Table, policy: OnConflict) -> Plan:
        known = self._known.refresh(self._handle)
        return commit.plan(rows, known, self._dedup_keys_of, policy)

    def _add(self, rows: pa.Table, plan: Plan, seen: int) -> tuple[int, int]:
        chosen = _take(rows, plan.write)
        reach("before_add")
        version = retrying(lambda: self._handle.add(chosen)).version
        reach("after_add")
        if version == seen + 1:
            return version, chosen.num_rows
        doubled = self._drop_doubles(chosen["id"])
        return self._handle.version, chosen.num_rows - doubled

    def _merge(self, rows: pa.Table, plan: Plan) -> tuple[int, int]:
        source = pa.concat_tables([_take(rows, plan.write), self._updates(rows, plan)])
        source = widen(source, self._handle.schema)
        merge = self._handle.merge_insert("id").when_not_matched_insert_all()
        if len(plan.update):
            merge = merge.when_matched_update_all()
        # Only without an index do two merges of the same new ids see each other.
        result = retrying(lambda: merge.use_index(False).execute(source))
        return result.version, result.num_inserted_rows

    def _updates(self, rows: pa.Table, plan: Plan) -> pa.Table:
        updates = _take(rows, plan.update)
        if not updates.num_rows:
            return updates
        found = read.find(
            self._handle, "id", updates["id"].to_pylist(), columns=["id", "created_at"]
        )
        at = pc.index_in(updates["id"], string_array(found["id"]))
        created = pc.coalesce(found["created_at"].take(at), updates["created_at"])
        place = updates.schema.get_field_index("created_at")
        return updates.set_column(place, updates.schema.field(place), created)

    def _drop_doubles(self, ids: pa.ChunkedArray) -> int:
        """Delete our copies of ids that an outside writer committed at the same moment."""
        first: dict[str, int] = {}
        ours: list[tuple[str, int]] = []
        for row_id, address in read.addresses(self._handle, ids):
            first[row_id], later = sorted((address, first.get(row_id, address)))
            if later != first[row_id]:
                ours.append((row_id, later))
        for at in range(0, len(ours), _DELETE_ROWS):
            # The id too: a compaction may give the address to another row.
            rows = (
                f"(_rowid = {address} AND {id_in([i])})" for i, address in ours[at:][:_DELETE_ROWS]
            )
            self._handle.delete(" OR ".join(rows))
        return len(ours)

    def _dedup_keys_of(self, ids: list[str]) -> dict[str, str]:
        found = read.find(self._handle, "id", ids, columns=["id", "dedup_key"])
        pairs = zip(found["id"].to_pylist(), found["dedup_key"].to_pylist(), strict=True)
        return dict(pairs)


def _policy(on_conflict: str) -> OnConflict:
    try:
        return OnConflict(on_conflict)
    except ValueError:
        raise UsageError(
            f"unknown conflict policy {on_conflict!r}; use reject, skip or update"
        ) from None


def _take(rows: pa.Table, which: commit.Indices) -> pa.Table:
    return rows if len(which) == rows.num_rows else rows.take(pa.array(which))


def _outcome(plan: Plan, policy: OnConflict, version: int, written: int = 0) -> Appended:
    conflicts = np.flatnonzero(plan.statuses == RowStatus.CONFLICT)
    update = policy is OnConflict.UPDATE
    return Appended(
        written=written,
        # Rows that an outside writer committed just before us count as duplicates.
        duplicates=len(plan.statuses) - written - len(conflicts),
        conflicts=() if update else tuple(conflicts.tolist()),
        updated=len(conflicts) if update else 0,
        version=version,
    )

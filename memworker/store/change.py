"""Writes under the commit lock: rows looked up and then written, or all that meet a filter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from memworker.errors import UsageError
from memworker.failpoints import reach
from memworker.store import read
from memworker.store.filters import assignments, to_sql
from memworker.store.lance import lance_errors
from memworker.store.schema import conform, has_chunks, refuse_bad_vectors, widen
from memworker.store.writes import Came, Landed, Write, Writes

KeyColumn = Literal["id", "dedup_key"]


class _Committing:
    """Commits made while this thread holds the commit lock."""

    def __init__(self, writes: Writes) -> None:
        self._writes, self._handle = writes, writes.handle
        self._doing = f"changing table {self._handle.name!r}"
        self.version = writes.lock.version
        """The table's version: after a commit, the one that it made."""

    def _schema(self) -> pa.Schema:
        return self._writes.lock.schema

    def _commit(self, write: Write, came: Came, *, spills: bool = False) -> Landed:
        landed = self._writes.commit(self._doing, write, came, seen=self.version, spills=spills)
        self.version = landed.version
        return landed


class Change(_Committing):
    """What `Table.changing()` gives: the newest version to read, and rows staged for a commit.

    Rows given to `insert` and `replace` are written in one atomic commit when
    the change is left without an exception.
    """

    def __init__(self, writes: Writes) -> None:
        super().__init__(writes)
        self._inserted: list[pa.Table] = []
        self._replaced: list[pa.Table] = []
        self._ids: set[str] = set()

    def find(
        self,
        column: KeyColumn,
        values: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        visible_only: bool = False,
    ) -> pa.Table:
        """Return the rows whose `column` has exactly one of these values, in no given order.

        Superseded and expired rows too, unless `visible_only`.
        """
        with lance_errors(f"looking up rows of table {self._handle.name!r}"):
            return read.find(
                self._handle, column, values, columns=columns, visible_only=visible_only
            )

    def scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows, superseded and expired ones too, some thousand at a time."""
        with lance_errors(f"reading table {self._handle.name!r}"):
            yield from self._handle.search().select(list(columns)).to_batches(read.SCAN_ROWS)

    def insert(self, rows: pa.Table) -> None:
        """Stage new rows; their ids must not be in the table. Raises BadVector, UsageError."""
        self._inserted.append(self._checked(rows))

    def replace(self, rows: pa.Table) -> None:
        """Stage whole rows that replace those with their ids. Raises BadVector, UsageError."""
        self._replaced.append(self._checked(rows))

    def commit(self) -> pa.Table | None:
        """Write the staged rows in one commit; return them. `Table.changing` calls this."""
        given = [rows for rows in (*self._inserted, *self._replaced) if rows.num_rows]
        if not given:
            return None
        rows = widen(pa.concat_tables(given), self._schema())
        reach("before_add")
        came = partial(self._came, rows)
        landed = self._commit(partial(self._write, rows), came, spills=bool(self._replaced))
        self._writes.lock.added(landed.version)
        reach("after_add")
        return rows

    def _came(self, rows: pa.Table, seen: int) -> Landed | None:
        """Return the commit of a write that raised if its rows are in the table, else None."""
        # Not the metadata, which LanceDB keeps in its own form; the times tell rows apart.
        names = [name for name in rows.column_names if name not in ("vector", "metadata")]
        found = read.find(self._handle, "id", rows["id"].to_pylist(), columns=names)
        if found.num_rows != rows.num_rows:
            return None
        wanted, found = (part.select(names).sort_by("id") for part in (rows, found))
        if any(a.to_pylist() != b.to_pylist() for a, b in zip(wanted, found, strict=True)):
            return None
        return Landed(int(self._handle.version), rows.num_rows)

    def _write(self, rows: pa.Table) -> Landed:
        if not self._replaced:
            return Landed(int(self._handle.add(rows).version), rows.num_rows)
        # Through the index on id where there is one: 8 ms instead of 30 at 200,000 rows. That two
        # merges of one new id would then not see each other does not matter under the lock.
        merge = self._handle.merge_insert("id").when_matched_update_all()
        version = merge.when_not_matched_insert_all().execute(rows).version
        return Landed(int(version), rows.num_rows)

    def _checked(self, rows: pa.Table) -> pa.Table:
        dim = self._writes.table.space.dim
        rows = conform(rows, dim)
        refuse_bad_vectors(rows, dim)
        ids = rows["id"].to_pylist()
        fresh = self._ids.union(ids)
        if len(fresh) != len(self._ids) + len(ids):
            # LanceDB would write both.
            twice = next(i for at, i in enumerate(ids) if i in self._ids or i in ids[:at])
            raise UsageError(f"id {twice!r} was given to one change twice; give its last row only")
        self._ids = fresh
        return rows


class Edit(_Committing):
    """What `Table.editing()` gives: changes of all rows that meet a filter.

    Each is committed at once, by itself, and returns how many rows there were.
    """

    def set(self, where: Mapping[str, Any], values: Mapping[str, datetime | None]) -> int:
        """Set times (`superseded_at` and the like). Refuses an empty filter."""
        _refuse_all("set", where)
        sql, changed = to_sql(where, chunks=has_chunks(self._schema())), assignments(values)

        def update() -> Landed:
            result = self._handle.update(where=sql, values_sql=changed)
            return Landed(int(result.version), int(result.rows_updated))

        def came(seen: int) -> Landed | None:
            # Whether it came or not: the same values once more change nothing.
            again = update()
            return Landed(again.version, self._writes.count_at(seen, sql))

        return self._commit(update, came).rows

    def erase(self, where: Mapping[str, Any]) -> int:
        """Delete the rows. Refuses an empty filter."""
        _refuse_all("erase", where)
        sql = to_sql(where, chunks=has_chunks(self._schema()))

        def delete() -> Landed:
            gone = self._handle.delete(sql)
            return Landed(int(gone.version), int(gone.num_deleted_rows))

        return self._commit(delete, partial(self._writes.gone, sql)).rows


def _refuse_all(verb: str, where: Mapping[str, Any]) -> None:
    if not where:
        raise UsageError(f"{verb}() with an empty filter concerns every row; name the rows")

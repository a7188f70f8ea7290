"""A change: what is looked up and then written while nobody else writes, in one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from memworker.errors import UsageError
from memworker.failpoints import reach
from memworker.store import read
from memworker.store.filters import assignments, to_sql
from memworker.store.lance import lance_errors, retrying
from memworker.store.schema import conform, refuse_bad_vectors, widen

if TYPE_CHECKING:
    from lancedb.table import LanceTable

KeyColumn = Literal["id", "dedup_key"]


class Change:
    """What `Table.changing()` gives: the newest version to read, and what shall be written.

    Rows given to `insert` and `replace` are written in one atomic commit when
    the change is left without an exception. `set` and `erase` commit at once,
    and each alone; they cannot be joined with the other two.
    """

    def __init__(self, handle: LanceTable, dim: int) -> None:
        self.version = int(handle.version)
        """The table's version: after the commit, the one that it made."""
        self._handle, self._dim = handle, dim
        self._inserted: list[pa.Table] = []
        self._replaced: list[pa.Table] = []
        self._ids: set[str] = set()
        self._at_once = False

    def find(
        self,
        column: KeyColumn,
        values: Sequence[str],
        *,
        columns: Sequence[str] | None = None,
        live_only: bool = False,
    ) -> pa.Table:
        """Return the rows whose `column` has exactly one of these values, in no given order.

        Superseded and expired rows too, unless `live_only`.
        """
        with lance_errors(f"looking up rows of table {self._handle.name!r}"):
            return read.find(self._handle, column, values, columns=columns, live_only=live_only)

    def rows(self, where: Mapping[str, Any], *, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows that meet a filter, superseded and expired ones too."""
        with lance_errors(f"reading table {self._handle.name!r}"):
            return read.rows(self._handle, where, columns=columns)

    def insert(self, rows: pa.Table) -> None:
        """Tell rows to be added; their ids are known not to be in the table. Raises BadVector."""
        self._inserted.append(self._checked(rows))

    def replace(self, rows: pa.Table) -> None:
        """Tell whole rows that take the place of those with their ids. Raises BadVector."""
        self._replaced.append(self._checked(rows))

    def set(self, where: Mapping[str, Any], values: Mapping[str, datetime | None]) -> int:
        """Set times (`superseded_at` and the like) of the rows that meet a filter, at once.

        A commit of its own. Returns how many rows there were.
        """
        self._alone("set", where)
        changed = assignments(values)
        with lance_errors(f"changing table {self._handle.name!r}"):
            sql = to_sql(where)
            result = retrying(lambda: self._handle.update(where=sql, values_sql=changed))
            self.version = int(result.version)
            return int(result.rows_updated)

    def erase(self, where: Mapping[str, Any]) -> int:
        """Delete the rows that meet a filter, at once; a commit of its own. Returns how many."""
        self._alone("erase", where)
        with lance_errors(f"deleting from table {self._handle.name!r}"):
            sql = to_sql(where)
            result = retrying(lambda: self._handle.delete(sql))
            self.version = int(result.version)
            return int(result.num_deleted_rows)

    def commit(self) -> pa.Table | None:
        """Write what was told, in one commit; return its rows. `Table.changing` calls this."""
        told = [*self._inserted, *self._replaced]
        told = [rows for rows in told if rows.num_rows]
        if not told:
            return None
        rows = widen(pa.concat_tables(told), self._handle.schema)
        reach("before_add")
        with lance_errors(f"changing table {self._handle.name!r}"):
            self.version = retrying(lambda: self._write(rows))
        reach("after_add")
        return rows

    def _write(self, rows: pa.Table) -> int:
        if not self._replaced:
            return int(self._handle.add(rows).version)
        # Through the index on id where there is one: 8 ms instead of 30 at 200,000 rows. That two
        # merges of one new id would then not see each other does not matter under the lock.
        merge = self._handle.merge_insert("id").when_matched_update_all()
        return int(merge.when_not_matched_insert_all().execute(rows).version)

    def _checked(self, rows: pa.Table) -> pa.Table:
        if self._at_once:
            raise UsageError("set() and erase() commit at once; insert in a change of its own")
        rows = conform(rows, self._dim)
        refuse_bad_vectors(rows, self._dim)
        ids = rows["id"].to_pylist()
        fresh = self._ids.union(ids)
        if len(fresh) != len(self._ids) + len(ids):
            # LanceDB would write both.
            twice = next(i for at, i in enumerate(ids) if i in self._ids or i in ids[:at])
            raise UsageError(f"id {twice!r} was given to one change twice; give its last row only")
        self._ids = fresh
        return rows

    def _alone(self, verb: str, where: Mapping[str, Any]) -> None:
        if self._ids:
            raise UsageError(f"{verb}() commits at once; it needs a change without other rows")
        if not where:
            raise UsageError(f"{verb}() with an empty filter concerns every row; name the rows")
        self._at_once = True

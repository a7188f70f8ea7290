"""Keeping the known ids of a table in step with its newest version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from memworker.store.filters import id_in
from memworker.store.keys import Hashes, string_array
from memworker.store.known import KnownIds

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_SCAN_ROWS = 65_536
# Planning `id IN (…)` costs about 40 µs an id; from here on a scan of the column is cheaper.
_IN_LIST_MAX = 256


class KnownRows:
    """The known ids as of one version, and what it takes to learn of later rows only.

    A row's address grows with every commit, so rows of other writers are those
    beyond the last address seen. That this is all that happened shows in the
    row count; otherwise (rows deleted, updated, moved) all ids are read again.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Read everything again the next time."""
        self._ids = KnownIds()
        self._version = -1
        self._loaded_rows = 0
        self._last_address = -1

    def refresh(self, table: LanceTable) -> KnownIds:
        """Return the known ids of the table's newest version."""
        version = table.version
        if version == self._version:
            return self._ids
        if self._version < 0 or not self._read_newer(table):
            self.forget()
            self._read_newer(table)
        self._version = version
        return self._ids

    def committed(self, version: int, keys: Hashes, records: Hashes) -> None:
        """Note rows that this process has committed as `version`."""
        # Any other version has rows of an outside writer in it, which refresh() will read.
        if version == self._version + 1:
            self._ids.add(keys, records)
            self._version = version

    def _read_newer(self, table: LanceTable) -> bool:
        """Read the rows beyond the last address; tell whether no earlier one has gone."""
        query = table.search().select(["id", "dedup_key"]).with_row_id(True)
        if self._last_address >= 0:
            query = query.where(f"_rowid > {self._last_address}")
        rows = self._loaded_rows
        for batch in query.to_batches(_SCAN_ROWS):
            if batch.num_rows:
                self._ids.add(*self._ids.hash(batch["id"], batch["dedup_key"]))
                self._last_address = max(self._last_address, pc.max(batch["_rowid"]).as_py())
                rows += batch.num_rows
        self._loaded_rows = rows
        return rows == int(table.count_rows())


def look_up(table: LanceTable, ids: list[str], column: str) -> pa.Table:
    """Return the columns `id` and `column` of the rows with these ids, by exact comparison."""
    query = table.search().select(["id", column])
    if len(ids) <= _IN_LIST_MAX:
        return query.where(id_in(ids)).to_arrow()
    wanted = pa.array(ids, pa.string())
    found = [
        batch.filter(pc.is_in(string_array(batch["id"]), wanted))
        for batch in query.to_batches(_SCAN_ROWS)
    ]
    return pa.Table.from_batches(found) if found else query.limit(0).to_arrow()


def addresses(table: LanceTable, ids: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    """Yield (id, address) of every row with one of these ids, also of equal ones."""
    wanted = string_array(ids)
    for batch in table.search().select(["id"]).with_row_id(True).to_batches(_SCAN_ROWS):
        found = batch.filter(pc.is_in(string_array(batch["id"]), wanted))
        yield from zip(found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True)

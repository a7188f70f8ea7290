"""Keeping the known ids of a table in step with its newest version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from memworker.store.keys import Hashes, string_array
from memworker.store.known import IdStatus, KnownIds

if TYPE_CHECKING:
    from lancedb.table import LanceTable

# Of metadata a row may have much.
ROWS_AT_ONCE = 8192


class KnownRows:
    """The known ids as of one version, and what it takes to learn of later rows only.

    A row's address grows with every commit, so rows of other writers are those
    beyond the last address seen. That this is all that happened shows in the
    row count, and in that all rows written here are among them; otherwise
    (rows deleted, updated, moved) all ids are read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.forget()

    def forget(self) -> None:
        """Read everything again the next time."""
        self._ids = KnownIds(folder=self._folder)
        self._version = -1
        self._loaded_rows = 0
        self._unseen = 0
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
            self._unseen += len(keys)
            self._version = version

    def wrote(self, version: int, rows: pa.Table) -> None:
        """Note rows that this process has written, new or in the place of others, as `version`."""
        if version == self._version + 1:
            ids, keys = string_array(rows["id"]), string_array(rows["dedup_key"])
            self.committed(version, *self._ids.hash(ids, keys, rows["metadata"]))

    def _read_newer(self, table: LanceTable) -> bool:
        """Read the rows beyond the last address; tell whether no earlier one has gone."""
        query = table.search().select(["id", "dedup_key", "metadata"]).with_row_id(True)
        if self._last_address >= 0:
            query = query.where(f"_rowid > {self._last_address}")
        rows = self._loaded_rows
        for batch in query.to_batches(ROWS_AT_ONCE):
            if batch.num_rows:
                hashes = self._ids.hash(batch["id"], batch["dedup_key"], batch["metadata"])
                if self._unseen > 0:
                    self._unseen -= int((self._ids.find(*hashes) == IdStatus.DUPLICATE).sum())
                self._ids.add(*hashes)
                self._last_address = max(self._last_address, pc.max(batch["_rowid"]).as_py())
                rows += batch.num_rows
        self._loaded_rows = rows
        seen, self._unseen = self._unseen == 0, 0
        return seen and rows == int(table.count_rows())

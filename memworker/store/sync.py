"""Keeping the known ids of a table in step with its newest version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.store.keys import Hashes, string_array
from memworker.store.known import IdStatus, KnownIds
from memworker.store.read import IN_LIST_MAX
from memworker.store.schema import has_chunks

if TYPE_CHECKING:
    from lancedb.table import LanceTable

# Of metadata a row may have much.
ROWS_AT_ONCE = 8192
# Of each text it is asked twice: when it is read, and when it is written.
_LOOKED_UP_MAX = 2 * IN_LIST_MAX
PLACE_COLUMNS = ("parent_id", "chunk", "char_start", "char_end", "last_chunk")


class KnownRows:
    """The known ids as of one version, and what it takes to learn of later rows only.

    A row's address grows with every commit, so rows of other writers are those
    beyond the last address seen. That this is all that happened shows in the
    row count, and in that all rows written here are among them; otherwise
    (rows deleted, updated, moved) all ids are read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._looked_up = 0
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

    def spared(self, texts: int) -> bool:
        """Tell whether to look up the chunks of so many texts rather than to know all rows.

        Until a few hundred were asked for: the edit of one text then costs no reading of a table
        of millions.
        """
        if self._version >= 0 or self._looked_up + texts > _LOOKED_UP_MAX:
            return False
        self._looked_up += texts
        return True

    def as_read(self, table: LanceTable) -> KnownIds:
        """Return the known ids as of the last refresh, the first time of the newest version."""
        return self._ids if self._version >= 0 else self.refresh(table)

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
            hashes = self._ids.hash(ids, keys, rows["metadata"], places_of(rows))
            self.committed(version, *hashes)
            if has_chunks(rows.schema):
                self._ids.add_parents(rows["parent_id"].combine_chunks())

    def replaced(self, version: int, rows: pa.Table, gone: pa.Table, *, moved: int) -> None:
        """Note chunks written as `version`, `moved` of them in the place of others, and gone ones.

        What is gone stays known, with a record that no row has, so that it is looked up.
        """
        if version == self._version + 1:
            keys, _ = self._ids.hash(string_array(gone["id"]), string_array(gone["dedup_key"]))
            self._ids.add(keys, np.zeros(len(keys), np.uint64))
            self._loaded_rows -= gone.num_rows + moved
            self.wrote(version, rows)

    def _read_newer(self, table: LanceTable) -> bool:
        """Read the rows beyond the last address; tell whether no earlier one has gone."""
        chunks = has_chunks(table.schema)
        columns = ["id", "dedup_key", "metadata", *(PLACE_COLUMNS if chunks else ())]
        query = table.search().select(columns).with_row_id(True)
        if self._last_address >= 0:
            query = query.where(f"_rowid > {self._last_address}")
        rows = self._loaded_rows
        for batch in query.to_batches(ROWS_AT_ONCE):
            if batch.num_rows:
                hashes = self._ids.hash(
                    batch["id"], batch["dedup_key"], batch["metadata"], places_of(batch)
                )
                if chunks:
                    self._ids.add_parents(batch["parent_id"])
                if self._unseen > 0:
                    self._unseen -= int((self._ids.find(*hashes) == IdStatus.DUPLICATE).sum())
                self._ids.add(*hashes)
                self._last_address = max(self._last_address, pc.max(batch["_rowid"]).as_py())
                rows += batch.num_rows
        self._loaded_rows = rows
        seen, self._unseen = self._unseen == 0, 0
        return seen and rows == int(table.count_rows())


def places_of(rows: pa.Table | pa.RecordBatch) -> pa.Array | None:
    """Write down where each chunk stands in its text, null of a row that is no chunk."""
    if "parent_id" not in rows.schema.names:
        return None
    # The parent comes last, for it may hold anything.
    names = [*PLACE_COLUMNS[1:], PLACE_COLUMNS[0]]
    parts = [rows[name].cast(pa.string()) for name in names]
    return pc.binary_join_element_wise(*parts, ":")

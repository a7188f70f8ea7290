"""Re-embedding, the store's side: which texts want a vector, and the one commit that puts all in.

::

    table ─► missing() ─► (a pool) ─► Staged.add ─► DB/.memworker/TABLE/reembed/
      ▲                                                        │
      └────────── switch(): one commit of every row ◄──────────┘

Until that commit the table is as it was: readers, writers and indices do not
notice. A second column in the table, filled batch by batch, was measured and
left: LanceDB's merge of some columns writes whole rows anew and reads every
column of the table for each batch (0.3 s for 4,096 rows at 100,000, and 0.5 GB of
memory), and each moved row leaves the index of the old vectors. Here the rows are
written once, in batches of a bounded size, 100,000 in 1 s.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from memworker.errors import StoreError
from memworker.failpoints import reach
from memworker.paths import Place
from memworker.store import bounded, lock, places
from memworker.store.indices import build_index, indexed_columns
from memworker.store.lance import connect, lance_errors, open_table
from memworker.store.opened import OpenTable
from memworker.store.readers import Readers
from memworker.store.schema import (
    embedded_texts,
    has_chunks,
    is_durable,
    new_field_metadata,
    read_chunking,
    read_field_metadata,
    table_schema,
    vector_array,
)
from memworker.store.staged import Digests, Staged, text_digests
from memworker.store.writes import Landed, Writes
from memworker.vectors import bad_vectors

if TYPE_CHECKING:
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

# What is read, embedded and copied at once, as large as a reader's batch.
BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Missing:
    """Texts without a vector, each once, out of `rows` rows that were looked at.

    `ids` (Arrow string[n]) name for each text the first row that has it.
    """

    rows: int
    ids: pa.Array
    texts: pa.Array
    digests: Digests


class Reembedding:
    """A table, and the vectors of another space that are put into it. Needs the job lock."""

    def __init__(self, db: Place, name: str, staged: Staged) -> None:
        self._db, self._name = db, name
        self._connection = connect(db, writable=True)
        self._handle = open_table(self._connection, db, name)
        self._staged = staged
        self._writes = Writes(OpenTable.of(self._handle, db))
        self._seen = -1
        self._readers = Readers(db, name)

    def missing(self) -> Iterator[Missing]:
        """Look at every row, batch by batch, and give the texts whose vectors are not staged.

        Rows that others write meanwhile come last, for the addresses of rows
        grow; each batch is read from the newest version, so that none has to be
        kept for as long as the embedding takes.
        """
        address = -1
        while (rows := self._rows_after(address)).num_rows:
            address = rows["_rowid"][-1].as_py()
            digests, first = np.unique(text_digests(rows["text"]), return_index=True)
            first = np.sort(first[~self._staged.has(digests)])
            chosen = rows.take(pa.array(first)).combine_chunks()
            ids, texts = chosen["id"].combine_chunks(), chosen["text"].combine_chunks()
            yield Missing(rows.num_rows, ids, texts, text_digests(texts))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks ``tend`` and ``commit``. Raises TableLocked, StoreError."""
        folder = lock.state_dir(self._db, self._name)
        with lock.hold(folder, "tend"), self._writes.lock.take():
            yield

    def switch(self) -> int | None:
        """Give every row its new vector in one commit; return the version, with the lock held.

        None means that a text has no vector yet, or that another program wrote
        without the lock: then nothing has changed, and the missing must be looked
        for again. Indices go with the old vectors; see `build_indices`.
        """
        self._staged.note_indices(sorted(indexed_columns(self._handle)))
        doing = f"re-embedding table {self._name!r}"
        with lance_errors(doing):
            before = int(self._handle.version)
            # The copy looks after interrupts itself.
            landed = self._writes.commit(
                doing, self._copy, self._came, seen=before, run=lambda copy: copy()
            )
            if landed.version <= self._seen + 1:
                return landed.version if landed.version > self._seen else None
            # The commit of the other program is in the version before ours, and not in ours.
            self._writes.restore(landed.version - 1)
            return None

    def _copy(self) -> Landed:
        # Later than the first look, where a copy was not whole and has been taken back.
        self._seen = int(self._handle.version)
        copy = _TableCopy(self._handle, self._staged, self._schema(), self._seen)
        made = copy.run(self._connection, self._name, self._db)
        return Landed(self._seen if made is None else made, 0)

    def _came(self, _: int) -> Landed | None:
        space, _identity = read_field_metadata(self._handle.schema, self._name)
        return Landed(int(self._handle.version), 0) if space == self._staged.space else None

    def _rows_after(self, address: int) -> pa.Table:
        def read() -> pa.Table:
            context = ["context"] if has_chunks(self._handle.schema) else []
            query = self._handle.search().select(["id", "text", *context]).with_row_id(True)
            if address >= 0:
                query = query.where(f"_rowid > {address}")
            rows = query.limit(BATCH_ROWS).to_arrow()
            place = rows.schema.get_field_index("text")
            return rows.set_column(place, "text", embedded_texts(rows))

        with lance_errors(f"reading table {self._name!r}"):
            return self._readers.ask(read)

    def _schema(self) -> pa.Schema:
        """Return the columns of the table, also those beyond ours, with the new vector's."""
        space = self._staged.space
        durable = is_durable(self._handle.schema)
        identity, chunking = self._writes.table.identity, read_chunking(self._handle.schema)
        facts = new_field_metadata(space, identity, durable=durable, chunking=chunking)
        ours = table_schema(space.dim, facts)
        others = [field for field in self._handle.schema if field.name not in ours.names]
        return pa.schema([*ours, *others])


def build_indices(db: Place, name: str, staged: Staged) -> list[str]:
    """Build the indices that the table had and has not; return what to tell of the others.

    Each by itself: one that fails is told, and stops no other. Before that, what the
    switch wrote is forced to the disk. Raises StoreError that names all that failed.
    """
    writes = Writes(OpenTable.of(open_table(connect(db, writable=True), db, name), db))
    writes.validator.force()
    unknown, failed = [], []
    with lock.hold(lock.state_dir(db, name), "tend"):
        there = indexed_columns(writes.handle)
        for column in staged.indices:
            try:
                if column not in there and not build_index(writes, column):
                    unknown.append(column)
            except StoreError as error:
                failed.append(str(error))
    if failed:
        raise StoreError("; ".join(failed))
    return unknown


class _TableCopy:
    """The rows of one version on their way into the next, batch by batch."""

    def __init__(self, handle: LanceTable, staged: Staged, schema: pa.Schema, seen: int) -> None:
        self._handle, self._staged = handle, staged
        self._schema, self._seen = schema, seen
        self._why: BaseException | None = None
        self._version: int | None = None

    def run(self, connection: LanceDBConnection, name: str, db: Place) -> int | None:
        """Copy and commit; return the new version, or None if that was given up. Raises Stalled."""
        reader = pa.RecordBatchReader.from_batches(self._schema, self._batches())
        thread = threading.Thread(target=self._write, args=(connection, name, reader), daemon=True)
        thread.start()

        def joined(timeout_s: float) -> bool:
            thread.join(timeout_s)
            return not thread.is_alive()

        try:
            bounded.await_end(joined, places.moving(places.table_folder(db, name)))
        except bounded.Stalled:
            lock.keep(lock.state_dir(db, name))
            raise
        except BaseException:
            # The lock goes with the caller, so the commit must not outlive it.
            self._why = _GivenUp("interrupted")
            thread.join()
            raise
        if self._why is not None and not isinstance(self._why, _GivenUp):
            raise self._why
        return self._version

    def _write(
        self, connection: LanceDBConnection, name: str, reader: pa.RecordBatchReader
    ) -> None:
        try:
            made = connection.create_table(name, reader, mode="overwrite")
            self._version = int(made.version)
        except BaseException as error:  # raised again by run()
            self._why = self._why or error

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            with lance_errors(f"reading table {self._handle.name!r}"):
                yield from self._rows()
        except Exception as error:
            # LanceDB would tell of it in its own words, with a traceback in them.
            self._why = self._why or error
            raise

    def _rows(self) -> Iterator[pa.RecordBatch]:
        names = [name for name in self._schema.names if name != "vector"]
        for batch in self._handle.search().select(names).to_batches(BATCH_ROWS):
            yield self._with_vectors(batch)
        reach("reembed_before_switch")
        if int(self._handle.version) != self._seen:
            self._give_up("another program wrote into the table")

    def _with_vectors(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        vectors, there = self._staged.take(text_digests(embedded_texts(batch)))
        if self._why is not None or not there.all():
            self._give_up("a text has no vector")
        if len(bad_vectors(vectors)):
            self._why = StoreError(
                f"vectors in {self._staged.folder} are damaged, as a power loss leaves them; the"
                " table is as it was. Run the same command with --discard"
            )
            raise self._why
        new = vector_array(vectors)
        columns = [new if name == "vector" else batch[name] for name in self._schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _give_up(self, why: str) -> None:
        self._why = self._why or _GivenUp(why)
        raise self._why


class _GivenUp(Exception):
    """The copy was ended before its commit; nothing has changed."""

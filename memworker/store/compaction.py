"""Small fragments written again as large ones: all of a table's, or those at its end alone."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pyarrow as pa

from memworker.errors import StoreError, TableLocked
from memworker.store import clock
from memworker.store.apart import Compaction
from memworker.store.lance import brief, lance_errors
from memworker.store.policy import FRAGMENTS_MAX
from memworker.store.writes import CameFirst, Landed, Writes

# LanceDB joins the rows of a merge in 300 MB.
_GATHER_BYTES = 64 * 2**20

_log = logging.getLogger(__name__)


def compact(writes: Writes) -> list[str]:
    """Write small fragments again as large ones, and bring the indices up to date.

    Without the commit lock, for it takes seconds at 200,000 rows. Only when updates of
    compacted rows have come first a few times, with it held. An index that cannot be read is
    dropped, for it would never be brought up to date; returns the columns of those. Raises
    StoreError, also when our clock is days ahead (see clock.py).
    """
    before = _unindexed(writes)
    failed: StoreError | None = None
    try:
        _compact(writes)
        # LanceDB passes over an index that it cannot read, and says so nowhere.
        after = _unindexed(writes)
        doubtful = [name for name, rows in before.items() if 0 < rows <= after.get(name, 0)]
    except TableLocked:
        raise
    except StoreError as error:
        failed, doubtful = error, list(before)
    dropped = _drop_unreadable(writes, doubtful)
    if dropped:
        _compact(writes)
    elif failed is not None:
        raise failed
    return dropped


def _unindexed(writes: Writes) -> dict[str, int]:
    """Return how many rows each index does not cover."""
    with lance_errors(f"reading table {writes.handle.name!r}"):
        indices = writes.handle.list_indices()
    return {each.name: int(each.num_unindexed_rows or 0) for each in indices}


def _compact(writes: Writes) -> None:
    doing = f"compacting table {writes.table.name!r}"
    # LanceDB also removes what it takes for leftovers of writers, by its age.
    clock.must_agree(writes.table.clock, doing)
    with writes.lock.take():
        pass  # A commit that was under way, even one stopped for days, has ended now.
    try:
        writes.build(doing, Compaction())
    except CameFirst:
        with writes.lock.take():
            writes.build(doing, Compaction())


def _drop_unreadable(writes: Writes, names: list[str]) -> list[str]:
    """Drop those of the indices that cannot be read; return their columns."""
    columns = []
    for each in [one for one in writes.handle.list_indices() if one.name in names]:
        try:
            writes.handle.prewarm_index(each.name)
        except Exception as error:
            doing = f"dropping index {each.name} of table {writes.handle.name!r}"
            writes.build(doing, partial(writes.handle.drop_index, each.name))
            columns += each.columns
            _log.warning(
                "index %s of table %r cannot be read (%s), and was dropped to be built anew",
                each.name,
                writes.handle.name,
                brief(error),
            )
    return columns


def gather(writes: Writes, unindexed_rows: int) -> bool:
    """Write the small fragments at the end again as one; tell whether that was possible.

    Under the commit lock, for tens of milliseconds: a merge that has to be tried
    again after another writer's update would put the older row back.
    """
    addresses = writes.handle.search().select(["_rowid"]).to_arrow()["_rowid"].to_numpy()
    newest = np.sort(addresses)[-unindexed_rows:] >> 32
    # Otherwise the small fragments are elsewhere, or are the whole table.
    if not FRAGMENTS_MAX // 2 <= len(np.unique(newest)) or not 0 < unindexed_rows < len(addresses):
        return False
    cut = int(newest[0]) << 32  # numpy 1 shifts no uint64 by an int
    at_most = 2 * unindexed_rows + FRAGMENTS_MAX
    with writes.lock.take():
        query = writes.handle.search().where(f"_rowid >= {cut}").limit(at_most + 1)
        tail = query.to_arrow()
        # More rows: a compaction has given all of them higher addresses.
        if not 0 < tail.num_rows <= at_most or tail.nbytes > _GATHER_BYTES:
            return False
        _write_again(writes, tail)
    return True


def _write_again(writes: Writes, rows: pa.Table) -> None:
    def write() -> Landed:
        merge = writes.handle.merge_insert("id").when_matched_update_all()
        return Landed(int(merge.execute(rows).version), rows.num_rows)

    def came(_: int) -> Landed:
        # Whether it came or not: the same rows once more change nothing.
        return write()

    doing = f"gathering rows of table {writes.handle.name!r}"
    seen = int(writes.handle.version)
    writes.commit(doing, write, came, seen=seen, spills=True)

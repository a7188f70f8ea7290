"""Small fragments written again as large ones: all of a table's, or those at its end alone."""

from __future__ import annotations

import logging
from functools import partial

import pyarrow as pa

from memworker.errors import StoreError, TableLocked
from memworker.store import apart, clock
from memworker.store.apart import Compaction
from memworker.store.lance import brief, lance_errors
from memworker.store.manifest import read_manifest
from memworker.store.policy import FRAGMENTS_MAX
from memworker.store.writes import CameFirst, Landed, Writes

# LanceDB joins the rows of a merge in 300 MB.
_GATHER_BYTES = 64 * 2**20
# So small a table is compacted in less time than a race with its writers takes.
_AT_ONCE_BYTES = 8 * 2**20
# After so long a compaction has been outrun: some times what the slowest took by itself.
_PATIENCE_S = 1.0
_BYTES_A_SECOND = 10 * 2**20

_log = logging.getLogger(__name__)


def compact(writes: Writes) -> list[str]:
    """Write small fragments again as large ones, and bring the indices up to date.

    Without the commit lock, for it takes seconds at 200,000 rows. With it held when updates of
    compacted rows have come first a few times, when it takes far too long because a writer of many
    small commits outruns it, and for a small table, where it takes some tens of milliseconds. An
    index that cannot be read is dropped, for it would never be brought up to date; returns the
    columns of those. Raises StoreError, also when our clock is days ahead (see clock.py).
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
    size = apart.work_bytes(Compaction(), writes.handle)
    with writes.lock.take():
        # A commit that was under way, even one stopped for days, has ended now.
        if size <= _AT_ONCE_BYTES:
            writes.build(doing, Compaction())
            return
    try:
        writes.build(doing, Compaction(), patience_s=_PATIENCE_S + size / _BYTES_A_SECOND)
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


def gather(writes: Writes, unindexed_rows: int | None) -> bool:
    """Write the small fragments at the end again as one; tell whether that was possible.

    Of a table with indices those that no index covers; of one without (None) each that is not
    much larger than what came after it, so that a row is written again a few times alone. Under
    the commit lock, for tens of milliseconds: a merge that has to be tried again after another
    writer's update would put the older row back.
    """
    with lance_errors(f"reading table {writes.handle.name!r}"):
        there = read_manifest(writes.table.folder, int(writes.handle.version)).fragments
    newest = sorted((each.id, each.physical_rows - each.deleted_rows) for each in there)[::-1]
    tail = _tail([rows for _, rows in newest], unindexed_rows)
    # Otherwise the small fragments are elsewhere.
    if tail < FRAGMENTS_MAX // 2:
        return False
    cut = newest[tail - 1][0] << 32
    at_most = 2 * sum(rows for _, rows in newest[:tail]) + FRAGMENTS_MAX
    with writes.lock.take():
        query = writes.handle.search().where(f"_rowid >= {cut}").limit(at_most + 1)
        rows = query.to_arrow()
        # More rows: a compaction has given all of them higher addresses.
        if not 0 < rows.num_rows <= at_most or rows.nbytes > _GATHER_BYTES:
            return False
        _write_again(writes, rows)
    return True


def _tail(sizes: list[int], unindexed_rows: int | None) -> int:
    """Return how many fragments to write as one, of all from the newest on."""
    total = 0
    for count, rows in enumerate(sizes):
        if total + rows > unindexed_rows if unindexed_rows is not None else rows > 2 * (total + 1):
            return count
        total += rows
    return len(sizes)


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

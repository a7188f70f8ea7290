"""Commits that mend a table: rows deleted by their address, or written into another file.

Neither reads what it deletes, so that both work on a file that is damaged or gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from memworker.failpoints import reach
from memworker.store import salvage
from memworker.store.lance import lance_errors
from memworker.store.manifest import Fragment
from memworker.store.salvage import ADDRESS
from memworker.store.writes import Landed, Writes

# A list of numbers is compared quickly, however long; a range saves one of thousands.
_RANGE = 4096
_LIST = 200_000


def delete_rows(writes: Writes, runs: Sequence[range]) -> int:
    """Delete rows by their addresses, in one commit unless there are very many.

    Returns how many there were.
    """
    return sum(_deleted(writes, where) for where in _conditions(runs))


def write_again(writes: Writes, fragment: Fragment, size: int) -> int:
    """Write the rows of a fragment, which can be read one by one, into another file.

    They are added and then deleted where they were, by two commits. A kill in between
    leaves them twice, which the next repair puts right.
    """
    handle = writes.handle
    doing = f"writing rows of table {handle.name!r} again"
    live = salvage.live_addresses(handle, fragment)
    names = handle.schema.names

    def batches() -> Iterator[pa.RecordBatch]:
        for part in salvage.parts(handle, live, names, size):
            yield from part.rows.select(names).to_batches()

    def add() -> Landed:
        schema = next(iter(salvage.parts(handle, live[:1], names, 1))).rows.select(names).schema
        rows = pa.RecordBatchReader.from_batches(schema, batches())
        return Landed(int(handle.add(rows).version), len(live))

    before = int(handle.count_rows())

    def came(_: int) -> Landed | None:
        there = int(handle.count_rows()) == before + len(live)
        return Landed(int(handle.version), len(live)) if there else None

    if not len(live):
        return 0
    with lance_errors(doing):
        writes.commit(doing, add, came, seen=int(handle.version))
        reach("repair_rows_twice")
        first = fragment.id << 32
        return delete_rows(writes, [range(first, first + fragment.physical_rows)])


def drop_indices(writes: Writes, names: Sequence[str]) -> None:
    """Drop indices; searches read the rows until they are built anew."""
    for name in names:
        doing = f"dropping index {name} of table {writes.handle.name!r}"
        writes.build(doing, partial(writes.handle.drop_index, name))


def _deleted(writes: Writes, where: str) -> int:
    handle = writes.handle
    doing = f"deleting damaged rows from table {handle.name!r}"
    seen = int(handle.version)

    def delete() -> Landed:
        done = handle.delete(where)
        return Landed(int(done.version), int(done.num_deleted_rows))

    with lance_errors(doing):
        return writes.commit(doing, delete, lambda _: writes.gone(where, seen), seen=seen).rows


def _conditions(runs: Sequence[range]) -> Iterator[str]:
    long = [run for run in runs if len(run) >= _RANGE]
    single = [address for run in runs if len(run) < _RANGE for address in run]
    parts = [f"({ADDRESS} >= {run[0]} AND {ADDRESS} <= {run[-1]})" for run in long]
    for start in range(0, len(single), _LIST):
        listed = ", ".join(map(str, single[start : start + _LIST]))
        parts.append(f"{ADDRESS} IN ({listed})")
        yield _either(parts)
        parts = []
    if parts:
        yield _either(parts)


def _either(parts: list[str]) -> str:
    """Join conditions as a shallow tree, for the planner goes into its depth."""
    while len(parts) > 1:
        pairs = zip(parts[::2], [*parts[1::2], None][: len(parts[::2])], strict=True)
        parts = [f"({one} OR {two})" if two else one for one, two in pairs]
    return parts[0]

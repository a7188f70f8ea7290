"""Rows read around what cannot be read: by fragment, by column, by halves, down to one row.

::

    a fragment's addresses ─► all columns of some thousand rows ──error──► each column alone
                                         │                                       │ error
                                         ▼                                       ▼
                                      a FragmentPart ◄────── what reads, of halves and halves …

A damaged block costs the rows that lie in it, and no neighbour: LanceDB finds a single row
without reading the others of its page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.store.lance import brief
from memworker.store.manifest import Fragment

if TYPE_CHECKING:
    from lancedb.table import LanceTable

Addresses = npt.NDArray[np.uint64]

ADDRESS = "_rowid"
# What is read at once: so many bytes on the disk, which may be a few times as much in memory.
_PART_BYTES = 16 * 2**20
_PART_ROWS = 8192
_LISTED = 65_536
# Below this, every single row is asked for; above, a block whose ends are unreadable is so wholly.
_BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class FragmentPart:
    """Some live rows of a fragment, in their order.

    `rows` has the columns that could be read of all of them; of the others,
    `pieces` has those of the rows where it could, with their addresses, and
    `unreadable` what was said of the rest.
    """

    addresses: Addresses
    rows: pa.Table
    pieces: dict[str, pa.Table] = field(default_factory=dict)
    unreadable: dict[str, dict[int, str]] = field(default_factory=dict)


class Unlisted(Exception):
    """It cannot be known which rows a fragment has."""


def live_addresses(handle: LanceTable, fragment: Fragment) -> Addresses:
    """Return the addresses of a fragment's rows that are not deleted. Raises Unlisted.

    The rows themselves are not read, so they need not be readable.
    """
    found = []
    for start in range(0, fragment.physical_rows, _LISTED):
        end = min(start + _LISTED, fragment.physical_rows)
        try:
            found.append(_take(handle, _addressed(fragment, start, end), [])[ADDRESS].to_numpy())
        except Exception as error:
            raise Unlisted(brief(error)) from error
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)


def part_rows(fragment: Fragment, table: Path) -> int:
    """Return how many rows of a fragment are read at once, so that memory stays bounded."""
    size = 0
    for file in fragment.files:
        try:
            size += (table / file.path).stat().st_size
        except OSError:
            continue  # reading the file will raise what is wrong
    a_row = max(1, size // max(1, fragment.physical_rows))
    return int(np.clip(_PART_BYTES // a_row, 1, _PART_ROWS))


def parts(
    handle: LanceTable, addresses: Addresses, columns: Sequence[str], size: int
) -> Iterator[FragmentPart]:
    """Yield the rows at these addresses, `size` at a time, whatever of them can be read."""
    for start in range(0, len(addresses), size):
        yield _part(handle, addresses[start : start + size], columns)


def view(part: FragmentPart, names: Sequence[str]) -> pa.Table:
    """Return some columns of those rows of a part of which all can be read, with addresses."""
    broken = [name for name in names if name in part.pieces]
    if not broken:
        return part.rows.select([*names, ADDRESS])
    there = part.addresses
    for name in broken:
        there = np.intersect1d(there, part.pieces[name][ADDRESS].to_numpy())
    wanted = pa.array(there)
    columns = [_at(part.pieces.get(name, part.rows), name, wanted) for name in names]
    return pa.table([*columns, wanted], names=[*names, ADDRESS])


def _at(rows: pa.Table, name: str, addresses: pa.Array) -> pa.ChunkedArray:
    return rows[name].take(pc.index_in(addresses, rows[ADDRESS].combine_chunks()))


class InOneGo:
    """A fragment's rows as a scan gives them, held against what was read by address.

    A scan finds a row by counting those before it, a read by address through an index of
    addresses: both must agree. `before` live rows are in the fragments before this one.
    """

    def __init__(
        self, handle: LanceTable, before: int, rows: int, columns: Sequence[str], size: int
    ) -> None:
        query = handle.search().select(list(columns)).offset(before).limit(rows)
        self._columns, self._size = columns, size
        self._query: Any = query
        self._left = pa.table({})
        self._batches: Iterator[pa.RecordBatch] | None = None

    def differs(self, part: FragmentPart) -> str | None:
        """Say what a scan gives in the place of these rows, which come next, if it differs."""
        try:
            scanned = self._next(len(part.addresses))
        except Exception as error:
            return f"a scan fails there: {brief(error)}"
        if scanned.num_rows != len(part.addresses):
            return f"a scan gives {scanned.num_rows:,} rows there, not {len(part.addresses):,}"
        for name in self._columns:
            if name in part.rows.column_names and not _equal(scanned[name], part.rows[name]):
                return f"a scan gives other values of {name}"
        return None

    def _next(self, rows: int) -> pa.Table:
        if self._batches is None:
            self._batches = iter(self._query.to_batches(self._size))
        got = [self._left] if self._left.num_rows else []
        count = self._left.num_rows
        while count < rows and (batch := next(self._batches, None)) is not None:
            got.append(pa.Table.from_batches([batch]))
            got[-1].validate(full=True)
            count += batch.num_rows
        if not got:
            return pa.table({})
        everything = pa.concat_tables(got)
        self._left = everything.slice(rows)
        return everything.slice(0, rows)


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    if pa.types.is_fixed_size_list(one.type):
        # Bit by bit, for NaN is not equal to itself.
        bits = [
            side.combine_chunks().flatten().to_numpy(zero_copy_only=False) for side in (one, other)
        ]
        return np.array_equal(*(array.view(np.uint8) for array in bits))
    return bool(one.equals(other))


def _part(handle: LanceTable, addresses: Addresses, columns: Sequence[str]) -> FragmentPart:
    try:
        return FragmentPart(addresses, _whole(handle, addresses, columns))
    except Exception:
        pass  # told below, of the column and the rows that it concerns
    rows = pa.table({ADDRESS: pa.array(addresses)})
    part = FragmentPart(addresses, rows)
    for name in columns:
        try:
            column = _whole(handle, addresses, [name])[name]
        except Exception as error:
            pieces, bad = _pieces(handle, addresses, name, brief(error))
            if bad:
                part.pieces[name], part.unreadable[name] = pieces, bad
                continue
            # In smaller pieces all can be read; whether a scan can will be seen.
            column = pieces.take(pc.sort_indices(pieces[ADDRESS]))[name]
        rows = rows.append_column(name, column)
    return FragmentPart(addresses, rows, part.pieces, part.unreadable)


def _pieces(
    handle: LanceTable, addresses: Addresses, name: str, why: str
) -> tuple[pa.Table, dict[int, str]]:
    """Read one column by halves, down to rows; return what reads, and the others' errors."""
    bad: dict[int, str] = {}
    good: list[pa.Table] = []
    pending = [(addresses, why)]
    while pending:
        rows, why = pending.pop()
        if len(rows) == 1 or _all_bad(handle, rows, name):
            bad |= dict.fromkeys(rows.tolist(), why)
            continue
        for half in np.array_split(rows, 2):
            try:
                good.append(_whole(handle, half, [name]))
            except Exception as error:
                pending.append((half, brief(error)))
    return (pa.concat_tables(good) if good else _nothing(handle, name)), bad


def _nothing(handle: LanceTable, name: str) -> pa.Table:
    # Metadata are stored in a binary form, and given out as text.
    kind = pa.json_() if name == "metadata" else handle.schema.field(name).type
    return pa.schema([(name, kind), (ADDRESS, pa.uint64())]).empty_table()


def _all_bad(handle: LanceTable, rows: Addresses, name: str) -> bool:
    """Tell whether to take a block for unreadable as a whole, because both its ends are.

    Larger ones are so only if many rows all over them are: a broken footer would
    otherwise cost a reading a row.
    """
    if len(rows) > _BLOCK_ROWS:
        return False
    ends = [rows[:1], rows[-1:]] if len(rows) > 2 else []
    return bool(ends) and not any(_reads(handle, end, name) for end in ends)


def _reads(handle: LanceTable, rows: Addresses, name: str) -> bool:
    try:
        _whole(handle, rows, [name])
    except Exception:
        return False
    return True


def _whole(handle: LanceTable, rows: Addresses, columns: Sequence[str]) -> pa.Table:
    """Return these columns of all these rows, in order; raise where one cannot be read."""
    found = _take(handle, rows.tolist(), columns)
    there = found[ADDRESS].to_numpy()
    if len(there) != len(rows):
        raise LookupError(f"{len(rows) - len(there)} of {len(rows)} rows are not given out")
    if not np.array_equal(there, rows):
        found = found.take(pc.sort_indices(found[ADDRESS]))
    # What is no valid Arrow may end the process that looks into it.
    found.validate(full=True)
    return found.combine_chunks()


def _take(handle: LanceTable, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    return handle.take_row_ids(list(rows)).select([*columns, ADDRESS]).to_arrow()


def _addressed(fragment: Fragment, start: int, end: int) -> range:
    first = fragment.id << 32
    return range(first + start, first + end)

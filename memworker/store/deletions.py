"""Which rows of a fragment are deleted: told again when the file that says so is damaged.

LanceDB reads no row of a fragment whose deletion file it cannot read. An update deletes the
older row of an id, so the rows whose id a later fragment has are deleted for certain; so
are those that an earlier version, or the last verification, knew to be. If these are as many
as the manifest counts, the file is written again as it was. If not, it cannot be known which
of the others were deleted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.failpoints import reach
from memworker.store import salvage
from memworker.store.aside import FOLDER
from memworker.store.checksums import Checksums
from memworker.store.durable import sync_path
from memworker.store.lance import connect, open_table
from memworker.store.manifest import Fragment, TornManifest, read_manifest, versions
from memworker.store.salvage import ADDRESS, Addresses, Unlisted
from memworker.store.schema import read_field_metadata

if TYPE_CHECKING:
    from lancedb.table import LanceTable

Positions = npt.NDArray[np.uint32]

_AT_ONCE = 65_536
# Portable Roaring: containers of 65,536 values, as a list of at most so many, or as bits.
_COOKIE = 12_346
_LISTED = 4_096
_SCHEMA = pa.schema([pa.field("row_id", pa.uint32(), nullable=False)])


def rebuild(db: Path, name: str, fragments: Sequence[Fragment], state: Path) -> list[Fragment]:
    """Write the deletion files of fragments again, of the rows that are deleted for certain.

    Returns those fragments of which it cannot be told. The damaged files are moved aside.
    """
    table = db / f"{name}.lance"
    earlier = {each.id: _earlier(db, name, each, state) for each in fragments}
    for each in fragments:
        path = table / str(each.deletions)
        if path.exists():
            aside = state / FOLDER
            aside.mkdir(mode=0o700, exist_ok=True)
            os.replace(path, aside / path.name)
        # For the time being, so that LanceDB reads the rows.
        _write(path, earlier[each.id])
    reach("repair_deletions_untold")
    handle = open_table(connect(db, writable=False), db, name)
    unsure = []
    for each in fragments:
        gone = np.union1d(earlier[each.id], _replaced(handle, each)).astype(np.uint32)
        _write(table / str(each.deletions), gone)
        if len(gone) != each.deleted_rows:
            unsure.append(each)
    _checksums(handle, name, state).forget(str(each.deletions) for each in fragments)
    return unsure


def _earlier(db: Path, name: str, fragment: Fragment, state: Path) -> Positions:
    """Return the rows that were deleted when an earlier version was written, or verified."""
    table = db / f"{name}.lance"
    found = [_not_verified(db, name, fragment, state)]
    for version in sorted(versions(table), reverse=True):
        with suppress(TornManifest, FileNotFoundError, Unlisted):
            for older in read_manifest(table, version).fragments:
                # Under the same number may be other rows, when the table was written over.
                same = older.id == fragment.id and older.files == fragment.files
                if same and older.deletions not in (None, fragment.deletions):
                    handle = open_table(connect(db, writable=False), db, name)
                    handle.checkout(version)
                    found.append(_without(older, salvage.live_addresses(handle, older)))
    return np.unique(np.concatenate(found))


def _not_verified(db: Path, name: str, fragment: Fragment, state: Path) -> Positions:
    handle = open_table(connect(db, writable=False), db, name)
    sums = _checksums(handle, name, state).rows(fragment.files[0].path)
    if sums is None or len(sums) != fragment.physical_rows:
        return np.empty(0, np.uint32)
    return np.flatnonzero(sums == 0).astype(np.uint32)


def _checksums(handle: LanceTable, name: str, state: Path) -> Checksums:
    _, identity = read_field_metadata(handle.schema, name)
    return Checksums(state, identity)


def _without(fragment: Fragment, live: Addresses) -> Positions:
    rows = np.arange(fragment.physical_rows, dtype=np.uint32)
    return np.setdiff1d(rows, (live & np.uint64(0xFFFFFFFF)).astype(np.uint32))


def _replaced(handle: LanceTable, fragment: Fragment) -> Positions:
    """Return the rows whose id a later fragment has: whatever replaced them was written later."""
    live = salvage.live_addresses(handle, fragment)
    ids = {row_id: address for address, row_id in _ids(handle, live)}
    wanted = pa.array(list(ids), pa.string())
    addresses = handle.search().select([ADDRESS]).to_arrow()[ADDRESS].to_numpy()
    later = np.sort(addresses[addresses >> np.uint64(32) > fragment.id])
    gone = []
    for part in salvage.parts(handle, later, ["id"], _AT_ONCE):
        found = part.pieces.get("id", part.rows)["id"]
        gone += [ids[one] for one in found.filter(pc.is_in(found, wanted)).to_pylist()]
    return np.array(sorted({address & 0xFFFFFFFF for address in gone}), np.uint32)


def _ids(handle: LanceTable, addresses: Addresses) -> Iterator[tuple[int, str]]:
    for part in salvage.parts(handle, addresses, ["id"], _AT_ONCE):
        rows = part.pieces.get("id", part.rows)
        yield from zip(rows[ADDRESS].to_pylist(), rows["id"].to_pylist(), strict=True)


def _write(path: Path, gone: Positions) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".bin":
        temporary.write_bytes(_roaring(gone))
    else:
        rows = pa.record_batch([pa.array(gone, pa.uint32())], schema=_SCHEMA)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_batch(rows)
    sync_path(temporary)
    os.replace(temporary, path)
    sync_path(path.parent)


def _roaring(values: Positions) -> bytes:
    """Return a sorted set of numbers in Roaring's portable form (github.com/RoaringBitmap)."""
    highs, starts = np.unique(values >> np.uint32(16), return_index=True)
    containers = [
        (values[start:end] & np.uint32(0xFFFF)).astype("<u2")
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True)
    ]
    head = struct.pack("<II", _COOKIE, len(containers))
    for high, lows in zip(highs.tolist(), containers, strict=True):
        head += struct.pack("<HH", high, len(lows) - 1)
    bodies = [_container(lows) for lows in containers]
    at = len(head) + 4 * len(bodies)
    for body in bodies:
        head += struct.pack("<I", at)
        at += len(body)
    return head + b"".join(bodies)


def _container(lows: npt.NDArray[np.uint16]) -> bytes:
    if len(lows) <= _LISTED:
        return lows.tobytes()
    bits = np.zeros(65_536, np.uint8)
    bits[lows] = 1
    return np.packbits(bits, bitorder="little").tobytes()

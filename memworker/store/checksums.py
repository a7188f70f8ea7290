"""What the files and rows of a table were when a verification found them sound.

LanceDB keeps no checksums, and a changed byte in a vector, an id or metadata looks like
any other. Its files are never changed once written; so their checksums, and 8 bytes a row,
are noted by each verification in ``DB/.memworker/TABLE/checksums``, and held against the
files by the next::

    [8 bytes a row, fragment after fragment] [index, JSON] [its length] [its checksum] [magic]

Of the 8 bytes each 2 are of some columns, so that a change is told by its column.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64, xxh3_64_intdigest

from memworker.locks import draft_of
from memworker.store.manifest import VERSIONS
from memworker.store.salvage import ADDRESS, Addresses, FragmentPart, view
from memworker.store.schema import SCOPES

FILE = "checksums"
RowSums = npt.NDArray[np.uint64]

LANES = (
    ("id",),
    ("text", "dedup_key", *SCOPES),
    ("vector",),
    ("metadata", "created_at", "updated_at", "expires_at", "superseded_at"),
)
"""Which columns go into each lane of 16 bits."""

_LANE_BITS = 16
_COLUMNS = tuple(name for names in LANES for name in names)
_MAGIC = b"MWSUMS01"
_TAIL = struct.Struct("<QQ8s")
_READ_BYTES = 4 * 2**20
# Odd constants (the golden ratio, and those of splitmix64) mix what is added up.
_SPREAD, _MIX_1, _MIX_2 = map(
    np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class FileSum(msgspec.Struct, frozen=True, array_like=True):
    """Size, xxh3-64 and time of change of a whole file."""

    size: int
    digest: int
    mtime_ns: int

    def same_bytes(self, other: FileSum) -> bool:
        """Tell whether both are of the same content."""
        return (self.size, self.digest) == (other.size, other.digest)


class ManifestCopy(msgspec.Struct, frozen=True):
    """A manifest: its path below the table's folder, and its bytes."""

    path: str
    content: bytes


class _RowsSum(msgspec.Struct, frozen=True, array_like=True):
    offset: int
    rows: int
    digest: int


class _SumsIndex(msgspec.Struct, frozen=True):
    table: str
    version: int
    # A copy, for it is small and nothing else can take its place.
    manifest: bytes
    files: dict[str, FileSum]
    rows: dict[str, _RowsSum]


class Checksums:
    """Those of the last verification; empty when there was none, or none of this table."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._path = folder / FILE
        self._identity = identity
        self._raw: npt.NDArray[np.uint8] | None = None
        self._index = self._last = _SumsIndex(identity, 0, b"", {}, {})
        with suppress(OSError, ValueError, msgspec.MsgspecError):
            self._load()

    @property
    def files(self) -> Mapping[str, FileSum]:
        """Those of files, by their paths below the table's folder."""
        return self._index.files

    @property
    def version(self) -> int:
        """The version of this table that was verified last; 0 for none."""
        return self._index.version

    def rotten(self, path: str, now: FileSum) -> bool:
        """Tell whether a manifest has other bytes than at the last verification.

        After a rollback its name is used again, and then it is of another time. Nor
        does the table's identity count, which is read from the manifest.
        """
        known = self._last.files.get(path)
        return known is not None and known.mtime_ns == now.mtime_ns and not known.same_bytes(now)

    def manifest_of(self, version: int) -> ManifestCopy | None:
        """Return the copy of a version's manifest, if it was that which was verified last."""
        paths = [path for path in self._last.files if path.startswith(f"{VERSIONS}/")]
        if version != self._last.version or len(paths) != 1:
            return None
        return ManifestCopy(paths[0], self._last.manifest)

    def rows(self, path: str) -> RowSums | None:
        """Return those of the rows of a data file, by position; 0 is unknown."""
        where = self._index.rows.get(path)
        if where is None or self._raw is None:
            return None
        raw = self._raw[where.offset : where.offset + 8 * where.rows]
        if len(raw) != 8 * where.rows or xxh3_64_intdigest(raw.data) != where.digest:
            return None
        return raw.view(np.uint64)

    def forget(self, paths: Iterable[str]) -> None:
        """Forget files that were written again under their names. Raises OSError."""
        gone = set(paths)
        files = {path: noted for path, noted in self.files.items() if path not in gone}
        rows = ((path, self.rows(path)) for path in self._index.rows)
        kept = ((path, sums) for path, sums in rows if sums is not None)
        self.replace(self._index.version, self._index.manifest, files, kept)

    def replace(
        self,
        version: int,
        manifest: bytes,
        files: Mapping[str, FileSum],
        rows: Iterable[tuple[str, RowSums]],
    ) -> None:
        """Write those of a new verification in the place of these. Raises OSError."""
        with draft_of(self._path) as draft:
            with open(draft, "wb") as file:
                index = _SumsIndex(self._identity, version, manifest, dict(files), {})
                for path, sums in rows:
                    raw = np.ascontiguousarray(sums).view(np.uint8)
                    digest = xxh3_64_intdigest(raw.data)
                    index.rows[path] = _RowsSum(file.tell(), len(sums), digest)
                    file.write(raw.data)
                body = msgspec.json.encode(index)
                file.write(body + _TAIL.pack(len(body), xxh3_64_intdigest(body), _MAGIC))

    def _load(self) -> None:
        raw = np.memmap(self._path, np.uint8, "r")
        length, digest, magic = _TAIL.unpack(raw[-_TAIL.size :].tobytes())
        body = raw[-_TAIL.size - length : -_TAIL.size].tobytes()
        if magic != _MAGIC or xxh3_64_intdigest(body) != digest:
            return
        index = msgspec.json.decode(body, type=_SumsIndex)
        self._last = index
        # A table that was dropped and made again has other files.
        if index.table == self._identity:
            self._index, self._raw = index, raw


def sum_of_file(path: Path) -> FileSum:
    """Read a whole file. Raises OSError."""
    digest, size = xxh3_64(), 0
    with open(path, "rb", buffering=0) as file:
        mtime_ns = os.fstat(file.fileno()).st_mtime_ns
        while block := file.read(_READ_BYTES):
            digest.update(block)
            size += len(block)
    return FileSum(size, digest.intdigest(), mtime_ns)


def sums_of_rows(part: FragmentPart) -> tuple[Addresses, RowSums]:
    """Return the addresses of those rows that can be read wholly, and 8 bytes each."""
    rows = view(part, _COLUMNS)
    rows = rows.filter(pc.is_valid(rows["vector"])) if rows["vector"].null_count else rows
    sums = np.zeros(rows.num_rows, np.uint64)
    for lane, names in enumerate(LANES):
        mixed = np.zeros(rows.num_rows, np.uint64)
        for name in names:
            mixed = _mixed(mixed * _SPREAD + _hashes(rows[name]))
        sums |= (mixed >> np.uint64(64 - _LANE_BITS)) << np.uint64(lane * _LANE_BITS)
    # 0 stands for unknown.
    sums[sums == 0] = 1
    return rows[ADDRESS].to_numpy(), sums


def changed(known: RowSums, now: RowSums) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield each lane's columns, and which rows differ in one of them."""
    differing = np.where(known == 0, np.uint64(0), known ^ now)
    for lane, names in enumerate(LANES):
        yield ", ".join(names), (differing >> np.uint64(lane * _LANE_BITS)) & np.uint64(0xFFFF) != 0


def _hashes(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    array = column.combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_timestamp(array.type):
        moments = pc.fill_null(array.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        return _mixed(moments.view(np.uint64))
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size * 4
        raw = array.flatten().to_numpy(zero_copy_only=False).view(np.uint8)
        blocks = (raw[at : at + width] for at in range(0, len(raw), width))
        return np.fromiter(map(xxh3_64_intdigest, blocks), np.uint64, len(array))
    # One user a file is the usual case.
    encoded = array.cast(pa.binary()).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    hashes = np.fromiter(map(xxh3_64_intdigest, values), np.uint64, len(values))
    places = pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False)
    spread: npt.NDArray[np.uint64] = np.append(hashes, np.uint64(0))[places]
    return spread


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))

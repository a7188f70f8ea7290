"""What one version of a table is made of: the files that its manifest names, and their sizes.

LanceDB keeps a version in one file, ``TABLE.lance/_versions/*.manifest``: a protobuf
message with a footer. Of that message only the fields are read that name files. Source of
the field numbers and of the footer: Lance's ``protos/table.proto`` and ``format.proto``
(file format 2, table format 2); fields that are unknown here are passed over.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar, cast
from uuid import UUID

from memworker.errors import StoreError
from memworker.store.places import Folder

F = TypeVar("F", bound=Folder)

VERSIONS, DATA, DELETIONS, INDICES = "_versions", "data", "_deletions", "_indices"
TRANSACTIONS, HINT, SUFFIX = "_transactions", "latest_version_hint.json", ".manifest"
MAGIC = b"LANC"
# Lance names version v by 2^64 - 1 - v in twenty digits, so that the newest sorts first.
_LAST = 2**64 - 1
_NAME_DIGITS = 20
# Position of the message, format version (twice 16 bits), magic.
_FOOTER = struct.Struct("<QHH4s")
_LENGTH = struct.Struct("<I")
_ROARING = 1


class TornManifest(StoreError):
    """A version's manifest is not whole, as a power loss or a failed write leaves it."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows: its path below the table's folder, and its size (0: not noted)."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """Rows that were written together; their addresses begin at ``id << 32``."""

    id: int
    files: tuple[DataFile, ...]
    deletions: str | None
    physical_rows: int
    deleted_rows: int = 0

    @property
    def parts(self) -> list[str]:
        """The paths of its files."""
        return [*(file.path for file in self.files), *([self.deletions] if self.deletions else [])]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An index, or a part of one: its name, and the folder of its files."""

    name: str
    folder: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a table; `path` and `transaction` are files below the table's folder.

    `features` are the bits of what a program must know to read it or write the next.
    """

    version: int
    path: str
    fragments: tuple[Fragment, ...]
    indices: tuple[IndexEntry, ...]
    transaction: str | None
    features: int = 0

    @property
    def files(self) -> dict[str, int]:
        """The files of rows and of deletions, each path with its size (0: not noted)."""
        found: dict[str, int] = {}
        for fragment in self.fragments:
            for file in fragment.files:
                found[file.path] = file.size
            if fragment.deletions is not None:
                found[fragment.deletions] = 0
        return found

    @property
    def parts(self) -> list[str]:
        """All that it names: its files, the folders of its indices, its transaction."""
        transaction = [self.transaction] if self.transaction else []
        return [*self.files, *(index.folder for index in self.indices), *transaction]


def manifest_path(table: F, version: int) -> F:
    """Return where the manifest of a version is, by either of Lance's two names."""
    newer = table / VERSIONS / f"{_LAST - version:0{_NAME_DIGITS}}{SUFFIX}"
    return cast("F", newer if newer.exists() else table / VERSIONS / f"{version}{SUFFIX}")


def versions(table: F) -> dict[int, F]:
    """Return the manifests there are, by version; in no given order."""
    found = {}
    for path in (table / VERSIONS).glob(f"*{SUFFIX}"):
        if path.stem.isdecimal():
            number = int(path.stem)
            found[_LAST - number if len(path.stem) == _NAME_DIGITS else number] = cast("F", path)
    return found


def hinted(table: Folder) -> int:
    """Return the version that LanceDB noted last, 0 if it has noted none."""
    try:
        return int(json.loads((table / VERSIONS / HINT).read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def read_manifest(table: Folder, version: int) -> Manifest:
    """Read what a version is made of. Raises TornManifest, and FileNotFoundError."""
    path = manifest_path(table, version)
    found = parsed(path.read_bytes(), path)
    if found.version != version:
        raise TornManifest(f"{path} says that it is version {found.version}, not {version}")
    return found


def parsed(raw: bytes, path: Folder) -> Manifest:
    """Read a manifest's bytes; `path` is where it belongs. Raises TornManifest."""
    from google.protobuf import message

    try:
        return _parsed(raw, path)
    except (message.DecodeError, ValueError) as error:
        raise TornManifest(f"{path} holds bytes that are no manifest: {error}") from error


def _parsed(raw: bytes, path: Folder) -> Manifest:
    message = _messages()["Manifest"].FromString(_message(raw, path))
    indices: tuple[IndexEntry, ...] = ()
    if message.HasField("index_section"):
        section = _messages()["IndexSection"].FromString(_at(raw, message.index_section, path))
        indices = tuple(
            IndexEntry(each.name, f"{INDICES}/{UUID(bytes=each.uuid.uuid)}")
            for each in section.indices
        )
    transaction = message.transaction_file
    return Manifest(
        version=message.version,
        path=f"{VERSIONS}/{path.name}",
        fragments=tuple(map(_fragment_of, message.fragments)),
        indices=indices,
        transaction=f"{TRANSACTIONS}/{transaction}" if transaction else None,
        features=message.reader_features | message.writer_features,
    )


@lru_cache(maxsize=4096)
def _fragment_of(raw: bytes) -> Fragment:
    """Read a fragment; most are those of the version before, byte by byte."""
    message = _messages()["DataFragment"].FromString(raw)
    deletions, deleted = None, 0
    if message.HasField("deletion_file"):
        gone = message.deletion_file
        deleted = gone.num_deleted_rows
        kind = "bin" if gone.file_type == _ROARING else "arrow"
        deletions = f"{DELETIONS}/{message.id}-{gone.read_version}-{gone.id}.{kind}"
    files = tuple(DataFile(f"{DATA}/{file.path}", file.file_size_bytes) for file in message.files)
    return Fragment(message.id, files, deletions, message.physical_rows, deleted)


def _message(raw: bytes, path: Folder) -> bytes:
    if len(raw) < _FOOTER.size:
        raise TornManifest(f"{path} has {len(raw)} bytes, which is no manifest")
    position, _, _, magic = _FOOTER.unpack(raw[-_FOOTER.size :])
    if magic != MAGIC:
        raise TornManifest(f"{path} ends without its footer: it was not written whole")
    return _at(raw, position, path)


def _at(raw: bytes, position: int, path: Folder) -> bytes:
    start = position + _LENGTH.size
    if start <= len(raw):
        (length,) = _LENGTH.unpack_from(raw, position)
        if start + length <= len(raw):
            return raw[start : start + length]
    raise TornManifest(f"{path} ends before what its footer points at: it was not written whole")


@cache
def _messages() -> dict[str, Any]:
    """Return the messages that are read, as classes of protobuf's own compiler-less kind."""
    from google.protobuf import (
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    kinds = descriptor_pb2.FieldDescriptorProto
    scalar = {"uint64": kinds.TYPE_UINT64, "string": kinds.TYPE_STRING, "bytes": kinds.TYPE_BYTES}
    file = descriptor_pb2.FileDescriptorProto(name="manifest.proto", package="m", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, many) in fields.items():
            label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            added.type = scalar.get(kind, kinds.TYPE_MESSAGE)
            if kind not in scalar:
                added.type_name = f".m.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = ((name, pool.FindMessageTypeByName(f"m.{name}")) for name in _FIELDS)
    return {name: message_factory.GetMessageClass(each) for name, each in found}


# Number, name, type, repeated.
_FIELDS: dict[str, dict[int, tuple[str, str, bool]]] = {
    "Manifest": {
        # As bytes: see `_fragment_of`.
        2: ("fragments", "bytes", True),
        3: ("version", "uint64", False),
        6: ("index_section", "uint64", False),
        9: ("reader_features", "uint64", False),
        10: ("writer_features", "uint64", False),
        12: ("transaction_file", "string", False),
    },
    "DataFragment": {
        1: ("id", "uint64", False),
        2: ("files", "DataFile", True),
        3: ("deletion_file", "DeletionFile", False),
        4: ("physical_rows", "uint64", False),
    },
    "DataFile": {
        1: ("path", "string", False),
        6: ("file_size_bytes", "uint64", False),
    },
    "DeletionFile": {
        1: ("file_type", "uint64", False),
        2: ("read_version", "uint64", False),
        3: ("id", "uint64", False),
        4: ("num_deleted_rows", "uint64", False),
    },
    "IndexSection": {1: ("indices", "Index", True)},
    "Index": {1: ("uuid", "Uuid", False), 3: ("name", "string", False)},
    "Uuid": {1: ("uuid", "bytes", False)},
}

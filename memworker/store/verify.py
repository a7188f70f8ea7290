"""Verifying a table: every page of every column of its newest version, its files, its indices.

::

    newest manifest ─► files there and whole ─► fragment by fragment: all rows, all columns
                                                     │ what cannot be read: by halves, to the row
                                                     ▼
          journal, indices, orphans ◄── vectors, keys against texts, metadata, times, ids

Nothing is changed, and only the deletion of old versions waits: the version that is
newest at the beginning is read, whatever others write meanwhile. Memory stays bounded: some
megabytes of rows at a time, and about 16 bytes a row for the ids.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memworker.errors import MemworkerError, StoreError, TableNotFound
from memworker.paths import DatabaseGiven
from memworker.store import places
from memworker.store.damage import Damage, DamageKind
from memworker.store.lance import (
    connect,
    database_path,
    open_table,
    table_name,
    table_names,
)
from memworker.store.leftovers import leftovers
from memworker.store.look import Look, Observer
from memworker.store.manifest import (
    VERSIONS,
    TornManifest,
    hinted,
    manifest_path,
    read_manifest,
    versions,
)
from memworker.store.readers import Readers
from memworker.store.schema import is_ours, read_field_metadata

_TRIES = 3
# Of a bucket there is nothing to verify that its server does not.
_KEPT_WHOLE = "object storage takes a file whole or not at all, and checks its sums itself"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found; `read` rows were looked at, of `rows` that the version has.

    `notes` are remarkable and no damage.
    """

    table: str
    version: int
    rows: int
    read: int
    files: int
    bytes: int
    seconds: float
    damages: tuple[Damage, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    @property
    def damaged_rows(self) -> int:
        """How many rows are damaged, each counted once."""
        return len({row for damage in self.damages for run in damage.rows for row in run})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {
            "table": self.table,
            "version": self.version,
            "healthy": self.healthy,
            "rows": self.rows,
            "read": self.read,
            "damaged_rows": self.damaged_rows,
            "files": self.files,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "damages": [damage.to_dict() for damage in self.damages],
            "notes": list(self.notes),
        }


def verify_table(db: DatabaseGiven, name: str, *, observer: Observer | None = None) -> Verified:
    """Read every page and column of a table's newest version, and say what is damaged.

    Changes nothing, and goes on beside readers and writers. Raises TableNotFound,
    TableMismatch for a table that memworker did not make, and StoreError when clean-ups
    remove the version again and again while it is read.
    """
    path = places.only_in_a_directory(database_path(db), "verifying", _KEPT_WHOLE)
    name = table_name(name)
    folder = path / f"{name}.lance"
    if not versions(folder):
        there = ", ".join(table_names(path)) or "none"
        raise TableNotFound(f"there is no table {name!r} in {path}; tables there: {there}")
    _refuse_others(path, name)
    # Another program may clean up too, and knows nothing of who reads.
    for _ in range(_TRIES):
        with Readers(path, name).keep():
            # First, for it is written after each version.
            noted = hinted(folder)
            newest = max(versions(folder))
            found = _verified(path, name, newest, noted, observer or _unobserved)
            if found.healthy or manifest_path(folder, newest).exists():
                return found
    raise StoreError(
        f"table {name!r} could not be verified: versions were cleaned away while they were read;"
        " run it again when fewer processes write"
    )


def _refuse_others(db: Path, name: str) -> None:
    """Raise TableMismatch for a table that another program made: that is no damage."""
    try:
        schema = open_table(connect(db, writable=False), db, name).schema
    except MemworkerError:
        return  # looked into, and told, below
    if not is_ours(schema):
        read_field_metadata(schema, name)


def _verified(db: Path, name: str, version: int, noted: int, observer: Observer) -> Verified:
    began = time.monotonic()
    look = Look(db, name, version, observer)
    if noted > version:
        why = f"version {noted} was written, and is gone; the newest is {version}"
        look.damages.append(Damage(DamageKind.VERSION, why, VERSIONS))
    for path in torn(db / f"{name}.lance", version):
        why = "an older version cannot be read, and no clean-up deletes anything beside it"
        look.damages.append(Damage(DamageKind.VERSION, why, f"{VERSIONS}/{path.name}"))
    look.run()
    return Verified(
        table=name,
        version=version,
        rows=look.rows,
        read=look.read,
        files=look.files,
        bytes=look.bytes,
        seconds=time.monotonic() - began,
        damages=tuple(look.damages),
        notes=(*look.notes, *_orphans(db / f"{name}.lance")),
    )


def torn(table: Path, newest: int) -> list[Path]:
    """Return the manifests of older versions that cannot be read."""
    found = []
    for version, path in sorted(versions(table).items()):
        try:
            if version < newest:
                read_manifest(table, version)
        except TornManifest:
            found.append(path)
        except FileNotFoundError:
            continue  # cleaned away meanwhile
    return found


def _orphans(table: Path) -> Iterator[str]:
    """Note files that no version names."""
    named: set[str] = set()
    for version in versions(table):
        with suppress(TornManifest, OSError):
            named.update(read_manifest(table, version).parts)
    found = leftovers(table, named)
    if found:
        files, size = sum(each.files for each in found), sum(each.bytes for each in found)
        yield (
            f"{files:,} files ({size:,} bytes) belong to no version: a write under way has made"
            " them, or one that did not come; the next clean-up removes the latter"
        )


def _unobserved(done: int, of: int) -> None:
    """Ignore the progress."""

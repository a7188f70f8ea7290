"""Bringing a table back whose newest version was torn, as a power loss leaves it.

A LanceDB version is one manifest file; writers never change those there are.
So a table whose newest manifest is empty or cut off is whole again, as of the
version before, as soon as that file is out of the way. It is moved, not
deleted, to ``DB/.memworker/TABLE/damaged/``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from memworker.errors import StoreError, TableNotFound
from memworker.store import journal, lock
from memworker.store.journal import Journal, Repaired
from memworker.store.lance import connect, database_path, open_table, table_name, table_names
from memworker.store.schema import read_field_metadata

_MANIFEST = ".manifest"
# Lance names version v by 2^64 - 1 - v in twenty digits, so that the newest sorts first.
_LAST = 2**64 - 1
_NAME_DIGITS = 20
_HINT = "latest_version_hint.json"


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did: `damaged` versions were moved away, `version` is the newest now.

    `journalled` is the newest version that the journal vouches for, if any.
    """

    table: str
    damaged: tuple[int, ...]
    version: int
    rows: int
    journalled: int | None
    moved_to: str | None

    @property
    def lost(self) -> bool:
        """Whether rows that were reported as committed went with a damaged version."""
        return self.journalled is not None and self.version < self.journalled


def repair(db: str | Path, name: str) -> Repair:
    """Go back to the newest version that can be read; a healthy table is left alone.

    Raises TableNotFound, TableLocked while an ingest works on the table, and
    StoreError when no version can be read.
    """
    path, name = database_path(db), table_name(name)
    versions = path / f"{name}.lance" / "_versions"
    if not versions.is_dir():
        raise TableNotFound(
            f"there is no table {name!r} in {path}; tables there: {', '.join(table_names(path))}"
        )
    folder = lock.state_dir(path, name)
    with lock.hold_job(folder), lock.hold(folder, "commit"):
        return _repair(path, name, versions, folder)


def _repair(db: Path, name: str, versions: Path, folder: Path) -> Repair:
    journalled = journal.last_version(journal.read(folder))
    damaged: list[int] = []
    manifests = sorted(_manifests(versions).items(), reverse=True)
    if not manifests:
        raise StoreError(f"table {name!r} of {db} has no version at all; ingest into it again")
    aside = folder / "damaged"
    for version, manifest in manifests:
        try:
            identity, rows = _read(db, name)
        except StoreError as error:
            if version == manifests[-1][0]:
                _put_back(aside, versions, damaged)
                raise StoreError(
                    f"no version of table {name!r} can be read, so none was changed; the oldest"
                    f" says: {error}. Drop the table and ingest again"
                ) from error
            _move(manifest, aside)
            damaged.append(version)
            continue
        if damaged:
            with Journal(folder, identity) as kept:
                kept.append(Repaired(journal.now(), identity, tuple(damaged), version))
        moved_to = str(aside) if damaged else None
        return Repair(name, tuple(damaged), version, rows, journalled, moved_to)
    raise AssertionError("the oldest version was read or raised")


def _manifests(versions: Path) -> dict[int, Path]:
    found = {}
    for path in versions.glob(f"*{_MANIFEST}"):
        if path.stem.isdecimal():
            number = int(path.stem)
            found[_LAST - number if len(path.stem) == _NAME_DIGITS else number] = path
    return found


def _read(db: Path, name: str) -> tuple[str, int]:
    """Return identity and row count of the newest version, having read every id."""
    table = open_table(connect(db, writable=False), db, name)
    _, identity = read_field_metadata(table.schema, name)
    try:
        rows = sum(
            batch.num_rows for batch in table.search().select(["id", "dedup_key"]).to_batches()
        )
        return identity, rows
    except (RuntimeError, ValueError, OSError) as error:
        raise StoreError(f"{type(error).__name__}: {error}"[:400]) from error


def _move(manifest: Path, aside: Path) -> None:
    aside.mkdir(mode=0o700, exist_ok=True)
    os.replace(manifest, aside / manifest.name)
    # It names the version that has just gone; Lance makes a new one.
    (manifest.parent / _HINT).unlink(missing_ok=True)


def _put_back(aside: Path, versions: Path, damaged: list[int]) -> None:
    for version in damaged:
        for name in (f"{_LAST - version:020}{_MANIFEST}", f"{version}{_MANIFEST}"):
            if (aside / name).exists():
                os.replace(aside / name, versions / name)

"""Back from a newest version that cannot be opened, by moving files only.

A LanceDB version is one manifest file; writers never change those there are. So a table
whose newest manifest is empty or cut off is whole again, as of the version before, as soon
as that file is out of the way. Of the version that was verified last a copy is kept
(see checksums.py), which takes the place of a damaged or missing one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from memworker.errors import StoreError
from memworker.store.aside import FOLDER
from memworker.store.checksums import Checksums
from memworker.store.durable import sync_path
from memworker.store.lance import connect, open_table
from memworker.store.manifest import HINT, VERSIONS, parsed, versions
from memworker.store.schema import read_field_metadata


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The newest version now; `damaged` were set aside, `copied` was put back from its copy."""

    version: int
    identity: str
    damaged: tuple[int, ...]
    copied: int | None


def roll_back(db: Path, name: str, state: Path, suspects: list[int]) -> RolledBack:
    """Make the newest version one that can be opened.

    `suspects` are newest versions that are damaged or gone, though the table may open: these
    are changed only if there is a copy. Raises StoreError when no version can be opened;
    then nothing has been changed.
    """
    table, aside = db / f"{name}.lance", state / FOLDER
    copied = _put_copy(table, state, aside, suspects)
    moved: list[tuple[int, Path, Path]] = []
    while there := versions(table):
        newest = max(there)
        try:
            identity = _identity(db, name)
            forget_hint(table)
            return RolledBack(newest, identity, tuple(version for version, _, _ in moved), copied)
        except StoreError as error:
            if len(there) == 1:
                _put_back(moved)
                raise StoreError(
                    f"no version of table {name!r} can be read, so none was changed; the oldest"
                    f" says: {error}. Drop the table and ingest again"
                ) from error
            moved.append((newest, there[newest], put_aside(there[newest], aside)))
    raise StoreError(f"table {name!r} of {db} has no version at all; ingest into it again")


def put_aside(manifest: Path, aside: Path) -> Path:
    """Move a manifest out of the way, so that the version before counts again; say where to."""
    aside.mkdir(mode=0o700, exist_ok=True)
    os.replace(manifest, aside / manifest.name)
    forget_hint(manifest.parent.parent)
    return aside / manifest.name


def forget_hint(table: Path) -> None:
    """Let LanceDB look for the newest version itself; it writes a new hint with the next."""
    (table / VERSIONS / HINT).unlink(missing_ok=True)


def _identity(db: Path, name: str) -> str:
    handle = open_table(connect(db, writable=False), db, name)
    return read_field_metadata(handle.schema, name)[1]


def _put_copy(table: Path, state: Path, aside: Path, suspects: list[int]) -> int | None:
    """Put the copy of a version's manifest in its place, if there is one and it differs."""
    newest = max([*versions(table), *suspects], default=0)
    copy = Checksums(state, "").manifest_of(newest)
    if copy is None:
        return None
    path = table / copy.path
    if path.exists() and path.read_bytes() == copy.content:
        return None
    there = parsed(copy.content, path).files
    if not all((table / one).exists() for one in there):
        return None  # the table went back to before it, with its files
    if path.exists():
        put_aside(path, aside)
    temporary = state / "manifest.tmp"
    temporary.write_bytes(copy.content)
    sync_path(temporary)
    os.replace(temporary, path)
    sync_path(path.parent)
    return newest


def _put_back(moved: list[tuple[int, Path, Path]]) -> None:
    for _, was, now in moved:
        os.replace(now, was)

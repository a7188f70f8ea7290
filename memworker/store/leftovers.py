"""Files of a table that no version names: what is left of commits that did not come.

A compaction that met a conflict, a writer that was killed, a merge tried again: LanceDB leaves
the rows, deletions and indices that were written for them. Looked for is only what a
writer makes, by its name; whatever else lies in a table's folder is not ours to judge.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from memworker.store import places
from memworker.store.manifest import DATA, DELETIONS, INDICES, TRANSACTIONS, VERSIONS
from memworker.store.places import Folder

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
# What the local file system's writer renames once it is whole.
_DRAFT = re.compile(r"\.tmp\w+\Z")
_SUFFIXES = {
    DATA: (".lance",),
    DELETIONS: (".arrow", ".bin"),
    TRANSACTIONS: (".txn",),
    # Versions themselves are named by nobody.
    VERSIONS: (),
}


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file, or the folder of an index, that no version names.

    `files` and `bytes` of it; `written` is when it last changed, by the file system's clock.
    """

    path: Folder
    files: int
    bytes: int
    written: float


def leftovers(table: Folder, named: Collection[str]) -> list[Leftover]:
    """Return what writers made in a table's folder and none of the `named` paths is."""
    found = []
    for folder in (*_SUFFIXES, INDICES):
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(places.entries(table / folder), key=_name):
                if f"{folder}/{path.name}" not in named and _is_a_writers(folder, path.name):
                    # Who compacts with LanceDB itself may remove it at this moment.
                    with suppress(FileNotFoundError):
                        found.append(_leftover(path))
    return found


def _name(path: Folder) -> str:
    return path.name


def _is_a_writers(folder: str, name: str) -> bool:
    if folder == INDICES:
        return _UUID.match(name) is not None
    return name.endswith(_SUFFIXES[folder]) or _DRAFT.match(name) is not None


def _leftover(path: Folder) -> Leftover:
    seen = path.lstat()
    if not stat.S_ISDIR(seen.st_mode):
        return Leftover(path, 1, seen.st_size, seen.st_mtime)
    inside = [each.lstat() for each in places.entries(path)]
    return Leftover(
        path,
        len(inside) or 1,
        sum(each.st_size for each in inside),
        max([seen.st_mtime, *(each.st_mtime for each in inside)]),
    )

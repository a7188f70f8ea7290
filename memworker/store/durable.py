"""Forcing a table's files to the disk: LanceDB never does for a local directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from memworker.store.manifest import Manifest


class NotForced(OSError):
    """A file could not be forced to the disk; `filename` says which.

    After that its pages count as clean, so that a second fsync would succeed and prove
    nothing: what was written must be written anew.
    """


class Disk:
    """Which files of one table this process has forced to the disk, and which it could not."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._forced: set[str] = set()
        self._lost: set[str] = set()

    def force(self, manifest: Manifest, known: frozenset[str] = frozenset()) -> int:
        """Force the files of a version that were not forced yet; return how many.

        The folders too, and the first time those above, for they name the table's. What
        could not be forced once is not tried again, but for what is `known` of versions
        before. Raises NotForced.
        """
        new = [path for path in files_of(self._table, manifest) if path not in self._forced]
        for path in new:
            if path in self._lost and not is_known(path, known):
                why = "an earlier attempt failed, so that another would prove nothing"
                raise NotForced(errno.EIO, why, str(self._table / path))
            try:
                sync_path(self._table / path)
            except NotForced:
                self._lost |= {path} if not is_known(path, known) else set()
                raise
        folders = {(self._table / path).parent for path in new}
        # A new folder is a new entry of the folder above it.
        folders |= {folder.parent for folder in folders}
        if not self._forced:
            folders |= {self._table, self._table.parent, self._table.parent.parent}
        for folder in sorted(folders, reverse=True):
            try:
                sync_path(folder)
            except NotForced:
                # Their names may never be on the disk.
                self._lost |= {path for path in new if not is_known(path, known)}
                raise
        self._forced.update(new)
        return len(new)

    def lost(self, manifest: Manifest, known: frozenset[str]) -> bool:
        """Tell whether a version has a file, not `known`, that could not be forced to the disk."""
        lost = self._lost.intersection(files_of(self._table, manifest))
        return not all(is_known(path, known) for path in lost)

    def forget(self, path: Path) -> None:
        """Forget a file that was removed: its name may be used again."""
        self._lost.discard(str(path.relative_to(self._table)))


def is_known(path: str, known: frozenset[str]) -> bool:
    """Tell whether a file, or the index that it belongs to, is among what `parts_of` gave."""
    return path in known or os.path.dirname(path) in known


def files_of(table: Path, manifest: Manifest) -> list[str]:
    """Return the files of a version, the manifest last, as paths below the table's folder."""
    found = list(manifest.files)
    for index in manifest.indices:
        found += [f"{index.folder}/{name}" for name in index_files(table / index.folder)]
    found += [manifest.transaction] if manifest.transaction else []
    return [*found, manifest.path]


def index_files(folder: Path) -> list[str]:
    """Return the names of an index's files; none when a clean-up has just removed it."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def sync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk. Raises NotForced.

    What is not there any more, since a clean-up elsewhere has removed it, needs no force.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotForced(error.errno, error.strerror, str(path)) from error
    try:
        os.fsync(fd)
    except OSError as error:
        raise NotForced(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)

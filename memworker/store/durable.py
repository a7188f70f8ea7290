"""Forcing a table's files to the disk: LanceDB never does for a local directory."""

from __future__ import annotations

import os
from pathlib import Path


class Folder:
    """A folder whose files are written once under new names, as LanceDB's are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._synced: set[tuple[str, int]] = set()

    def sync(self) -> int:
        """Sync the files that came since the last time, then their folders; return how many.

        The two folders above are synced the first time, for they name this one.
        """
        new = [(found, key) for found, key in _files(self._path) if key not in self._synced]
        for path, _ in new:
            sync_path(path)
        parents = {path.parent for path, _ in new}
        # A new folder is a new entry of the folder above it.
        parents |= {parent.parent for parent in parents}
        if not self._synced:
            parents |= {self._path.parent, self._path.parent.parent}
        for parent in sorted(parents, reverse=True):
            sync_path(parent)
        self._synced |= {key for _, key in new}
        return len(new)


def _files(folder: Path) -> list[tuple[Path, tuple[str, int]]]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                # One file is written again and again: the hint at the newest version.
                found.append((path, (str(path), path.stat().st_mtime_ns)))
            except FileNotFoundError:
                continue  # a compaction elsewhere has just removed it
    return found


def sync_path(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

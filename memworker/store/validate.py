"""Whether what a commit has written is there, whole, and forced to the disk where promised.

A file whose fsync has failed once may never reach the disk, however often that is tried
again; so it counts as not whole, and is written anew, under another name.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import TypeAlias

from memworker.errors import StoreError
from memworker.store import bounded, places, whole
from memworker.store.commitlock import CommitLock
from memworker.store.durable import Disk, NotForced, files_of, is_known
from memworker.store.lance import explain
from memworker.store.manifest import Fragment, Manifest, TornManifest, read_manifest, versions
from memworker.store.opened import OpenTable
from memworker.store.schema import vectors_of
from memworker.vectors import bad_vectors


class NotWhole(Exception):
    """What a commit wrote is not all there."""


class Validator:
    """Looks at the versions of one table; remembers which parts were whole at the last look."""

    def __init__(self, table: OpenTable, lock: CommitLock) -> None:
        self._table, self._lock = table, lock
        self._folder = places.on_disk(table.folder)
        self._mutex = threading.Lock()
        self._last: tuple[int, frozenset[str]] = (-1, frozenset())
        self.disk = Disk(self._folder)

    def look_at(self, version: int, before: int | None = None) -> None:
        """Raise NotWhole unless what `version` added is there, and forced where promised.

        `before`: the version to compare with, if it is not the one just before. Raises
        StoreError when earlier rows could not be forced, OSError when a file cannot be read.
        """
        before = version - 1 if before is None else before
        with self._mutex:
            try:
                self._look_at(version, before)
            except OSError:
                # That one read failed says nothing of what was written, which would stay
                # there, neither believed nor forced to the disk.
                self._look_at(version, before)

    def parts(self, version: int) -> frozenset[str]:
        """Return the parts of a version; none where that is gone, or cannot be read."""
        if self._last[0] == version:
            return self._last[1]
        try:
            return whole.parts_of(read_manifest(self._folder, version))
        except (FileNotFoundError, TornManifest):
            return frozenset()

    def torn(self, version: int, known: frozenset[str]) -> bool:
        """Tell whether a version has a part, not `known`, that is not whole or not forced."""
        manifest = read_manifest(self._folder, version)
        flaws = whole.flaws(self._folder, manifest, known)
        return self.disk.lost(manifest, known) or any(True for _ in flaws)

    def vouch(self) -> Manifest:
        """Return what the newest version is made of, known to be whole, and forced where promised.

        Before anything is deleted that the newest version stands for. Raises StoreError.
        """
        name = self._table.name
        with self._mutex:
            manifest = read_manifest(self._folder, self._table.newest(f"looking at table {name!r}"))
            for flaw in whole.flaws(self._folder, manifest):
                raise StoreError(f"the newest version of table {name!r} is damaged: {flaw}")
            if self._lock.durable:
                try:
                    self.disk.force(manifest)
                except NotForced as error:
                    raise StoreError(
                        f"{error.filename} could not be forced to the disk: {error.strerror}"
                    ) from error
            return manifest

    def force(self) -> int:
        """Force the newest version to the disk; return how many files. Raises StoreError."""
        doing = f"forcing table {self._table.name!r} to the disk"
        with self._mutex:
            try:
                return self.disk.force(read_manifest(self._folder, self._table.newest(doing)))
            except OSError as error:
                raise StoreError(
                    f"{doing} failed: {error.filename}: {error.strerror}. What was committed is in"
                    " the table, but a power loss may take it; `memworker table optimize` writes"
                    " the files anew"
                ) from error

    def force_before(self, doing: str, seen: int) -> None:
        """Force what others have committed, so that what fails then is not a commit of ours."""
        if not self._lock.durable or self._last[0] == seen:
            return
        try:
            manifest = self._manifest(seen)
            with self._mutex:
                self.disk.force(manifest, frozenset(files_of(self._folder, manifest)))
        except TornManifest:
            return  # the write will tell
        except OSError as error:
            raise StoreError(
                f"{doing} failed: {error.filename} holds earlier rows, which a power loss may take,"
                f" for it could not be forced to the disk ({error.strerror}). Nothing of this"
                " batch was committed. `memworker table optimize` writes the earlier rows anew"
            ) from error

    def _look_at(self, version: int, before: int) -> None:
        try:
            manifest = self._manifest(version)
        except TornManifest as error:
            raise NotWhole(str(error)) from error
        known = self.parts(before)
        for flaw in whole.flaws(self._folder, manifest, known):
            raise NotWhole(f"what was written is not whole: {flaw}")
        fresh = [each for each in manifest.fragments if not known.issuperset(each.parts)]
        if any((each.deletions or "").endswith(".bin") for each in fresh):
            self._read_deletions()
        if self._lock.durable:
            # The disk is busy with the one, and a core with the other.
            force = partial(self._force, manifest, known)
            bounded.beside(force, partial(self._read_back, fresh))
        self._last = (version, whole.parts_of(manifest))

    def _manifest(self, version: int) -> Manifest:
        try:
            return read_manifest(self._folder, version)
        except FileNotFoundError:
            # Others have committed since, and one of them has removed older versions.
            return read_manifest(self._folder, max(versions(self._folder)))

    def _force(self, manifest: Manifest, known: frozenset[str]) -> None:
        try:
            self.disk.force(manifest, known)
        except NotForced as error:
            what = f"{error.filename} could not be forced to the disk ({error.strerror})"
            if not is_known(os.path.relpath(error.filename, self._folder), known):
                raise NotWhole(what) from error
            raise StoreError(
                f"{what}: it holds earlier rows, which a power loss may take. What was just"
                " written is in the table. `memworker table optimize` writes the earlier rows anew"
            ) from error

    def _read_back(self, fragments: list[Fragment]) -> None:
        """Read new rows, every column."""
        for fragment in fragments:
            name = fragment.files[0].path
            try:
                bad = self._bad_vectors(fragment)
            except Exception as error:
                why = explain("reading", error)
                raise NotWhole(f"{name} cannot be read back: {why}") from error
            if bad:
                raise NotWhole(f"{bad} vectors of {name} read back as zero or not finite")

    def _bad_vectors(self, fragment: Fragment) -> int:
        handle = self._table.handle
        # Of the newest version: a commit may have given the table vectors of another size.
        dim = handle.schema.field("vector").type.list_size
        rows = f"_rowid >= {fragment.id << 32} AND _rowid < {(fragment.id + 1) << 32}"
        batches = list(handle.search().where(rows).to_batches())
        return sum(len(bad_vectors(vectors_of(batch["vector"], dim))) for batch in batches)

    def _read_deletions(self) -> None:
        """Read which rows are gone, by a handle that remembers nothing of having written it."""
        try:
            self._table.again().count_rows("id IS NOT NULL")
        except Exception as error:
            why = explain("reading", error)
            raise NotWhole(f"which rows are deleted cannot be read: {why}") from error


class BucketValidator:
    """Believes an object store, which keeps what it took whole; proves that the lock was held."""

    def __init__(self, table: OpenTable, lock: CommitLock) -> None:
        self._table, self._lock = table, lock
        self.disk = _NoDisk(Path())

    def look_at(self, version: int, before: int | None = None) -> None:
        """Raise LockLost where another machine may have written since the lock was taken."""
        if self._lock.held is not None and self._lock.held.between is not None:
            self._lock.held.between.prove(version)

    def parts(self, version: int) -> frozenset[str]:
        """Return the parts of a version."""
        return whole.parts_of(read_manifest(self._table.folder, version))

    def torn(self, version: int, known: frozenset[str]) -> bool:
        """Tell that no version is torn."""
        return False

    def vouch(self) -> Manifest:
        """Return what the newest version is made of."""
        newest = self._table.newest(f"looking at table {self._table.name!r}")
        return read_manifest(self._table.folder, newest)

    def force(self) -> int:
        """Return how many files were forced to a disk: none, for the store has them."""
        return 0

    def force_before(self, doing: str, seen: int) -> None:
        """Do nothing: what others have committed is as safe as it gets."""


class _NoDisk(Disk):
    def force(self, manifest: Manifest, known: frozenset[str] = frozenset()) -> int:
        return 0

    def lost(self, manifest: Manifest, known: frozenset[str]) -> bool:
        return False


AnyValidator: TypeAlias = Validator | BucketValidator


def validator_of(table: OpenTable, lock: CommitLock) -> AnyValidator:
    """Return what looks at the commits of a table, wherever that is."""
    return BucketValidator(table, lock) if places.is_bucket(table.db) else Validator(table, lock)

"""Taking back what a commit has written and is not whole: the rows are those of before again."""

from __future__ import annotations

from functools import partial

from memworker.errors import StoreError
from memworker.store import places, rollback, whole
from memworker.store.aside import FOLDER
from memworker.store.commitlock import CommitLock
from memworker.store.durable import NotForced
from memworker.store.lance import explain
from memworker.store.manifest import (
    Fragment,
    TornManifest,
    manifest_path,
    read_manifest,
    versions,
)
from memworker.store.opened import OpenTable
from memworker.store.validate import AnyValidator, NotWhole

# What was written and not found whole is written again so often.
WRITES = 3
_NO_MANIFEST = "of the manifests that were written none is whole and forced to the disk"


class TakeBack:
    """Undoes commits of one table, by commits; the caller holds the commit lock."""

    def __init__(self, table: OpenTable, lock: CommitLock, validator: AnyValidator) -> None:
        self._table, self._lock, self._validator = table, lock, validator
        self._folder = table.folder

    def settled_version(self) -> int:
        """Return the newest version, having put a torn manifest aside that cannot be read."""
        try:
            return int(self._table.handle.version)
        except Exception:  # whatever LanceDB calls it; what it was is raised by the second look
            newest = max(versions(self._folder), default=0)
            try:
                read_manifest(self._folder, newest)
            except TornManifest:
                self._put_aside(newest)
            return int(self._table.handle.version)

    def rows(self, doing: str, version: int, flaw: NotWhole) -> None:
        """Restore the rows of the version before, by a commit. Raises StoreError."""
        try:
            newest = self.settled_version()
            if newest < version:
                return  # its manifest was torn, and is out of the way
            before = read_manifest(self._folder, version - 1).fragments
            ours = read_manifest(self._folder, version).fragments
            if newest == version or read_manifest(self._folder, newest).fragments == ours:
                self.restore(version - 1)
            elif set(before) <= set(ours):
                self._drop([each for each in ours if each not in before])
            else:
                raise StoreError("another program has committed on top of it")
        except Exception as error:
            raise StoreError(
                f"{doing} failed: {flaw}; and version {version} could not be taken back:"
                f" {explain('that', error)}. Run `memworker table repair`, then the same again"
            ) from error

    def build(self, doing: str, seen: int, flaw: NotWhole) -> None:
        """Undo what a build committed after `seen`, whatever others have committed since."""
        try:
            newest = self.settled_version()
            known, parts = self._validator.parts(seen), read_manifest(self._folder, newest)
            later = range(seen + 1, newest + 1)
            torn = next((each for each in later if self._validator.torn(each, known)), None)
            if torn is None:
                return
            before = read_manifest(self._folder, torn - 1)
            ours = read_manifest(self._folder, torn)
            if newest == torn or parts.fragments == ours.fragments:
                self.restore(torn - 1)
            elif before.fragments == ours.fragments:
                # An index. Those who search must not fall over it, and the next build makes it.
                for name in {each.name for each in ours.indices if each not in before.indices}:
                    self._table.run(partial(self._table.handle.drop_index, name))
            else:
                raise StoreError("rows have been committed on top of it")
        except Exception as error:
            raise StoreError(
                f"{doing} failed: {flaw}; and it could not be taken back: {explain('that', error)}."
                " Run `memworker table repair` before anything else is done to the table"
            ) from error

    def restore(self, version: int) -> None:
        """Make the rows of an older version the newest again, by a commit. Raises StoreError."""
        # A fresh handle, because others read through the shared one meanwhile.
        fresh = self._table.again()
        for _ in range(WRITES):
            fresh.checkout(version)
            self._table.run(fresh.restore)
            if self._is_safe(int(fresh.version)):
                return
        raise StoreError(_NO_MANIFEST)

    def _drop(self, fragments: list[Fragment]) -> None:
        """Delete whole fragments, which needs no reading of them."""
        ranges = (f"(_rowid >= {f.id << 32} AND _rowid < {(f.id + 1) << 32})" for f in fragments)
        delete = partial(self._table.handle.delete, " OR ".join(ranges))
        for _ in range(WRITES):
            if self._is_safe(int(self._table.run(delete).version)):
                return
        raise StoreError(_NO_MANIFEST)

    def _is_safe(self, version: int) -> bool:
        """Tell whether a version's manifest is whole, and forced where promised."""
        try:
            manifest = read_manifest(self._folder, version)
        except TornManifest:
            self._put_aside(version)
            return False
        if self._lock.durable:
            try:
                # No row is written by what takes back.
                self._validator.disk.force(manifest, whole.parts_of(manifest))
            except NotForced:
                return False
        return True

    def _put_aside(self, version: int) -> None:
        """Move an unreadable manifest out of the way; the version before counts again."""
        path = manifest_path(self._folder, version)
        rollback.put_aside(places.on_disk(path), self._table.made_state() / FOLDER)
        self._validator.disk.forget(places.on_disk(path))

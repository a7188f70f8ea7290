"""Deleting versions that are not the newest, and the files that no version is made of any more.

::

    tend (held by the caller) ─► read, alone ─► commit ─► is the newest version whole? ─► delete

Nothing is in the way of a version's end but its readers, and no age proves that there are none.
So those who read one version in many steps share the lock ``read``, and while anybody has
it nothing is deleted; a short read whose version goes away is asked again (readers.py).

A file that no version names is either of a commit under way or left of one that did not come
(leftovers.py). Every writer of ours holds ``commit`` or ``tend`` from its first byte to its
commit, and the system frees these when it dies; a process that works for it (apart.py) may
outlive it by a moment, and holds ``apart``. With all three in hand, nothing is under way. A
lease proves less, for its holder may only be slow; there nothing of this kind is deleted.

`keep` is a courtesy to those who know nothing of these locks, LanceDB's own readers and writers. It
counts from when a version was followed by the next, and from when a leftover last changed, by the
file system's clock alone.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.errors import TableLocked
from memworker.failpoints import reach
from memworker.locks import LockKind, kind_in
from memworker.store import clock, journal, lock, places
from memworker.store.checksums import Checksums
from memworker.store.lance import lance_errors
from memworker.store.leftovers import Leftover, leftovers
from memworker.store.manifest import (
    SUFFIX,
    VERSIONS,
    Manifest,
    TornManifest,
    hinted,
    read_manifest,
    versions,
)
from memworker.store.places import Folder

if TYPE_CHECKING:
    from memworker.store.writes import Writes

# An export may read for an hour; a short read has ended after this.
_PATIENCE_S = 1.0
# Deletion files, row ids that stay, an older format's mark, a table's own settings, and
# transactions within the manifest. Others may name files in ways that are not known here.
_KNOWN_FEATURES = 1 | 2 | 4 | 8 | 32
_BRANCHES = "_refs/branches"
# A writer that uses LanceDB itself has this long from its last byte to its commit, whatever `keep`
# is: a reader that loses its version asks again, but a commit whose files are gone is damage.
LEFTOVERS_MIN = timedelta(minutes=5)
_READ = "table {!r} is being read as a whole (exported, say); the next clean-up does it"
_OTHERS = "LanceDB's own Table.optimize deletes them"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up did: versions and bytes deleted, and older versions that stay.

    `note` says why versions stay that are old enough to go; None when none does. `leftovers`
    are files that no version named, and `leftover_bytes` theirs, counted in `bytes` too.
    """

    versions: int = 0
    bytes: int = 0
    kept: int = 0
    note: str | None = None
    leftovers: int = 0
    leftover_bytes: int = 0


def clean(writes: Writes, keep: timedelta) -> Cleaned:
    """Delete the versions that were followed by another longer than `keep` ago, and leftovers.

    The caller holds the lock ``tend``. Raises StoreError, and TableLocked when the commit lock was
    not free for a minute. Nothing is deleted while the lock ``read`` is shared by a long read.
    """
    name, folder, table = writes.table.name, writes.table.made_state(), writes.table.folder
    keep = places.kept_for(writes.table.db, keep)
    cleaning = _Cleaning(writes, folder, table, keep.total_seconds(), {})
    if not cleaning.is_due():
        return Cleaned(kept=len(versions(table)) - 1)
    with ExitStack() as held:
        try:
            alone = held.enter_context(lock.hold(folder, "read", timeout_s=_PATIENCE_S))
        except TableLocked:
            kept = len(versions(table)) - 1
            return Cleaned(kept=kept, note=f"no old version was deleted: {_READ.format(name)}")
        with suppress(TableLocked):
            held.enter_context(lock.hold(folder, "apart", timeout_s=_PATIENCE_S))
            cleaning.none_apart = True
        held.enter_context(writes.lock.take())
        with lance_errors(f"deleting old versions of table {name!r}"):
            return cleaning.run(alone)


@dataclass(frozen=True, slots=True)
class _Version:
    """What of a manifest is needed here: there can be thousands of versions of a hundred files."""

    number: int
    path: str
    features: int
    parts: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> _Version:
        # Most files are of many versions, and one name is enough for all.
        parts = tuple(map(sys.intern, manifest.parts))
        return cls(manifest.version, manifest.path, manifest.features, parts)


@dataclass(slots=True)
class _Cleaning:
    """One clean-up. `read` are the versions that were read already.

    `none_apart`: no child is still at work whose parent, which held the locks, has ended.
    """

    writes: Writes
    folder: Path
    table: Folder
    keep_s: float
    read: dict[int, _Version | None]
    none_apart: bool = False
    bytes: int = 0

    def is_due(self) -> bool:
        """Tell whether there is anything to delete, as it looks while others may write.

        Most of the reading is done here, for what a version is made of never changes; but there
        may be thousands, and none is read where the newest names all files that are old.
        """
        old = bool(_old(self.table, clock.now(self.writes.table.clock) - self.keep_s))
        if not old and not self._old_leftovers(_newest(self.table)):
            return False
        self.read = _read(self.table, {})
        return old or bool(self._old_leftovers([v for v in self.read.values() if v is not None]))

    def run(self, alone: lock.HeldLock) -> Cleaned:
        """Delete, while the locks keep out long reads, writers and other upkeep."""
        newest = self.writes.validator.vouch()
        found = _read(self.table, self.read)
        there = [each for each in found.values() if each is not None]
        note = self._cannot(found)
        if note:
            return Cleaned(kept=len(found) - 1, note=f"no old version was deleted: {note}")
        tagged = {int(tag["version"]) for tag in self.writes.handle.tags.list().values()}
        old = set(_old(self.table, clock.now(self.writes.table.clock) - self.keep_s))
        old &= set(found) - {newest.version}
        going = [each for each in there if each.number in old - tagged]
        retained = [each for each in there if each.number not in old - tagged]
        alone.confirm()
        self._delete(going, retained)
        note = f"version {min(old & tagged)} is tagged, and stays" if old & tagged else None
        done = Cleaned(len(going), self.bytes, len(retained) - 1, note)
        return self._delete_leftovers(done, newest.version, retained)

    def _cannot(self, found: dict[int, _Version | None]) -> str | None:
        """Return why the files of this table's versions cannot be known, or None."""
        for number, version in found.items():
            if version is None:
                return f"version {number} cannot be read, and what it is made of must stay"
            if version.features & ~_KNOWN_FEATURES:
                return f"version {number} has features that are unknown here; {_OTHERS}"
        if any((self.table / _BRANCHES).glob("*")):
            return f"the table has branches, whose versions share its files; {_OTHERS}"
        for path in (self.table / VERSIONS).glob(f"*{SUFFIX}"):
            if not path.stem.isdecimal():
                return f"{path.name} is a version of a kind that is unknown here; {_OTHERS}"
        return None

    def _delete(self, going: list[_Version], retained: list[_Version]) -> None:
        for path in sorted(_parts(going) - _parts(retained)):
            self._remove(self.table / path)
        reach("mid_clean")
        # Last, so that a kill leaves nothing that no version names: it is found again.
        for version in sorted(going, key=lambda each: each.number):
            self._remove(self.table / version.path)

    def _delete_leftovers(self, done: Cleaned, newest: int, retained: list[_Version]) -> Cleaned:
        """Delete what no version names, where that proves that no writer needs it."""
        found = self._old_leftovers(retained)
        if why := found and self._may_be_needed(newest):
            what = f"{sum(left.files for left in found)} files that no version names stay: {why}"
            return replace(done, note="; ".join(filter(None, (done.note, what))))
        if self.writes.lock.held is not None:
            self.writes.lock.held.confirm()
        before = self.bytes
        for left in found:
            self._remove(left.path)
        files = sum(left.files for left in found)
        return replace(done, bytes=self.bytes, leftovers=files, leftover_bytes=self.bytes - before)

    def _may_be_needed(self, newest: int) -> str | None:
        """Return why files that no version names may still be needed, or None."""
        if kind_in(self.folder) is LockKind.LEASE:
            return "the locks of this file system cannot prove that no writer is under way"
        if not self.none_apart:
            return "a process that writes for one that was killed is still at work"
        identity = self.writes.table.identity
        noted = journal.last_version(journal.read(self.folder), identity) or 0
        noted = max(noted, hinted(self.table), Checksums(self.folder, identity).version)
        if noted > newest:
            return f"version {noted} is missing; see `memworker table verify`"
        return None

    def _old_leftovers(self, there: list[_Version]) -> list[Leftover]:
        before = clock.now(self.writes.table.clock) - max(
            self.keep_s, LEFTOVERS_MIN.total_seconds()
        )
        return [each for each in leftovers(self.table, _parts(there)) if each.written <= before]

    def _remove(self, path: Folder) -> None:
        if path.is_dir():
            for file in places.entries(path):
                self._remove(file)
            path.rmdir()
            return
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.bytes += size


def _newest(table: Folder) -> list[_Version]:
    numbers = versions(table)
    newest = _read(table, dict.fromkeys(sorted(numbers)[:-1])).get(max(numbers, default=0))
    return [newest] if newest is not None else []


def _parts(there: list[_Version]) -> set[str]:
    return {path for version in there for path in version.parts}


def _read(table: Folder, known: dict[int, _Version | None]) -> dict[int, _Version | None]:
    """Return what the versions are made of that there are now; None for one that is torn."""
    found: dict[int, _Version | None] = {}
    for number in versions(table):
        if number in known:
            found[number] = known[number]
            continue
        try:
            found[number] = _Version.of(read_manifest(table, number))
        except TornManifest:
            found[number] = None
        except FileNotFoundError:
            continue  # another program cleans up too
    return found


def _old(table: Folder, before: float) -> list[int]:
    """Return the versions that were followed by another before a moment of the file system's."""
    found = versions(table)
    numbers = sorted(found)
    old = []
    for number, following in zip(numbers, numbers[1:], strict=False):
        with suppress(FileNotFoundError):
            if found[following].stat().st_mtime <= before:
                old.append(number)
    return old

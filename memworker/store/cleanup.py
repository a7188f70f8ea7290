"""Deleting versions that are not the newest, and the files that only they are made of.

::

    tend (held by the caller) ─► read, alone ─► commit ─► is the newest version whole? ─► delete

Nothing is in the way of a version's end but its readers, and no age proves that there are none.
So those who read one version in many steps share the lock ``read``, and while anybody has
it nothing is deleted; a short read whose version goes away is asked again (readers.py). That
no file goes which a writer has written and not committed yet needs no clock either: only files
are deleted that an older version names, and no retained one.

`keep` is a courtesy to readers that know nothing of these locks, LanceDB's own. It counts from
when a version was followed by the next, by the file system's clock alone.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from memworker.errors import TableLocked
from memworker.failpoints import reach
from memworker.store import clock, lock
from memworker.store.durable import index_files
from memworker.store.lance import lance_errors
from memworker.store.manifest import Manifest, TornManifest, read_manifest, versions

if TYPE_CHECKING:
    from memworker.store.writes import Locked, Writes

# Somebody who exports a table may take an hour; a short read has ended after this.
_PATIENCE_S = 1.0
# Deletion files, row ids that stay, an older format's mark, a table's own settings, and
# transactions within the manifest. Others may name files in ways that are not known here.
_KNOWN_FEATURES = 1 | 2 | 4 | 8 | 32
_BRANCHES = "_refs/branches"
_READ = "table {!r} is being read as a whole (exported, say); the next clean-up does it"
_OTHERS = "LanceDB's own Table.optimize deletes them"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up did: versions and bytes deleted, and older versions that stay.

    `note` says why versions stay that are old enough to go; None when none does.
    """

    versions: int = 0
    bytes: int = 0
    kept: int = 0
    note: str | None = None


def clean(writes: Writes, db: Path, keep: timedelta, writing: Locked) -> Cleaned:
    """Delete the versions that were followed by another longer than `keep` ago.

    With the lock ``tend`` held. Raises StoreError, and TableLocked when nobody could
    commit for a minute; nothing is deleted while somebody reads the table for long.
    """
    name = str(writes.handle.name)
    folder, table = lock.state_dir(db, name), db / f"{name}.lance"
    if not _old(table, clock.now(folder) - keep.total_seconds()):
        return Cleaned(kept=len(versions(table)) - 1)
    # Most of the reading while others may write still: what a version is made of never changes.
    cleaning = _Cleaning(writes, table, _read(table, {}))
    with ExitStack() as held:
        try:
            alone = held.enter_context(lock.hold(folder, "read", timeout_s=_PATIENCE_S))
        except TableLocked:
            kept = len(versions(table)) - 1
            return Cleaned(kept=kept, note=f"no old version was deleted: {_READ.format(name)}")
        held.enter_context(writing())
        with lance_errors(f"deleting old versions of table {name!r}"):
            return cleaning.run(clock.now(folder) - keep.total_seconds(), alone)


@dataclass(slots=True)
class _Cleaning:
    """One clean-up. `read` are the versions that were read already."""

    writes: Writes
    table: Path
    read: dict[int, Manifest | None]
    bytes: int = 0

    def run(self, before: float, alone: lock.Held) -> Cleaned:
        """Delete, with nobody reading for long, writing or tending."""
        newest = self.writes.vouch()
        found = _read(self.table, self.read)
        manifests = [each for each in found.values() if each is not None]
        note = self._cannot(found)
        if note:
            return Cleaned(kept=len(found) - 1, note=f"no old version was deleted: {note}")
        tagged = {int(tag["version"]) for tag in self.writes.handle.tags.list().values()}
        old = set(_old(self.table, before)) & set(found) - {newest.version}
        going = [each for each in manifests if each.version in old - tagged]
        alone.confirm()
        self._delete(going, [each for each in manifests if each not in going])
        note = f"version {min(old & tagged)} is tagged, and stays" if old & tagged else None
        return Cleaned(len(going), self.bytes, len(manifests) - len(going) - 1, note)

    def _cannot(self, found: dict[int, Manifest | None]) -> str | None:
        """Say why it cannot be known what the versions of this table are made of."""
        for number, manifest in found.items():
            if manifest is None:
                return f"version {number} cannot be read, and what it is made of must stay"
            if manifest.features & ~_KNOWN_FEATURES:
                return f"version {number} has features that are unknown here; {_OTHERS}"
        if any((self.table / _BRANCHES).glob("*")):
            return f"the table has branches, whose versions share its files; {_OTHERS}"
        return None

    def _delete(self, going: list[Manifest], retained: list[Manifest]) -> None:
        needed = {path for manifest in retained for path in _parts(manifest)}
        for path in sorted({path for manifest in going for path in _parts(manifest)} - needed):
            self._remove(self.table / path)
        reach("mid_clean")
        # Last, so that a kill leaves nothing that no version names: it is found again.
        for manifest in sorted(going, key=lambda each: each.version):
            self._remove(self.table / manifest.path)

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            for name in index_files(path):
                self._remove(path / name)
            path.rmdir()
            return
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.bytes += size


def _read(table: Path, known: dict[int, Manifest | None]) -> dict[int, Manifest | None]:
    """Return what the versions are made of that there are now; None for one that is torn."""
    found: dict[int, Manifest | None] = {}
    for number in versions(table):
        if number in known:
            found[number] = known[number]
            continue
        try:
            found[number] = read_manifest(table, number)
        except TornManifest:
            found[number] = None
        except FileNotFoundError:
            continue  # another program cleans up too
    return found


def _parts(manifest: Manifest) -> list[str]:
    """Return the files of a version, and the folders of its indices, but for the manifest."""
    transaction = [manifest.transaction] if manifest.transaction else []
    return [*manifest.files, *(index.folder for index in manifest.indices), *transaction]


def _old(table: Path, before: float) -> list[int]:
    """Return the versions that were followed by another before a moment of the file system's."""
    found = versions(table)
    numbers = sorted(found)
    old = []
    for number, following in zip(numbers, numbers[1:], strict=False):
        with suppress(FileNotFoundError):
            if found[following].stat().st_mtime <= before:
                old.append(number)
    return old

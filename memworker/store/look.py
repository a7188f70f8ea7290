"""One look at one version of a table: each file, each row, each index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memworker.errors import StoreError, StoreUnwritable
from memworker.store import checksums, journal, salvage, whole
from memworker.store.checksums import Checksums, FileSum, RowSums
from memworker.store.damage import Damage, DamageKind, Mark, gathered, runs_of
from memworker.store.durable import index_files
from memworker.store.indexcheck import IndexCheck
from memworker.store.lance import brief, connect, open_table
from memworker.store.lock import state_dir
from memworker.store.manifest import (
    Fragment,
    Manifest,
    TornManifest,
    manifest_path,
    read_manifest,
)
from memworker.store.salvage import ADDRESS, Addresses, FragmentPart, InOneGo, Unlisted
from memworker.store.schema import read_field_metadata, table_schema
from memworker.store.soundness import UNREADABLE, Soundness

if TYPE_CHECKING:
    from lancedb.table import LanceTable

Observer = Callable[[int, int], None]
"""Told how many rows were looked at, and of how many."""

_AT_ONCE = 8192
_CHANGED = "it has changed since the last verification"


class Look:
    """What is found goes into `damages` and `notes`; the counts are of the whole version."""

    def __init__(self, db: Path, name: str, version: int, observer: Observer) -> None:
        self.damages: list[Damage] = []
        self.notes: list[str] = []
        self.rows = self.read = self.files = self.bytes = 0
        self._db, self._name, self._version = db, name, version
        self._observer = observer
        self._folder = db / f"{name}.lance"
        self._state = db / ".memworker" / name
        self._sums: dict[str, FileSum] = {}
        self._row_sums: dict[str, RowSums] = {}
        # Where the rows of a fragment lie in a scan, as long as that can be told.
        self._before: int | None = 0

    def run(self) -> None:
        """Look at everything, then note the checksums of what is sound."""
        manifest = self._manifest()
        handle = self._opened() if manifest is not None else None
        if manifest is None or handle is None:
            return
        self._handle, self._of = handle, manifest
        space, identity = read_field_metadata(handle.schema, self._name)
        self._known = Checksums(self._state, identity)
        self._journal(identity)
        now = self._sum(manifest.path)
        if now is not None and self._known.rotten(manifest.path, now):
            self._damaged(DamageKind.VERSION, _CHANGED, manifest.path)
            return
        self._sound = Soundness(space.dim, self.rows, partial(values_of, handle))
        self._indices = IndexCheck(handle, self._folder, manifest, space.distance, self.rows)
        for fragment in manifest.fragments:
            self._fragment(fragment)
        self._counted()
        self._told(self._sound.marks())
        self.notes += self._sound.notes
        self._look_at_indices()
        self._remember(manifest)

    def _damaged(self, kind: DamageKind, why: str, path: str | None = None, **where: Any) -> None:
        self.damages.append(Damage(kind, why, path, **where))

    # ── the version ──

    def _manifest(self) -> Manifest | None:
        try:
            return read_manifest(self._folder, self._version)
        except (TornManifest, OSError) as error:
            self._unopened(f"the newest version cannot be read: {brief(error)}")
            return None

    def _opened(self) -> LanceTable | None:
        try:
            handle = open_table(connect(self._db, writable=False), self._db, self._name)
            handle.checkout(self._version)
            space, _ = read_field_metadata(handle.schema, self._name)
            self.rows = int(handle.count_rows())
            missing = set(table_schema(space.dim).names) - set(handle.schema.names)
            if missing:
                raise StoreError(f"it has no column {', '.join(sorted(missing))}")
            return handle
        except Exception as error:
            self._unopened(f"the table cannot be opened: {brief(error)}")
            return None

    def _unopened(self, why: str) -> None:
        path = manifest_path(self._folder, self._version).relative_to(self._folder)
        self._damaged(DamageKind.VERSION, why, str(path))

    def _journal(self, identity: str) -> None:
        known = journal.last_version(journal.read(self._state), identity)
        if known is not None and known > self._version:
            self._damaged(
                DamageKind.JOURNAL,
                f"version {known} was committed, and the newest is {self._version}: rows that were"
                " reported as written are gone. Run the ingests since then again (`memworker jobs`"
                " lists them)",
            )

    def _counted(self) -> None:
        if self._before is not None and self._before != self.rows:
            why = f"{self._before:,} rows are there, but the version counts {self.rows:,}"
            self._damaged(DamageKind.VERSION, why, self._of.path)

    # ── rows ──

    def _fragment(self, fragment: Fragment) -> None:
        live = self._live(fragment)
        if live is None:
            return
        before = self._before
        if before is not None:
            self._before = before + len(live)
        for file in fragment.files:
            if why := self._flaw(file.path, file.size):
                self._damaged(DamageKind.FILE, why, file.path, rows=tuple(runs_of(live.tolist())))
                return
        sums = _Sums(fragment, self._known, self._sums)
        whole_so_far = self._parts(fragment, live, before, sums)
        self._sound.also(sums.marks)
        self._row_sums[fragment.files[0].path] = sums.kept
        if sums.file_changed and not sums.marks and whole_so_far:
            why = f"{_CHANGED}, though no row shows it"
            self._readable(fragment, live, why)

    def _parts(self, fragment: Fragment, live: Addresses, before: int | None, sums: _Sums) -> bool:
        """Look at all rows; tell whether all can be read, and in one go."""
        columns = self._handle.schema.names
        size = salvage.part_rows(fragment, self._folder)
        scan = None
        if before is not None:
            scan = InOneGo(self._handle, before, len(live), columns, size)
        for part in salvage.parts(self._handle, live, columns, size):
            self._sound.look(part)
            self._indices.sample(part)
            sums.look(part)
            if part.unreadable:
                scan = None
            elif scan is not None and (differs := scan.differs(part)):
                self._readable(fragment, live, differs)
                scan = None
            self.read += len(part.addresses)
            self._observer(self.read, self.rows)
        return scan is not None

    def _live(self, fragment: Fragment) -> Addresses | None:
        """Return the addresses of a fragment's rows, or None when they cannot be told."""
        path = fragment.deletions
        why = self._flaw(path) if path is not None else None
        if path is not None and why is None and self._has_changed(path):
            why = _CHANGED
        try:
            live = salvage.live_addresses(self._handle, fragment)
            counted = fragment.physical_rows - fragment.deleted_rows
            if path is not None and len(live) != counted and fragment.deleted_rows:
                why = why or f"it leaves {len(live):,} rows, and the version counts {counted:,}"
        except Unlisted as error:
            why = why or str(error)
        if why is None:
            return live
        first = fragment.id << 32
        rows = (range(first, first + fragment.physical_rows),)
        why = f"which of its rows are deleted cannot be told: {why}"
        self._damaged(DamageKind.FILE, why, path or fragment.files[0].path, rows=rows)
        self._before = None
        return None

    def _readable(self, fragment: Fragment, live: Addresses, why: str) -> None:
        path = ", ".join(file.path for file in fragment.files)
        rows = tuple(runs_of(live.tolist()))
        self._damaged(DamageKind.FILE, why, path, rows=rows, readable=True)

    def _told(self, marks: list[Mark]) -> None:
        told = {(mark.address, mark.column) for mark in marks if mark.why != _CHANGED}
        marks = [
            mark
            for mark in marks
            if mark.why != _CHANGED
            or not any((mark.address, name) in told for name in mark.column.split(", "))
        ]
        paths = {f.id: ", ".join(file.path for file in f.files) for f in self._of.fragments}
        addresses = np.array(sorted({mark.address for mark in marks}), np.uint64)
        ids = {a: row["id"] for a, row in values_of(self._handle, addresses, ["id"]).items()}
        for damage in gathered(marks, paths, ids):
            why = damage.why
            if why == UNREADABLE:
                why = f"{why}: {self._sound.said[damage.rows[0][0] >> 32, str(damage.column)]}"
            self.damages.append(replace(damage, why=why))

    # ── files ──

    def _flaw(self, path: str, size: int = 0) -> str | None:
        self.files += 1
        if flaw := whole.flaw_of(self._folder / path, size):
            return f"it {flaw}"
        return None if self._sum(path) else "it cannot be read"

    def _sum(self, path: str) -> FileSum | None:
        try:
            now = self._sums[path] = checksums.sum_of_file(self._folder / path)
        except OSError:
            return None
        self.bytes += now.size
        return now

    def _has_changed(self, path: str) -> bool:
        known = self._known.files.get(path)
        return known is not None and not known.same_bytes(self._sums[path])

    def _look_at_indices(self) -> None:
        changed = set()
        for each in self._of.indices:
            for name in index_files(self._folder / each.folder):
                self.files += 1
                path = f"{each.folder}/{name}"
                if self._sum(path) and self._has_changed(path):
                    changed.add(each.name)
        # What rows could not be read would be taken for an index's fault.
        searching = self.read == self.rows and not self.damages
        self.damages += self._indices.damages(changed, searching=searching)

    def _remember(self, manifest: Manifest) -> None:
        # A newer version may still come back from what is noted.
        if any(damage.kind in (DamageKind.VERSION, DamageKind.JOURNAL) for damage in self.damages):
            return
        # What has changed, or cannot be read, is remembered as it was.
        files = {path: self._known.files.get(path, now) for path, now in self._sums.items()}
        files |= {p: self._known.files[p] for p in manifest.files if p in self._known.files}
        files[manifest.path] = self._sums[manifest.path]
        for path in manifest.files:
            sums = None if path in self._row_sums else self._known.rows(path)
            if sums is not None:
                self._row_sums[path] = sums.copy()
        for damage in self.damages:
            for run in damage.rows if not damage.readable else ():
                self._forget(run)
        try:
            state_dir(self._db, self._name)
            raw = (self._folder / manifest.path).read_bytes()
            self._known.replace(self._version, raw, files, self._row_sums.items())
        except (OSError, StoreUnwritable) as error:
            self.notes.append(f"checksums were not noted in {self._state}: {error}")

    def _forget(self, run: range) -> None:
        for fragment in self._of.fragments:
            if fragment.id == run[0] >> 32 and fragment.files[0].path in self._row_sums:
                sums = self._row_sums[fragment.files[0].path]
                known = self._known.rows(fragment.files[0].path)
                at = slice(run[0] & 0xFFFFFFFF, (run[-1] & 0xFFFFFFFF) + 1)
                sums[at] = 0 if known is None else known[at]


class _Sums:
    """The checksums of one fragment's rows, held against those of the last verification."""

    def __init__(self, fragment: Fragment, known: Checksums, files: dict[str, FileSum]) -> None:
        before = [(known.files.get(file.path), files[file.path]) for file in fragment.files]
        self.file_changed = any(old is not None and not old.same_bytes(new) for old, new in before)
        self._first = np.uint64(fragment.id << 32)
        self._known = known.rows(fragment.files[0].path)
        if self._known is not None and len(self._known) != fragment.physical_rows:
            self._known = None
        # What has not changed need not be computed again.
        self._same = self._known is not None and all(
            old is not None and old.same_bytes(new) for old, new in before
        )
        self.kept: RowSums = np.zeros(fragment.physical_rows, np.uint64)
        if self._known is not None:
            self.kept[:] = self._known
        self.marks: list[Mark] = []

    def look(self, part: FragmentPart) -> None:
        if self._same:
            return
        addresses, sums = checksums.sums_of_rows(part)
        at = (addresses - self._first).astype(np.int64)
        if self._known is not None:
            for lane, differs in checksums.changed(self._known[at], sums):
                found = addresses[differs].tolist()
                self.marks += [Mark(address, lane, _CHANGED) for address in found]
        self.kept[at] = np.where(self.kept[at] == 0, sums, self.kept[at])


def values_of(
    handle: LanceTable, addresses: Addresses, columns: list[str]
) -> dict[int, dict[str, Any]]:
    """Return what can be read of some rows, by their addresses, in the order of those."""
    found: dict[int, dict[str, Any]] = {}
    for part in salvage.parts(handle, addresses, columns, _AT_ONCE):
        rows = salvage.view(part, columns)
        for row in rows.to_pylist():
            found[row.pop(ADDRESS)] = row
    return found

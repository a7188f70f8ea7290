"""Bringing a damaged table back: what is damaged leaves it, what is sound stays.

::

    verify ─► newest version torn      ─► its copy, or the version before
           ─► which rows are deleted?  ─► told again, from what is certain
           ─► index                    ─► dropped, built anew
           ─► rows                     ─► kept aside as far as readable, deleted in one commit
           ─► file, rows sound         ─► its rows written into another
           ─► verify again

A deleted row's id is not known any more, so the next ingest of the same input writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import StoreError, TableNotFound
from memworker.failpoints import reach
from memworker.paths import DatabaseGiven
from memworker.store import aside, deletions, journal, lock, mend, places, read, rollback, salvage
from memworker.store.commitlock import CommitLock
from memworker.store.damage import Damage, DamageKind, runs_of
from memworker.store.indices import build_index
from memworker.store.journal import Journal, Repaired
from memworker.store.lance import connect, database_path, open_table, table_name, table_names
from memworker.store.look import Observer
from memworker.store.manifest import (
    DELETIONS,
    VERSIONS,
    Fragment,
    hinted,
    read_manifest,
    versions,
)
from memworker.store.opened import OpenTable
from memworker.store.schema import read_field_metadata
from memworker.store.verify import Verified, torn, verify_table
from memworker.store.writes import Writes

if TYPE_CHECKING:
    from lancedb.table import LanceTable

# Setting one thing right lets the next be seen: version, deletions, rows, files.
_ROUNDS = 5
_OLDER = (
    "object storage takes a file whole or not at all; LanceDB's Table.restore goes back to an older"
    " version"
)
_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did.

    `damaged` versions were moved away, to `moved_to`; of version `copied` the copy was put
    back. `journalled` is the newest version that the journal vouched for, if any; `lost` says
    that it is gone. `removed` rows were damaged and are not in the table any more; `ids` are
    those of them that could be read. What could be read of these rows is in the files
    `sound` (the text is what it was) and `unsure`.
    """

    table: str
    before: Verified
    after: Verified
    damaged: tuple[int, ...] = ()
    copied: int | None = None
    moved_to: str | None = None
    journalled: int | None = None
    lost: bool = False
    removed: int = 0
    ids: tuple[str, ...] = ()
    sound: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    deletions: tuple[str, ...] = ()
    rewritten: int = 0
    indices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """The newest version now."""
        return self.after.version

    @property
    def rows(self) -> int:
        """How many rows the table has now."""
        return self.after.rows

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong any more."""
        return self.after.healthy

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        told = {name: getattr(self, name) for name in _TOLD}
        return told | {"before": self.before.to_dict(), "after": self.after.to_dict()}


_TOLD = (
    *("table", "healthy", "version", "rows", "damaged", "copied", "moved_to", "journalled"),
    *("lost", "removed", "ids", "sound", "unsure", "deletions", "rewritten", "indices", "notes"),
)


def repair_table(db: DatabaseGiven, name: str, *, observer: Observer | None = None) -> Repair:
    """Put right what a verification finds damaged; a healthy table is left alone.

    Raises TableNotFound, TableLocked while an ingest works on the table, and
    StoreError when no version can be read.
    """
    path = places.only_in_a_directory(database_path(db), "repairing", _OLDER)
    name = table_name(name)
    if not (path / f"{name}.lance" / VERSIONS).is_dir():
        raise TableNotFound(
            f"there is no table {name!r} in {path}; tables there: {', '.join(table_names(path))}"
        )
    state = lock.state_dir(path, name)
    with lock.hold_job(state), lock.hold(state, "tend"), lock.hold(state, "commit") as held:
        return _Mender(path, name, held, observer).run()


class _Mender:
    """One repair, in rounds; the caller holds the locks."""

    def __init__(self, db: Path, name: str, held: lock.HeldLock, observer: Observer | None) -> None:
        self._db, self._name, self._held, self._observer = db, name, held, observer
        self._state = lock.state_dir(db, name)
        self._done: dict[str, Any] = {}
        self._indices: dict[str, str] = {}

    def run(self) -> Repair:
        """Verify and mend until nothing is wrong, or nothing more can be done."""
        before = after = self._verified()
        for _ in range(_ROUNDS):
            if after.healthy or not self._mend(after):
                break
            after = self._verified()
        if self._indices and after.healthy and self._build_indices():
            after = self._verified()
        if self._done.get("ids") and after.healthy:
            self._done["ids"] = self._missing(self._done["ids"])
        return Repair(self._name, before, after, **self._done)

    def _verified(self) -> Verified:
        if not versions(self._table):
            raise StoreError(
                f"table {self._name!r} of {self._db} has no version at all; ingest into it again"
            )
        return verify_table(self._db, self._name, observer=self._observer)

    def _mend(self, found: Verified) -> bool:
        """Mend what can be mended in this round; tell whether anything was changed."""
        kinds: dict[DamageKind, list[Damage]] = {}
        for damage in found.damages:
            kinds.setdefault(damage.kind, []).append(damage)
        if (DamageKind.VERSION in kinds or DamageKind.JOURNAL in kinds) and self._roll_back(found):
            return True
        changed = DamageKind.JOURNAL in kinds and self._note(lost=True)
        if untold := [damage for damage in found.damages if _is_of_deletions(damage)]:
            self._tell_deletions(untold, found.version)
            return True
        if DamageKind.INDEX in kinds:
            changed = self._drop_indices(kinds[DamageKind.INDEX], found.version)
        if rows := [damage for damage in found.damages if damage.rows and not damage.readable]:
            return self._remove(rows, found.version)
        torn = {damage.rows[0][0] >> 32 for damage in found.damages if damage.rows}
        for fragment in self._fragments(found.version, torn):
            size = salvage.part_rows(fragment, self._table)
            self._count("rewritten", mend.write_again(self._writes(), fragment, size))
            changed = True
        return changed

    # ── versions ──

    def _roll_back(self, found: Verified) -> bool:
        journalled = journal.last_version(journal.read(self._state)) or 0
        suspects = [found.version, hinted(self._table), journalled]
        back = rollback.roll_back(self._db, self._name, self._state, suspects)
        older = torn(self._table, back.version)
        gone = (*back.damaged, *(self._put_aside(path) for path in older))
        if gone:
            self._done["moved_to"] = str(self._state / aside.FOLDER)
        self._done["copied"] = back.copied
        self._done["damaged"] = (*self._done.get("damaged", ()), *gone)
        if back.damaged or back.copied is not None:
            return self._note()
        # A hint at a version that is gone has been forgotten.
        return bool(older) or suspects[1] > found.version

    def _put_aside(self, manifest: Path) -> int:
        version = next(v for v, path in versions(self._table).items() if path == manifest)
        rollback.put_aside(manifest, self._state / aside.FOLDER)
        return version

    def _note(self, *, lost: bool = False) -> bool:
        """Write into the journal that the newest version there is counts."""
        handle = self._opened()
        _, identity = read_field_metadata(handle.schema, self._name)
        known = journal.last_version(journal.read(self._state), identity)
        self._done["journalled"] = known
        self._done["lost"] = lost or (known is not None and known > int(handle.version))
        damaged = tuple(self._done.get("damaged", ()))
        with Journal(self._state, identity) as kept:
            kept.append(Repaired(journal.now(), identity, damaged, int(handle.version)))
        return True

    # ── rows ──

    def _tell_deletions(self, untold: list[Damage], version: int) -> None:
        ids = {damage.rows[0][0] >> 32 for damage in untold}
        there = self._fragments(version, ids)
        unsure = deletions.rebuild(self._db, self._name, there, self._state)
        told = [str(each.deletions) for each in there if each not in unsure]
        self._done["deletions"] = (*self._done.get("deletions", ()), *told)
        handle = self._opened()
        gone = [
            Damage(
                DamageKind.ROWS,
                "it cannot be told whether it was deleted",
                rows=tuple(runs_of(salvage.live_addresses(handle, each).tolist())),
            )
            for each in unsure
        ]
        if gone:
            self._remove(gone, version)

    def _remove(self, damages: list[Damage], version: int) -> bool:
        writes = self._writes()
        kept = aside.keep(writes.handle, damages, self._state, version)
        reach("repair_kept_aside")
        addresses = {row for damage in damages for run in damage.rows for row in run}
        removed = mend.delete_rows(writes, list(runs_of(sorted(addresses))))
        self._count("removed", removed)
        self._done["ids"] = (*self._done.get("ids", ()), *kept.ids)
        for name, path in (("sound", kept.sound), ("unsure", kept.unsure)):
            if path is not None:
                self._done[name] = (*self._done.get(name, ()), str(path))
        return removed > 0

    # ── indices ──

    def _drop_indices(self, damages: list[Damage], version: int) -> bool:
        folders = {damage.path: damage.column for damage in damages}
        named: dict[str, str | None] = {}
        for each in read_manifest(self._table, version).indices:
            for path, column in folders.items():
                if each.folder in (path or "").split(", "):
                    named[each.name] = column
        mend.drop_indices(self._writes(), list(named))
        reach("repair_index_dropped")
        # Ours are called after their column, should LanceDB not be able to tell.
        self._indices |= {
            name: column or name.removesuffix("_idx") for name, column in named.items()
        }
        return bool(named)

    def _build_indices(self) -> bool:
        writes = self._writes()
        built, notes = [], []
        for name, column in self._indices.items():
            try:
                if build_index(writes, column):
                    built.append(column)
                else:
                    notes.append(f"index {name}, not of memworker's making, is gone")
            except StoreError as error:
                notes.append(f"{error}. `memworker table optimize` tries again")
        self._done["indices"], self._done["notes"] = tuple(built), tuple(notes)
        return bool(built)

    # ── what all need ──

    @property
    def _table(self) -> Path:
        return self._db / f"{self._name}.lance"

    def _opened(self) -> LanceTable:
        # Each time anew, for LanceDB remembers what it has read of a file.
        return open_table(connect(self._db, writable=True), self._db, self._name)

    def _writes(self) -> Writes:
        table = OpenTable.of(self._opened(), self._db)
        return Writes(table, CommitLock(table, self._held))

    def _fragments(self, version: int, ids: set[int]) -> list[Fragment]:
        return [each for each in read_manifest(self._table, version).fragments if each.id in ids]

    def _count(self, name: str, rows: int) -> None:
        self._done[name] = self._done.get(name, 0) + rows

    def _missing(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return those of the ids that no row of the table has now."""
        there: set[str] = set()
        handle = self._opened()
        for start in range(0, len(ids), _AT_ONCE):
            found = read.find(handle, "id", ids[start : start + _AT_ONCE], columns=["id"])
            there.update(found["id"].to_pylist())
        return tuple(one for one in dict.fromkeys(ids) if one not in there)


def _is_of_deletions(damage: Damage) -> bool:
    return damage.kind is DamageKind.FILE and (damage.path or "").startswith(f"{DELETIONS}/")

"""Every commit of a table: made, looked at, forced to the disk where promised, then believed.

::

    write() ──raises──► did it come through? ──no──► again (a conflict), or StoreError
       │                        │ yes
       ▼                        ▼
    the version's new files: there, whole? ──no──► take the version back ─► write() again
       │ yes
       ▼
    a durable table: forced to the disk, read back ──no──► take the version back ─► write() again
       │ yes
       ▼
    acknowledged

What LanceDB says of a commit proves neither its success (see whole.py) nor its failure: an
error may come after the commit. And a file whose fsync has failed once may never reach the
disk, however often that is tried again; so it is written anew, under another name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memworker.errors import MemworkerError, StoreError
from memworker.store import apart, bounded, whole
from memworker.store.apart import Work
from memworker.store.bounded import Stalled
from memworker.store.durable import Disk, NotForced, files_of, is_known
from memworker.store.handle import renew
from memworker.store.lance import connect, explain, forget_frames, is_commit_conflict, open_table
from memworker.store.lock import Held, hold, keep, state_dir
from memworker.store.manifest import (
    HINT,
    INDICES,
    VERSIONS,
    Fragment,
    Manifest,
    TornManifest,
    manifest_path,
    read_manifest,
    versions,
)
from memworker.store.schema import is_durable, vectors_of
from memworker.store.spill import FOLDER, spilling_beside
from memworker.vectors import bad_vectors

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import LanceDBConnection
    from lancedb.table import LanceTable

_ATTEMPTS = 5
# What was written and not found whole is written again so often.
_WRITES = 3
_NO_MANIFEST = "of the manifests that were written none is whole and forced to the disk"


@dataclass(frozen=True, slots=True)
class Landed:
    """A commit that came through: the version that it made, and the rows that it concerned."""

    version: int
    rows: int


Write = Callable[[], Landed]
Came = Callable[[int], Landed | None]
"""Given the version before: what a write that raised has committed nevertheless, if it has."""
Run = Callable[[Write], Landed]
Locked = Callable[[], AbstractContextManager[None]]


class CameFirst(StoreError):
    """Other writers' commits came first, again and again."""


class StillWriting(StoreError):
    """A write does not come back; what becomes of it is not known."""


class _NotWhole(Exception):
    """What a commit wrote is not all there."""


class Writes:
    """Makes the commits of one table. The caller holds the commit lock (but see `build`)."""

    def __init__(self, handle: LanceTable, db: Path, locked: Locked | None = None) -> None:
        self.handle = handle
        self._db, self._name = db, str(handle.name)
        self.durable = is_durable(handle.schema)
        self._locked = locked or partial(hold, state_dir(db, self._name), "commit")
        self._folder = db / f"{self._name}.lance"
        # Named, not made: a table that is only read may lie where nothing can be written.
        self.state = db / ".memworker" / self._name
        self._disk = Disk(self._folder)
        self._last: tuple[int, frozenset[str]] = (-1, frozenset())
        self._mutex = threading.Lock()
        self.held: Held | None = None
        """The commit lock, as whoever holds it has it; made sure of before each commit."""

    def commit(
        self,
        doing: str,
        write: Write,
        came: Came,
        *,
        seen: int,
        run: Run | None = None,
        spills: bool = False,
    ) -> Landed:
        """Commit by `write`; return once the commit is known to be whole.

        `seen` is the newest version at this moment. `run` takes the place of
        `bounded.run` for a write that looks after interrupts itself. `spills`: LanceDB
        makes temporary files for it, as it does for a merge. Raises StoreError, and says
        then whether something was committed.
        """
        if self.durable and self._last[0] != seen:
            self._force_before(doing, seen)
        for left in reversed(range(_WRITES)):
            with self._spilling() if spills else nullcontext():
                landed = self._written(doing, partial(run or self._bounded, write), came, seen)
            if landed.version <= seen:
                return landed
            try:
                self._look_at(landed.version)
                return landed
            except OSError as error:
                raise StoreError(
                    f"{doing}: version {landed.version} was committed, but whether it is whole"
                    f" cannot be told: {error.filename}: {error.strerror}. Look at the disk, then"
                    " run `memworker table verify`; it is safe to run the same again"
                ) from error
            except _NotWhole as flaw:
                self._take_back(doing, landed.version, flaw)
                seen = self._newest(doing)
                if not left:
                    raise StoreError(
                        f"{doing} failed: {flaw}. That was taken back, {_WRITES} times, so nothing"
                        " of this batch is committed. Look at the disk, and run the same again"
                    ) from flaw
        raise AssertionError("the last attempt returns or raises")

    def build(
        self, doing: str, work: Work | Callable[[], object], *, holding: bool = False
    ) -> None:
        """Commit what changes no row (indices, compaction). Only to undo it is the lock taken.

        `holding`: the calling thread has the lock. `Work` on a large table is done by a
        process of its own. Raises StoreError; no row is lost by it.
        """
        for left in reversed(range(_WRITES)):
            seen = self._newest(doing)
            try:
                self._built(doing, work)
            except (CameFirst, StillWriting):
                raise
            except StoreError:
                self._settled(doing, seen, holding)  # it may have been committed before it failed
                raise
            flaw = self._settled(doing, seen, holding)
            if flaw is None:
                return
            if not left:
                raise StoreError(
                    f"{doing} failed: {flaw}. That was taken back; the rows are as they were"
                )

    def vouch(self) -> Manifest:
        """Return what the newest version is made of, known to be whole, and forced where promised.

        Before anything is deleted that the newest version stands for. Raises StoreError.
        """
        doing = f"looking at table {self._name!r}"
        with self._mutex:
            manifest = read_manifest(self._folder, self._newest(doing))
            for flaw in whole.flaws(self._folder, manifest):
                raise StoreError(f"the newest version of table {self._name!r} is damaged: {flaw}")
            if self.durable:
                try:
                    self._disk.force(manifest)
                except NotForced as error:
                    raise StoreError(
                        f"{error.filename} could not be forced to the disk: {error.strerror}"
                    ) from error
            return manifest

    def gone(self, where: str, seen: int) -> Landed | None:
        """Tell of a deletion that raised whether it was committed."""
        if self.handle.count_rows(where):
            return None
        return Landed(int(self.handle.version), self.count_at(seen, where))

    def count_at(self, version: int, where: str) -> int:
        """Return how many rows met a filter in an older version, or 0 when that is gone."""
        older = self._fresh()
        try:
            older.checkout(version)
            return int(older.count_rows(where))
        except (RuntimeError, ValueError, OSError):
            return 0

    def force(self) -> int:
        """Force the newest version to the disk; return how many files. Raises StoreError."""
        doing = f"forcing table {self._name!r} to the disk"
        with self._mutex:
            try:
                return self._disk.force(read_manifest(self._folder, self._newest(doing)))
            except OSError as error:
                raise StoreError(
                    f"{doing} failed: {error.filename}: {error.strerror}. What was committed is in"
                    " the table, but a power loss may take it; `memworker table optimize` writes"
                    " the files anew"
                ) from error

    def _spilling(self) -> AbstractContextManager[None]:
        return spilling_beside(state_dir(self._db, self._name))

    def _built(self, doing: str, work: Work | Callable[[], object]) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._do(work)
                return
            except Stalled as stalled:
                raise self._unknown(doing, stalled) from stalled
            except Exception as error:
                forget_frames(error)
                if not is_commit_conflict(error):
                    raise StoreError(explain(doing, error)) from error
                if not left:
                    raise CameFirst(explain(doing, error)) from error

    def _do(self, work: Work | Callable[[], object]) -> None:
        if isinstance(work, Work) and apart.is_large(work, self.handle):
            apart.run(work, self._db, self._name, state_dir(self._db, self._name))
            return
        with self._spilling():
            # Others may be committing meanwhile: their files say nothing.
            write = partial(work.do, self.handle) if isinstance(work, Work) else work
            self._bounded(write, self._folder / INDICES)

    def _bounded(self, write: Callable[[], Any], *folders: Path) -> Any:
        """Run a write; when it is left while it may be under way, nobody else writes any more."""
        state = state_dir(self._db, self._name)
        moved = bounded.files_below(*(folders or (self._folder,)), state / FOLDER)
        return bounded.run(write, moved, partial(keep, state))

    def _unknown(self, doing: str, stalled: Stalled) -> StoreError:
        return StillWriting(
            f"{doing}: LanceDB does not come back, {stalled}. Whether it was committed is not"
            " known, and it may still be, so that no other process can write into the table until"
            " this one has ended. End it, and run the same again: rows whose ids are there are"
            " not written twice"
        )

    def _settled(self, doing: str, seen: int, holding: bool) -> str | None:
        """Look at what a build has committed; what is not whole is taken back, and told."""
        try:
            self._look_at(self._newest(doing), before=seen)
        except OSError as error:
            raise StoreError(
                f"{doing}: whether what was committed is whole cannot be told:"
                f" {error.filename}: {error.strerror}. Look at the disk, then run"
                " `memworker table verify`"
            ) from error
        except _NotWhole as flaw:
            with nullcontext() if holding else self._locked():
                self._undo(doing, seen, flaw)
            return str(flaw)
        # The indices there were before are nobody's now.
        renew(self.handle)
        return None

    def _written(self, doing: str, write: Write, came: Came, seen: int) -> Landed:
        for left in reversed(range(_ATTEMPTS)):
            if self.held is not None:
                self.held.confirm()
            try:
                return write()
            except MemworkerError:
                raise
            except Stalled as stalled:
                raise self._unknown(doing, stalled) from stalled
            except Exception as error:
                forget_frames(error)
                landed = self._came(doing, came, seen, error)
                if landed is not None:
                    return landed
                if not left or not is_commit_conflict(error):
                    raise StoreError(
                        f"{explain(doing, error)}; nothing of this batch was committed"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _came(self, doing: str, came: Came, seen: int, why: Exception) -> Landed | None:
        try:
            newest = self._settled_version()
            # It may write again.
            return self._bounded(partial(came, seen)) if newest != seen else None
        except Stalled as stalled:
            raise self._unknown(doing, stalled) from stalled
        except Exception as error:
            raise StoreError(
                f"{explain(doing, why)}; and whether it was committed cannot be told, for the"
                f" table cannot be read: {explain('reading', error)}. It is safe to run the same"
                " again"
            ) from why

    def _settled_version(self) -> int:
        """Return the newest version, having put a torn manifest aside that nobody can read."""
        try:
            return int(self.handle.version)
        except Exception:
            newest = max(versions(self._folder), default=0)
            try:
                read_manifest(self._folder, newest)
            except TornManifest:
                self._put_aside(newest)
            return int(self.handle.version)

    # ── is it whole? ──

    def _look_at(self, version: int, before: int | None = None) -> None:
        """Raise _NotWhole unless what `version` added is there, and forced where promised."""
        with self._mutex:
            try:
                manifest = self._manifest(version)
            except TornManifest as error:
                raise _NotWhole(str(error)) from error
            known = self._parts(version - 1 if before is None else before)
            for flaw in whole.flaws(self._folder, manifest, known):
                raise _NotWhole(f"what was written is not whole: {flaw}")
            fresh = [each for each in manifest.fragments if not known.issuperset(each.parts)]
            if any((each.deletions or "").endswith(".bin") for each in fresh):
                self._read_deletions()
            if self.durable:
                self._force(manifest, known)
                self._read_back(fresh)
            self._last = (version, whole.parts_of(manifest))

    def _manifest(self, version: int) -> Manifest:
        try:
            return read_manifest(self._folder, version)
        except FileNotFoundError:
            # Others have committed since, and one of them has removed older versions.
            return read_manifest(self._folder, max(versions(self._folder)))

    def _parts(self, version: int) -> frozenset[str]:
        if self._last[0] == version:
            return self._last[1]
        try:
            return whole.parts_of(read_manifest(self._folder, version))
        except (FileNotFoundError, TornManifest):
            return frozenset()

    def _force_before(self, doing: str, seen: int) -> None:
        """Force what others have committed, so that what fails then is not a commit of ours."""
        try:
            manifest = self._manifest(seen)
            with self._mutex:
                self._disk.force(manifest, frozenset(files_of(self._folder, manifest)))
        except TornManifest:
            return  # the write will tell
        except OSError as error:
            raise StoreError(
                f"{doing} failed: {error.filename} holds earlier rows, which a power loss may take,"
                f" for it could not be forced to the disk ({error.strerror}). Nothing of this"
                " batch was committed. `memworker table optimize` writes the earlier rows anew"
            ) from error

    def _force(self, manifest: Manifest, known: frozenset[str]) -> None:
        try:
            self._disk.force(manifest, known)
        except NotForced as error:
            what = f"{error.filename} could not be forced to the disk ({error.strerror})"
            if not is_known(os.path.relpath(error.filename, self._folder), known):
                raise _NotWhole(what) from error
            raise StoreError(
                f"{what}: it holds earlier rows, which a power loss may take. What was just"
                " written is in the table. `memworker table optimize` writes the earlier rows anew"
            ) from error

    def _read_back(self, fragments: list[Fragment]) -> None:
        """Read new rows, every column."""
        # Of the newest version: a commit may have given the table vectors of another size.
        dim = self.handle.schema.field("vector").type.list_size if fragments else 0
        for fragment in fragments:
            name = fragment.files[0].path
            rows = f"_rowid >= {fragment.id << 32} AND _rowid < {(fragment.id + 1) << 32}"
            try:
                batches = list(self.handle.search().where(rows).to_batches())
                bad = [len(bad_vectors(vectors_of(b["vector"], dim))) for b in batches]
            except Exception as error:
                why = explain("reading", error)
                raise _NotWhole(f"{name} cannot be read back: {why}") from error
            if any(bad):
                raise _NotWhole(f"{sum(bad)} vectors of {name} read back as zero or not finite")

    def _read_deletions(self) -> None:
        """Read which rows are gone, by a handle that remembers nothing of having written it."""
        try:
            self._fresh().count_rows("id IS NOT NULL")
        except Exception as error:
            why = explain("reading", error)
            raise _NotWhole(f"which rows are deleted cannot be read: {why}") from error

    # ── taking back ──

    def _take_back(self, doing: str, version: int, flaw: _NotWhole) -> None:
        """Let the rows be those of the version before again. Raises StoreError."""
        try:
            newest = self._settled_version()
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

    def _undo(self, doing: str, seen: int, flaw: _NotWhole) -> None:
        """Take back what a build committed, whatever others have committed since."""
        try:
            newest = self._settled_version()
            known, parts = self._parts(seen), read_manifest(self._folder, newest)
            torn = next((v for v in range(seen + 1, newest + 1) if self._torn(v, known)), None)
            if torn is None:
                return
            before = read_manifest(self._folder, torn - 1)
            ours = read_manifest(self._folder, torn)
            if newest == torn or parts.fragments == ours.fragments:
                self.restore(torn - 1)
            elif before.fragments == ours.fragments:
                # An index. Those who search must not fall over it, and the next build makes it.
                for name in {each.name for each in ours.indices if each not in before.indices}:
                    self._bounded(partial(self.handle.drop_index, name))
            else:
                raise StoreError("rows have been committed on top of it")
        except Exception as error:
            raise StoreError(
                f"{doing} failed: {flaw}; and it could not be taken back: {explain('that', error)}."
                " Run `memworker table repair` before anything else is done to the table"
            ) from error

    def _torn(self, version: int, known: frozenset[str]) -> bool:
        manifest = read_manifest(self._folder, version)
        flaws = whole.flaws(self._folder, manifest, known)
        return self._disk.lost(manifest, known) or any(True for _ in flaws)

    def _fresh(self) -> LanceTable:
        return open_table(connect(self._db, writable=False), self._db, self._name)

    def restore(self, version: int) -> None:
        """Make the rows of an older version the newest again, by a commit. Raises StoreError."""
        # A handle of its own, for others read through ours meanwhile.
        fresh = self._fresh()
        for _ in range(_WRITES):
            fresh.checkout(version)
            self._bounded(fresh.restore)
            if self._is_safe(int(fresh.version)):
                return
        raise StoreError(_NO_MANIFEST)

    def _drop(self, fragments: list[Fragment]) -> None:
        """Delete whole fragments, which needs no reading of them."""
        ranges = (f"(_rowid >= {f.id << 32} AND _rowid < {(f.id + 1) << 32})" for f in fragments)
        where = " OR ".join(ranges)
        for _ in range(_WRITES):
            if self._is_safe(int(self._bounded(partial(self.handle.delete, where)).version)):
                return
        raise StoreError(_NO_MANIFEST)

    def _is_safe(self, version: int) -> bool:
        """Tell whether a version's manifest is whole, and forced where promised."""
        try:
            manifest = read_manifest(self._folder, version)
        except TornManifest:
            self._put_aside(version)
            return False
        if self.durable:
            try:
                # No row is written by what takes back.
                self._disk.force(manifest, whole.parts_of(manifest))
            except NotForced:
                return False
        return True

    def _put_aside(self, version: int) -> None:
        """Move a manifest that nobody can read out of the way; the version before counts again."""
        path = manifest_path(self._folder, version)
        aside = state_dir(self._db, self._name) / "damaged"
        aside.mkdir(mode=0o700, exist_ok=True)
        os.replace(path, aside / path.name)
        self._disk.forget(path)
        # It may name the version that has just gone; Lance makes a new one.
        (self._folder / VERSIONS / HINT).unlink(missing_ok=True)

    def _newest(self, doing: str) -> int:
        try:
            return int(self.handle.version)
        except Exception as error:
            raise StoreError(explain(doing, error)) from error


def created(connection: LanceDBConnection, db: Path, name: str, schema: pa.Schema) -> LanceTable:
    """Make an empty table; return it once its first version is known to be whole."""
    folder = db / f"{name}.lance"
    for _ in range(_WRITES):
        state = state_dir(db, name)
        create = partial(connection.create_table, name, schema=schema)
        try:
            handle = bounded.run(create, bounded.files_below(folder), partial(keep, state))
        except Stalled as stalled:
            raise StillWriting(
                f"making table {name!r}: LanceDB does not come back, {stalled}. End this process,"
                " look at the disk and at the limits of memory and threads, and run the same again"
            ) from stalled
        try:
            read_manifest(folder, int(handle.version))
            return handle
        except TornManifest:
            # Nobody can have written into a table that cannot be opened.
            manifest_path(folder, 1).unlink()
    raise StoreError(f"the first version of table {name!r} is not written whole; look at the disk")

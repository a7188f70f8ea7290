"""`sync_folder()`: a folder's documents into a table, and out of it again when they are gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from memworker import values
from memworker.errors import InputError, InputNotFound, TableNotFound, UsageError
from memworker.ingestion.ahead import ahead, timed_reads
from memworker.ingestion.committer import Committer
from memworker.ingestion.documents.extraction import Extraction
from memworker.ingestion.history import Command, history
from memworker.ingestion.job import Target, build_index
from memworker.ingestion.loop import JobLoop, RunningJob
from memworker.ingestion.readers import Fields
from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.records import ReadProgress, Reject
from memworker.ingestion.rejects import Refusals, RejectFile
from memworker.ingestion.report import Counts, report
from memworker.ingestion.source import JobOptions
from memworker.ingestion.stop import Stop
from memworker.ingestion.sync.catalogue import Catalogue
from memworker.ingestion.sync.looking import Chosen, FoundFile, files_of, is_there
from memworker.ingestion.sync.outcome import FileCounts, SyncReport, outcome
from memworker.ingestion.sync.planning import Naming, Planner, Reading
from memworker.ingestion.sync.watching import FolderWatch, Tell
from memworker.ingestion.sync.writing import FolderWriter, vectors_alike
from memworker.ingestion.windows import Sieve, Window
from memworker.paths import PathGiven, shown_name, used_path
from memworker.pool import (
    DEFAULT_MAX_TEXT_BYTES,
    DEFAULT_MODEL,
    EmbeddingPool,
    PoolOptions,
    PoolUse,
    PrecisionGiven,
    borrowed_or_own,
    is_auto,
)
from memworker.store import (
    OnConflict,
    Output,
    Table,
    VectorSpace,
    database_path,
    ensure_writable,
    hold_job,
    table_name,
)

_CHECKS = ("stamp", "content")
# So many documents do not vanish at once but with their disk.
_MANY = 100


@dataclass(frozen=True, slots=True)
class Removal:
    """What becomes of documents whose files are gone."""

    delete: bool = False
    excluded_too: bool = False
    allow_empty: bool = False
    most: int | None = None


@dataclass(frozen=True, slots=True)
class FolderJob:
    """A folder and what is asked for it; `root` is its path as it is used."""

    root: str
    naming: Naming
    chosen: Chosen
    reading: Reading
    removal: Removal
    target: Target
    listed: Output

    def reject_file(self) -> RejectFile:
        """Give the list of refused files; what it says of others stays."""
        root = shown_name(self.root)
        return RejectFile(
            self.listed.path, lambda path: path == root or path.startswith(f"{root}/")
        )

    def files(self, left_out: LeftOut) -> Iterator[FoundFile]:
        """Yield the folder's files. Raises InputNotFound, UsageError where it is no folder."""
        if not os.path.isdir(self.root):
            if os.path.lexists(self.root):
                raise UsageError(f"{shown_name(self.root)} is no folder; ingest reads single files")
            raise InputNotFound(
                f"there is no folder {shown_name(self.root)}. Nothing was removed from the table."
            )
        outputs = [self.listed.path] if self.listed.ours else []
        return files_of(self.root, self.chosen, left_out, outputs)


def sync_folder(
    folder: PathGiven,
    *,
    db: PathGiven,
    table: str,
    name: str | None = None,
    delete: bool = False,
    delete_excluded: bool = False,
    allow_empty: bool = False,
    max_delete: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    check: str = "stamp",
    dry_run: bool = False,
    watch: bool = False,
    text_field: str | None = None,
    pool: EmbeddingPool | None = None,
    model: Any = DEFAULT_MODEL,
    precision: PrecisionGiven = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
    max_tokens: int | None = None,
    dim: int | None = None,
    max_text_bytes: int | None = None,
    distance: str = "cosine",
    on_conflict: str = "reject",
    rejects: PathGiven | None = None,
    durable: bool = False,
    wait_s: float = 0.0,
    stop: Stop | None = None,
    observer: Callable[[RunningJob], None] | None = None,
    on_pass: Tell | None = None,
) -> SyncReport:
    """Bring a LanceDB table in step with the documents of a folder.

    Each file is one document, its id the path within the folder: new ones are added, those whose
    content changed updated, and with `delete` those whose files are gone removed. Rows that are
    not of this folder stay as they are; a document whose id one of them has is a conflict
    (`on_conflict` as in `ingest`; "update" takes the row over). With a `name` the table knows the
    folder by it, and not by its path, and ids begin with it.

    Running the same call again does what is left, after whatever end of the first. `check`
    "content" reads each file, "stamp" only those whose size, times or inode are others.
    `dry_run` writes nothing, and tells what would be done. With `watch` the folder is compared
    again whenever it has changed, until `stop` is set; `on_pass` is given each report, or the
    error of a pass that has to be tried again, and the report returned has the sums. Where
    nothing is left of the folder's documents, or more than `max_delete` would go, nothing is
    removed and InputError is raised, unless `allow_empty` is given. The other arguments are
    those of `ingest`.

    Raises UsageError, InputNotFound, ModelError, TableLocked, TableMismatch, StoreUnwritable
    before any row is written.
    """
    if pool is not None:
        most = pool.max_text_bytes
        max_text_bytes = most if max_text_bytes is None else min(max_text_bytes, most)
    cap = DEFAULT_MAX_TEXT_BYTES if max_text_bytes is None else max_text_bytes
    options = JobOptions(
        Fields(), rejects=rejects, stop=stop, observer=observer, max_text_bytes=cap
    )
    policy = OnConflict(values.checked_choice("on_conflict", on_conflict, OnConflict))
    target = Target(database_path(db), table_name(table), distance, policy, durable, wait_s, memory)
    by_stamp = values.checked_choice("check", check, _CHECKS) == "stamp"
    job = FolderJob(
        root := str(used_path(folder, "a folder")),
        _naming(root, name),
        Chosen(_patterns("include", include), _patterns("exclude", exclude)),
        Reading(by_stamp, text_field, cap),
        Removal(delete, delete_excluded, allow_empty, _most(max_delete)),
        target,
        options.reject_list(target.reject_list),
    )
    if dry_run and watch:
        raise UsageError("a dry run looks once; leave out --watch (watch=) or --dry-run (dry_run=)")
    if dry_run:
        return _look_only(job)
    job.files(LeftOut())  # whether it is there, before a model is loaded
    ensure_writable(target.db, target.table)
    pools = PoolOptions(
        model, precision, workers, memory, max_tokens, dim, storing=True, max_text_bytes=cap
    )
    began = time.perf_counter()
    if pool is None and is_auto(precision) and (there := target.space()):
        pools = pools.for_table(there.model, there.precision)
    use = borrowed_or_own(pool, pools)
    made_s = time.perf_counter() - began
    space = VectorSpace.of(use.pool.identity, distance)
    target.existing(space)
    tell = on_pass or (lambda report: None)
    with Closing(use):
        if watch:
            # Each pass borrows it: it stays open in between.
            use = PoolUse(use.pool, own=False)
            options = replace(options, stop=stop or Stop())
            once = partial(one_pass, job, options, use, space)
            return FolderWatch(job.root, str(target.db), options.stop or Stop(), once, tell).run()
        report = one_pass(job, options, use, space, made_s)
        tell(report)
        return report


@dataclass(slots=True)
class Closing:
    """Ends an own pool that its job may not have come to use."""

    use: PoolUse

    def __enter__(self) -> PoolUse:
        return self.use

    def __exit__(self, *_: object) -> None:
        self.use.close()


def one_pass(
    job: FolderJob, options: JobOptions, use: PoolUse, space: VectorSpace, made_s: float = 0.0
) -> SyncReport:
    """Bring the table in step once. Raises what `sync_folder` raises."""
    running = RunningJob(Counts(), ReadProgress())
    stop = options.stop or Stop()
    loop = JobLoop(use, stop, running, startup_seconds=made_s)
    with hold_job(job.target.folder, wait_s=job.target.wait_s), job.reject_file() as refused:
        known = job.target.existing(space)
        if known is not None and job.target.durable:
            known.set_durable(True)
        with closing(Catalogue(job.target.folder, job.naming.folder)) as catalogue:
            return _Pass(job, options, loop, space, known, catalogue, refused).run()


@dataclass(slots=True)
class _Pass:
    """One comparison of the folder with the table, the job's lock held."""

    job: FolderJob
    options: JobOptions
    loop: JobLoop
    space: VectorSpace
    known: Table | None
    catalogue: Catalogue
    refused: RejectFile
    counts: FileCounts = field(default_factory=FileCounts)

    def run(self) -> SyncReport:
        job, rows, target = self.job, self.loop.job.counts, self.job.target
        durable = target.durable or (self.known is not None and self.known.durable)
        command = Command(
            (shown_name(job.root),), (), {"sync": job.naming.folder}, self.space.fingerprint
        )
        with history(target.folder, self.known, command, rows, durable=durable) as told:
            hold(self.catalogue, self.known, job.naming)
            refusals = Refusals(rows, self.refused)
            sieve = Sieve(self.known, refusals, target.on_conflict)
            if self.options.observer is not None:
                self.options.observer(self.loop.job)

            def open_table() -> Table:
                name, db = target.table, target.db
                opened = self.known or Table.open_or_create(db, name, self.space, durable=durable)
                opened.keep_little()
                return opened

            with closing(Extraction()) as extraction:
                planner = Planner(
                    job.naming, job.reading, self.catalogue, self.counts, refusals, extraction
                )
                writer = FolderWriter(job.naming, target.on_conflict, planner.underway, self.counts)
                committing = partial(Committer, open_table, sieve, told, write=writer.write)
                table = self._written(planner, committing) or self.known
            # What was not looked for is not known to be gone.
            if planner.complete and not self.loop.stop.cut_short:
                self._remove(table, writer)
            notes = [*told.notes, *_notes(self.counts), *_note_on(writer.conflicts)]
            if table is not None:
                if not self.loop.stop.cut_short:
                    notes += build_index(table, target.memory)
                if durable:
                    table.sync()
                rows.table_version = table.version
            told.finished("interrupted" if self.loop.stop.cut_short else "finished")
            return self._report(writer, notes)

    def _written(self, planner: Planner, committing: Callable[[], Committer]) -> Table | None:
        """Read, embed and commit; return the table, if there is one."""
        stop, running = self.loop.stop, self.loop.job
        table = None
        windows = planner.windows(self.job.files(self.counts.left_out))
        with self.loop.running():
            committer = committing()
            try:
                with ahead(timed_reads(windows, running.counts), stop) as coming:
                    self.loop.run(self._to_embed(coming, planner, committer), committer.put)
            finally:
                table = committer.finish()
        return table

    def _to_embed(
        self, windows: Iterator[Window], planner: Planner, committer: Committer
    ) -> Iterator[Window]:
        """Hand on what has its vector already, and yield the rest."""
        for window in windows:
            if self.known is None:
                yield window
                continue
            for part, vectors in vectors_alike(self.known, window, planner.underway):
                if vectors is None:
                    yield part
                else:
                    self.loop.job.counts.add(reused=len(part))
                    committer.put(part, vectors)

    def _remove(self, table: Table | None, writer: FolderWriter) -> None:
        """Remove what is gone, or count it."""
        gone = _Gone.of(self.job, self.catalogue, self.counts)
        if not gone.count:
            return
        if not self.job.removal.delete:
            self.counts.would_remove = gone.count
            return
        gone.check(self.job, self.catalogue, self.counts)
        assert table is not None
        for names in self.catalogue.gone():
            writer.remove(table, names)
            for name in names:
                self.catalogue.forget(name)
        gone.counted(self.counts)

    def _report(self, writer: FolderWriter, notes: list[str]) -> SyncReport:
        rows = self.loop.job.counts
        embedding = report(rows, self.loop.work, self.loop.setting(self.refused))
        return outcome(
            self.job.naming.folder,
            self.counts,
            embedding,
            rejected=rows.rejected,
            conflicts=writer.conflicts,
            rejects=embedding.rejects,
            interrupted=embedding.interrupted,
            notes=(*notes, *embedding.notes),
        )


@dataclass(frozen=True, slots=True)
class _Gone:
    """How many names the table holds and the folder does not; some came back under another."""

    count: int
    moved: int

    @classmethod
    def of(cls, job: FolderJob, catalogue: Catalogue, counts: FileCounts) -> _Gone:
        """Look again at each: a file that is there and only left out is not gone."""
        count = moved = 0
        for name, has_moved, textless in catalogue.unmet():
            sure = textless or job.removal.excluded_too or is_there(job.root, name) is False
            if not sure:
                counts.kept += 1
                continue
            catalogue.lose(name)
            count += 1
            moved += has_moved
        return cls(count, moved)

    def check(self, job: FolderJob, catalogue: Catalogue, counts: FileCounts) -> None:
        """Raise InputError where so much is gone that something else must have happened."""
        lost, held, removal = self.count - self.moved, catalogue.held, job.removal
        root = shown_name(job.root)
        if removal.most is not None and self.count > removal.most:
            raise InputError(
                f"{self.count:,} documents of {root} are gone, more than the {removal.most:,}"
                " of --max-delete (max_delete=); none was removed"
            )
        if removal.allow_empty or lost < held:
            return
        if not counts.files or held > _MANY:
            raise InputError(
                f"none of the {held:,} documents that the table holds of {root} is there any more;"
                " none was removed. Is its disk mounted? If they are really gone, say"
                " --allow-empty (allow_empty=True)"
            )

    def counted(self, counts: FileCounts) -> None:
        """Count what was removed, or would be."""
        counts.moved = min(self.moved, counts.added)
        counts.added -= counts.moved
        counts.removed = self.count - counts.moved


def _look_only(job: FolderJob) -> SyncReport:
    """Tell what would be done, and write nothing."""
    try:
        known = Table.open(job.target.db, job.target.table)
    except TableNotFound:
        known = None
    counts, rows = FileCounts(), Counts()
    refused = _CountedOnly()
    with closing(Catalogue(None, job.naming.folder)) as catalogue, closing(Extraction()) as extract:
        hold(catalogue, known, job.naming)
        planner = Planner(
            job.naming, job.reading, catalogue, counts, Refusals(rows, refused), extract
        )
        for window in planner.windows(job.files(counts.left_out)):
            for row_id in window.ids.to_pylist():
                doing = planner.underway.doing.pop(row_id)
                setattr(counts, doing, getattr(counts, doing) + 1)
        gone = _Gone.of(job, catalogue, counts)
        notes = _notes(counts)
        if job.removal.delete:
            try:
                gone.check(job, catalogue, counts)
                gone.counted(counts)
            except InputError as error:
                notes.append(str(error))
                counts.would_remove = gone.count
        else:
            counts.would_remove = gone.count
    return outcome(
        job.naming.folder,
        counts,
        None,
        rejected=rows.rejected,
        conflicts=0,
        dry_run=True,
        notes=(*notes, *refused.told()),
    )


class _CountedOnly(RejectFile):
    """Counts refused files, and writes no list."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), lambda path: False)
        self._reasons = LeftOut()

    def add(self, rejects: Iterable[Reject]) -> None:
        """Note why files were refused."""
        for reject in rejects:
            self._reasons.add(f"rejected ({reject.reason})", reject.path)

    def told(self) -> tuple[str, ...]:
        """Say how many were refused, and why."""
        said = self._reasons.told("Would be refused")
        return (said,) if said else ()


def hold(catalogue: Catalogue, table: Table | None, naming: Naming) -> None:
    """Note in the catalogue what a table holds of a folder."""
    if table is None:
        return
    decode = msgspec.json.Decoder(_Held).decode
    for batch in table.scan({"folder": naming.folder}, columns=["metadata"]):
        found = [decode(metadata) for metadata in batch["metadata"].to_pylist() if metadata]
        # A field of this name may stand in the rows of others, and be no text of ours.
        catalogue.hold(
            (row.path, row.content_hash)
            for row in found
            if row.folder == naming.folder and isinstance(row.path, str)
        )


class _Held(msgspec.Struct):
    folder: Any = None
    path: Any = None
    content_hash: str | None = None


def _naming(root: str, name: str | None) -> Naming:
    if name is None:
        return Naming(shown_name(root))
    if not isinstance(name, str) or not name.strip("/ ") or shown_name(name) != name:
        raise UsageError(f"a folder's name (--name) is a text such as 'notes', not {name!r}")
    return Naming(name, f"{name.rstrip('/')}/")


def _patterns(option: str, given: Sequence[str]) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern.strip("/"):
            raise UsageError(f"--{option} takes a pattern such as '*.md', not {pattern!r}")
    return patterns


def _most(given: int | None) -> int | None:
    found = None if given is None else values.whole(given)
    if given is not None and (found is None or found < 0):
        raise UsageError(f"--max-delete (max_delete=) is a whole number, not {values.shown(given)}")
    return found


def _note_on(conflicts: int) -> Iterator[str]:
    if conflicts:
        yield (
            f"{conflicts:,} documents have the ids of rows that are not of this folder; --name NAME"
            " (name=) lets its ids begin with NAME/, --on-conflict update takes the rows over, as"
            " where the folder has moved"
        )


def _notes(counts: FileCounts) -> list[str]:
    told = (
        counts.left_out.told(),
        counts.without_fields.told("Front matter kept as text, for it cannot be read"),
    )
    return [each for each in told if each]

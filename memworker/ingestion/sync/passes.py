"""One pass: a folder compared with the table, and the table brought in step, or only told."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from memworker.errors import InputError, StoreUnwritable, TableNotFound
from memworker.ingestion.ahead import ahead, timed_reads
from memworker.ingestion.chunks import ChunkSieve, ChunkWindow, CutBatch, Cutting
from memworker.ingestion.committer import Committer
from memworker.ingestion.documents.extraction import Extraction
from memworker.ingestion.history import Command, history
from memworker.ingestion.job import build_index
from memworker.ingestion.loop import JobLoop, RunningJob
from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.records import ReadBatch, ReadProgress, Reject
from memworker.ingestion.rejects import Refusals, RejectFile
from memworker.ingestion.report import Counts, report
from memworker.ingestion.source import JobOptions
from memworker.ingestion.stop import Stop
from memworker.ingestion.sync.asked import FolderJob
from memworker.ingestion.sync.catalogue import Catalogue
from memworker.ingestion.sync.chunked import (
    DocumentCommitter,
    Unclaimed,
    chunk_vectors_alike,
    cut_documents,
)
from memworker.ingestion.sync.looking import place
from memworker.ingestion.sync.outcome import FileCounts, SyncReport, outcome
from memworker.ingestion.sync.planning import Naming, Planner
from memworker.ingestion.sync.removal import Gone, must_be_at
from memworker.ingestion.sync.writing import FolderWriter, vectors_alike
from memworker.ingestion.windows import Sieve, Window
from memworker.paths import shown_name
from memworker.pool import (
    PoolUse,
)
from memworker.store import (
    OnConflict,
    Table,
    VectorSpace,
    hold_job,
)


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
        with _noting(), closing(Catalogue(job.target.folder, job.naming.folder)) as catalogue:
            return _Pass(job, options, loop, space, known, catalogue, refused).run()


@contextmanager
def _noting() -> Iterator[None]:
    """Say what to do where what is known of the files cannot be kept."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreUnwritable(
            f"what is known of the folder's files could not be kept: {error}. What was committed is"
            " safe. Make room in the database's directory and for temporary files (TMPDIR), and run"
            " the same command again"
        ) from error


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
        began_at = place(job.root)
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
                opened = self.known or Table.open_or_create(
                    db, name, self.space, durable=durable, chunking=target.chunking
                )
                opened.keep_little()
                return opened

            with closing(Extraction()) as extraction:
                planner = Planner(
                    job.naming, job.reading, self.catalogue, self.counts, refusals, extraction
                )
                chunking = target.chunking
                key = "id" if chunking is None else "parent_id"
                writer = FolderWriter(
                    job.naming, target.on_conflict, planner.underway, self.counts, key
                )
                if chunking is None:
                    committing = partial(Committer, open_table, sieve, told, write=writer.write)
                    table = self._written(planner, committing) or self.known
                else:
                    chosen = ChunkSieve(self.known, refusals, OnConflict.UPDATE, first_counts=True)
                    whole = partial(
                        DocumentCommitter,
                        open_table,
                        chosen,
                        told,
                        underway=planner.underway,
                        files=self.counts,
                    )
                    others = Unclaimed(self.known, refusals, target.on_conflict, planner.underway)
                    with Cutting(chunking, self.loop.tokenization) as cutting:
                        cut = partial(cut_documents, cutting)
                        table = self._chunked(planner, chosen, others, cut, whole) or self.known
                    writer.conflicts += others.conflicts
            # What was not looked for is not known to be gone.
            if planner.complete and not self.loop.stop.cut_short:
                must_be_at(job.root, began_at)
                self._remove(table, writer)
            notes = [*told.notes, *_notes(self.counts), *_note_on(writer.conflicts)]
            notes += planner.underway.told.notes
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

    def _chunked(
        self,
        planner: Planner,
        chosen: ChunkSieve,
        others: Unclaimed,
        cut: Callable[[Iterable[ReadBatch]], Iterator[CutBatch]],
        committing: Callable[[], DocumentCommitter],
    ) -> Table | None:
        """Read, cut, embed and commit; return the table, if there is one."""
        stop, running = self.loop.stop, self.loop.job
        table = None
        windows = planner.windows(self.job.files(self.counts.left_out))
        with self.loop.running():
            committer = committing()
            try:
                cuts = timed_reads(cut(others.batches(windows)), running.counts)
                with ahead(cuts, stop) as coming:
                    self.loop.run(chosen.windows(coming), committer.put)
                # Behind all others: a text's chunks must not be parted by those of another.
                if planner.complete and not stop.cut_short:
                    waiting = chosen.windows(cut(others.batches(planner.waiting_windows())))
                    rest = list(self._with_vectors(waiting, planner, committer))
                    self.loop.run(iter(rest), committer.put)
            finally:
                table = committer.finish()
        return table

    def _with_vectors(
        self, windows: Iterator[ChunkWindow], planner: Planner, committer: DocumentCommitter
    ) -> Iterator[ChunkWindow]:
        """Hand on what has its vectors already, and yield the rest."""
        for window in windows:
            if self.loop.stop.acknowledge():
                return
            assert self.known is not None
            vectors = chunk_vectors_alike(self.known, window, planner.underway)
            if vectors is None:
                yield window
            else:
                self.loop.job.counts.add(reused=len(vectors.vectors))
                committer.put(window, vectors)

    def _to_embed(
        self, windows: Iterator[Window], planner: Planner, committer: Committer
    ) -> Iterator[Window]:
        """Hand on what has its vector already, and yield the rest."""
        for window in windows:
            self.loop.job.counts.add(read=len(window))
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
        gone = Gone.of(self.job, self.catalogue, self.counts)
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


def look_only(job: FolderJob) -> SyncReport:
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
        files = planner.windows(job.files(counts.left_out))
        for window in chain(files, planner.waiting_windows()):
            for row_id in window.ids.to_pylist():
                doing = planner.underway.doing.pop(row_id)
                setattr(counts, doing, getattr(counts, doing) + 1)
        gone = Gone.of(job, catalogue, counts)
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
            (row.path, row.content_hash if isinstance(row.content_hash, str) else None)
            for row in found
            if row.folder == naming.folder and isinstance(row.path, str)
        )


class _Held(msgspec.Struct):
    folder: Any = None
    path: Any = None
    content_hash: Any = None


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

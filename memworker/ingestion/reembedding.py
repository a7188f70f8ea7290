"""Re-embedding: a table's texts through a pool, and their new vectors into the table at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import StoreError, UsageError
from memworker.failpoints import reach
from memworker.ingestion.loop import JobLoop, RunningJob
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.report import Counts
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.stop import Stop
from memworker.paths import DatabaseGiven
from memworker.pool import EmbeddingPool, PoolOptions, PrecisionGiven, borrowed_or_own
from memworker.store import (
    Digests,
    Reembedding,
    Staged,
    Table,
    VectorSpace,
    build_indices,
    database_path,
    ensure_writable,
    hold_job,
    only_in_a_directory,
    staged,
    state_dir,
    table_name,
)

# Another program may write without our lock, or optimise: then the last step is done again.
_ATTEMPTS = 5
_INSTEAD = (
    "its one commit replaces all rows, and none of a bucket's locks could keep a late one off;"
    " `memworker export` it and ingest that file into another table with --model, or copy the table"
    " to a directory, re-embed it there and copy it back"
)


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """The outcome of a re-embedding.

    `switched` tells whether the table's vectors are those of `model` now because
    of this run; otherwise it was interrupted, or there was nothing to do.
    `filled_before` counts texts that an earlier, unfinished run had embedded.
    Times are seconds: from the first text's dispatch to the last vector, and those in
    which other writers had to wait for the switch.
    """

    table: str
    rows: int
    model_before: str
    precision_before: str
    model: str
    precision: str
    dim: int
    table_version: int
    switched: bool = False
    interrupted: bool = False
    embedded: int = 0
    filled_before: int = 0
    workers: int = 0
    startup_seconds: float = 0.0
    seconds: float = 0.0
    switch_seconds: float = 0.0
    texts_per_second: float = 0.0
    tokens: int = 0
    tokens_per_second: float = 0.0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values, for JSON."""
        return asdict(self)


def reembed(
    db: DatabaseGiven,
    table: str,
    *,
    model: Any = None,
    precision: PrecisionGiven = "fp32",
    max_tokens: int | None = None,
    dim: int | None = None,
    pool: EmbeddingPool | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    discard: bool = False,
    wait_s: float = 0.0,
    stop: Stop | None = None,
    observer: Callable[[RunningJob], None] | None = None,
) -> ReembedReport:
    """Give every row of a table, older versions too, the vector of another model.

    The new vectors are gathered beside the table while others go on reading and
    writing it; then one commit puts them in, for which writers wait some 10 µs a
    row. Running the same call again goes on where a killed one ended. A handle that was
    open before raises TableMismatch afterwards; open the table again. `model`
    and the options behind it are those of `ingest`, or `pool` is given.
    `discard` drops what an unfinished re-embedding has filled.

    Raises TableNotFound, TableLocked while an ingest or another re-embedding
    works on the table, TableMismatch while one to another model is unfinished,
    StoreUnwritable, ModelError; StoreError, naming the row, when a text has no
    vector: the table is then as it was.
    """
    path = only_in_a_directory(database_path(db), "re-embedding", _INSTEAD)
    name = table_name(table)
    Table.open(path, name)
    ensure_writable(path, name)
    began = time.perf_counter()
    if pool is None and model is None:
        raise UsageError("name the model whose vectors the table shall get, or give a pool")
    pools = PoolOptions(model, precision, workers, memory, max_tokens, dim, storing=True)
    use = borrowed_or_own(pool, pools)
    prepared_s = time.perf_counter() - began
    folder = state_dir(path, name)
    with hold_job(folder, wait_s=wait_s):
        before = Table.open(path, name)
        space = VectorSpace.of(use.pool.identity, before.space.distance)
        if before.space == space:
            return _nothing_to_do(before, folder, drop=discard)
        if discard:
            staged.discard(folder)
        waiting = Staged.open(folder, name, space)
        try:
            job, stop = RunningJob(Counts(), ReadProgress()), stop or Stop()
            if observer is not None:
                observer(job)
            loop = JobLoop(use, stop, job, startup_seconds=prepared_s)
            filler = _Filler(before, waiting, loop, use.pool.max_text_bytes)
            return _run_report(filler, filler.run())
        finally:
            waiting.close()


@dataclass(frozen=True, slots=True)
class _TextPart:
    """Texts that are embedded together, each once: Arrow string[n] of a row's id, and of texts."""

    ids: pa.Array
    texts: pa.Array
    digests: Digests
    text_keys = None

    def cut(self, ends: Iterable[int]) -> Iterator[_TextPart]:
        """Give the parts that end before these texts, without copying."""
        start = 0
        for end in ends:
            rows = slice(start, end)
            yield _TextPart(self.ids[rows], self.texts[rows], self.digests[rows])
            start = end


@dataclass(slots=True)
class _Filler:
    """One run: fill what is missing, then once more with the lock held, and switch."""

    before: Table
    staged: Staged
    loop: JobLoop
    max_text_bytes: int
    filled_before: int = 0
    switch_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> int | None:
        """Return the version that has the new vectors; None if it was interrupted."""
        self.filled_before, version = len(self.staged), None
        with self.loop.running():
            table = Reembedding(self.before.db, self.before.name, self.staged)
            self._fill(table)
            reach("reembed_after_fill")
            version = None if self.loop.stop.cut_short else self._switch(table)
            if version is not None:
                reach("reembed_after_switch")
                self.notes += finish(self.before, self.staged)
        return version

    def _switch(self, table: Reembedding) -> int | None:
        began = time.perf_counter()
        with table.locked():
            for _ in range(_ATTEMPTS):
                # Rows that others added since; the lock keeps out more.
                self._fill(table)
                if self.loop.stop.cut_short:
                    return None
                version = table.switch()
                if version is not None:
                    self.switch_seconds = time.perf_counter() - began
                    return version
        raise StoreError(
            f"table {self.before.name!r} was changed {_ATTEMPTS} times by a program that does not"
            " take memworker's lock; it is as it was. Stop that program, and run the same command"
            " again"
        )

    def _fill(self, table: Reembedding) -> None:
        self.loop.run(self._parts(table), self._keep)
        self._refuse_failed()

    def _parts(self, table: Reembedding) -> Iterator[_TextPart]:
        self.loop.job.counts.read = self.loop.job.counts.duplicates = 0
        for found in table.missing():
            fresh = len(found.texts)
            self.loop.job.counts.add(read=found.rows, duplicates=found.rows - fresh)
            lengths = np.asarray(pc.binary_length(found.texts))
            fits = lengths <= self.max_text_bytes
            for row in np.flatnonzero(~fits):
                too_long = f"it has {lengths[row]:,} bytes, over the cap of {self.max_text_bytes:,}"
                self.failed[found.ids[row].as_py()] = too_long
            if fits.any():
                kept = pa.array(fits)
                yield _TextPart(
                    found.ids.filter(kept), found.texts.filter(kept), found.digests[fits]
                )

    def _keep(self, part: _TextPart, outcome: WindowVectors) -> None:
        reasons = outcome.unstorable()
        self.failed |= {part.ids[row].as_py(): why for row, why in reasons.items()}
        good = np.ones(len(part.ids), np.bool_)
        good[list(reasons)] = False
        self.staged.add(part.digests[good], outcome.vectors[good])
        self.loop.job.counts.add(written=int(good.sum()))
        reach("reembed_after_batch")

    def _refuse_failed(self) -> None:
        if self.failed:
            row, why = next(iter(self.failed.items()))
            raise StoreError(
                f"{len(self.failed)} texts of table {self.before.name!r} could not be embedded, the"
                f" first that of row {row!r}: {why}. The table is as it was, and what was embedded"
                " is kept. Delete or change those rows, and run the same command again"
            )


def finish(table: Table, waiting: Staged) -> list[str]:
    """Build the indices that went with the old vectors, and clear away; return what to tell."""
    try:
        unknown = build_indices(table.db, table.name, waiting)
    except StoreError as error:
        return [f"the vectors are switched, but an index failed: {error}. Run the command again"]
    notes = []
    try:
        staged.discard(waiting.folder.parent)
    except StoreError as error:
        notes.append(f"the vectors are switched, but what was gathered for it is left: {error}")
    if unknown:
        columns = ", ".join(unknown)
        notes.append(f"an index on {columns}, not of memworker's making, is gone; build it again")
    return notes


def _nothing_to_do(table: Table, folder: Path, *, drop: bool) -> ReembedReport:
    """Say that the table has these vectors already; end what a killed run left."""
    there, notes = staged.unfinished(folder), []
    if there == table.space:
        waiting = Staged.open(folder, table.name, there)
        try:
            notes = finish(table, waiting)
        finally:
            waiting.close()
    elif there is not None and not drop:
        notes = [staged.other_is_unfinished(folder, table.name, there)]
    else:
        staged.discard(folder)
    version, rows = table.at_one_version(lambda at: (at.version, at.count()))
    return _report(table, table.space, version, rows=rows, notes=tuple(notes))


def _run_report(filler: _Filler, version: int | None) -> ReembedReport:
    work = filler.loop.work
    long = filler.loop.truncation("into another table, cuts them for this model")
    return _report(
        filler.before,
        filler.staged.space,
        version,
        rows=filler.before.count() if version is None else filler.loop.job.counts.read,
        embedded=work.texts - work.failed,
        filled_before=filler.filled_before,
        switched=version is not None,
        interrupted=version is None,
        workers=filler.loop.workers,
        startup_seconds=round(filler.loop.startup_seconds, 4),
        seconds=round(work.seconds, 4),
        switch_seconds=round(filler.switch_seconds, 4),
        texts_per_second=round(work.texts / work.seconds, 2) if work.seconds else 0.0,
        tokens=work.real_tokens,
        tokens_per_second=round(work.real_tokens / work.seconds, 1) if work.seconds else 0.0,
        notes=(*filler.loop.notes, *filler.notes, *long),
    )


def _report(
    before: Table, space: VectorSpace, version: int | None, **figures: Any
) -> ReembedReport:
    return ReembedReport(
        table=before.name,
        model_before=before.space.model,
        precision_before=before.space.precision,
        model=space.model,
        precision=space.precision,
        dim=space.dim,
        table_version=before.version if version is None else version,
        **figures,
    )

"""The main job: read, leave out what is known, embed, commit — all at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memworker import heap, values
from memworker.chunking import ChunkGiven, Chunking, chunking_of
from memworker.errors import StoreError, TableNotFound
from memworker.ingestion.chunk_commits import ChunkCommitter
from memworker.ingestion.chunks import ChunkSieve, Cutting, cut_for
from memworker.ingestion.cluster.driver import RayJob, open_afar, refuse_with_ray
from memworker.ingestion.cluster.runner import OnRay, runner_of
from memworker.ingestion.cluster.waves import Waves
from memworker.ingestion.committer import Committer, CommitThread
from memworker.ingestion.history import Command, History, history
from memworker.ingestion.loop import JobLoop, RunningJob, WindowPart
from memworker.ingestion.readers import Dialect, Fields
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.rejects import RejectFile
from memworker.ingestion.report import Counts, IngestReport, report
from memworker.ingestion.source import Input, JobOptions, Records, open_input
from memworker.ingestion.stop import Stop
from memworker.ingestion.windows import Sieve, Window
from memworker.paths import DatabaseGiven, PathGiven, Place
from memworker.pool import (
    DEFAULT_MAX_TEXT_BYTES,
    DEFAULT_MODEL,
    EmbeddingPool,
    PoolOptions,
    PrecisionGiven,
    borrowed_or_own,
    is_auto,
    machine,
    parse_bytes,
)
from memworker.store import (
    OnConflict,
    Output,
    Table,
    VectorSpace,
    database_path,
    ensure_writable,
    hold_job,
    state_dir,
    state_folder,
    table_name,
)

B = TypeVar("B")
W = TypeVar("W", bound=WindowPart)


@dataclass(frozen=True, slots=True)
class Target:
    """The table that a job writes to, and how."""

    db: Place
    table: str
    distance: str
    on_conflict: OnConflict
    durable: bool
    wait_s: float
    memory: int | str | None = None
    chunking: Chunking | None = None
    first_counts: bool = False

    @property
    def folder(self) -> Path:
        """Where the table's locks, journal and rejected rows are."""
        return state_dir(self.db, self.table)

    @property
    def reject_list(self) -> Output:
        """Where rejected rows are listed by default: in a folder of our own."""
        return Output(state_folder(self.db, self.table) / "rejects.jsonl", "--rejects", True)

    def space(self) -> VectorSpace | None:
        """Say what the table's vectors are of; None where it is not there."""
        try:
            return Table.open(self.db, self.table).space
        except TableNotFound:
            return None

    def existing(self, space: VectorSpace) -> Table | None:
        """Open the table if it is there; raises TableMismatch when its vectors are of another."""
        try:
            table = Table.open(self.db, self.table)
        except TableNotFound:
            return None
        table.space.must_equal(space, self.table)
        table.must_be_cut(self.chunking)
        return table


def ingest(
    records_or_paths: Records,
    *,
    db: DatabaseGiven,
    table: str,
    storage_options: Mapping[str, str] | None = None,
    pool: EmbeddingPool | None = None,
    model: Any = DEFAULT_MODEL,
    precision: PrecisionGiven = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
    max_tokens: int | None = None,
    dim: int | None = None,
    max_text_bytes: int | None = None,
    distance: str = "cosine",
    text_field: str | Sequence[str] = "text",
    text_template: str | None = None,
    id_field: str = "id",
    id_template: str | None = None,
    scope: Mapping[str, str] | None = None,
    metadata: bool | str | Sequence[str] | None = None,
    dialect: Dialect | Mapping[str, Any] | None = None,
    sql: str | None = None,
    limit: int | None = None,
    format: str | None = None,
    on_error: str = "reject",
    on_conflict: str | None = None,
    chunk: ChunkGiven = None,
    overlap: int | None = None,
    contextual: bool | None = None,
    rejects: PathGiven | None = None,
    durable: bool = False,
    wait_s: float = 0.0,
    stop: Stop | None = None,
    observer: Callable[[RunningJob], None] | None = None,
    runner: str | OnRay = "local",
    address: str | None = None,
) -> IngestReport:
    r"""Embed texts and add them to a LanceDB table, each row once.

    `records_or_paths` is a path, folder, glob or "-", a list of those, or any
    iterable of mappings. `scope` maps user_id, agent_id or run_id to the field
    that holds it. Several text fields stand in the text line by line; a `text_template`
    such as ``"{title}\n{body}"``, or an `id_template`, has them in its braces; `a.b` is the
    field b of the object a. `metadata` names the fields that are kept ("all", "none", names).
    `dialect` says how files of text are written (`delimiter`, `quotechar`, `escapechar`,
    `encoding`, `header`). With `sql` the input is a database (``"sqlite:///notes.db"``), and
    its rows are read. Bad rows go to the file `rejects` (default: beside the table,
    in ``DB/.memworker/TABLE/rejects.jsonl``). Running the same call again
    writes only what is not there yet, after whatever end of the first.

    `db` is a directory or, with LanceDB's `storage_options` for it, an address in object
    storage: ``s3://…``, ``gs://…``, ``az://…``.

    With ``precision="auto"`` a new table gets the fastest precision that is near enough to
    fp32 (see `Auto`), and one that is there keeps its own.

    With `chunk` (a number of tokens, "model" for as many as the model takes, or a `Chunking`)
    texts are cut, and each chunk is a row of its own, found by itself. A text that is known by its
    id and was edited is written anew where it was: chunks that are new are added, those that are
    gone deleted, in one commit. `overlap` tokens of the chunk before begin the next;
    `contextual` puts a text's field `title` and its headings before each chunk for the embedding.

    `on_conflict` says what becomes of an id that is known with another text: ``reject``,
    ``skip`` or ``update``; by default ``reject``, of chunks ``update``, but of one id that comes
    twice in an input the first counts.

    `pool` is a pool to embed with, in place of `model` and the options behind
    it; it stays open, and the figures of the report count all that it did meanwhile.
    `memory` ("4GB") bounds what this process and its workers hold together. A text over
    `max_text_bytes` (default: 1 MiB, or what `pool` takes) is a bad row.
    One ingest at a time works on a table: another one waits for `wait_s`
    seconds. `durable` forces every commit to the disk, from now on, by any program
    (see `Table.set_durable`). `stop.set()` ends the
    job early: what is in flight is committed and the report says
    ``interrupted``. A KeyboardInterrupt commits what is embedded and is raised.

    Raises UsageError, InputNotFound, MissingField, NoRows, ModelError,
    TableLocked, TableMismatch, StoreUnwritable before any row is written;
    RowRejected with ``on_error="stop"``.
    """
    afar = runner_of(runner, address)
    if afar is not None:
        refuse_with_ray(pool, chunk)
    if pool is not None:
        most = pool.max_text_bytes
        max_text_bytes = most if max_text_bytes is None else min(max_text_bytes, most)
    options = JobOptions(
        Fields.of(text_field, id_field, scope, metadata, text_template, id_template),
        limit=limit,
        format=format,
        dialect=Dialect.of(dialect),
        sql=sql,
        on_error=on_error,
        rejects=rejects,
        stop=stop,
        observer=observer,
        max_text_bytes=DEFAULT_MAX_TEXT_BYTES if max_text_bytes is None else max_text_bytes,
    )
    chunking = chunking_of(chunk, overlap, contextual)
    chosen = on_conflict or (OnConflict.REJECT if chunking is None else OnConflict.UPDATE)
    policy = OnConflict(values.checked_choice("on_conflict", chosen, OnConflict))
    name = table_name(table)
    target = Target(
        database_path(db, storage_options),
        name,
        distance,
        policy,
        durable,
        wait_s,
        memory,
        first_counts=chunking is not None and on_conflict is None,
    )
    if afar is not None:
        bucket = not isinstance(target.db, Path)
        afar.refuse(in_bucket=bucket, updates=policy is OnConflict.UPDATE)
    job = RunningJob(Counts(), ReadProgress())
    listed = options.reject_list(target.reject_list)
    if afar is None:
        source = open_input(records_or_paths, options, job, [listed])
    else:
        source = open_afar(records_or_paths, options, job, [listed])
    ensure_writable(target.db, target.table)
    began = time.perf_counter()
    pools = PoolOptions(
        model,
        precision,
        workers,
        memory,
        max_tokens,
        dim,
        storing=True,
        max_text_bytes=options.max_text_bytes,
    )
    if pool is None and is_auto(precision) and (there := target.space()):
        pools = pools.for_table(there.model, there.precision)
    use = borrowed_or_own(pool, pools)
    space = VectorSpace.of(use.pool.identity, distance)
    if chunking is not None:
        target = replace(target, chunking=cut_for(chunking, use.pool.identity))
    target.existing(space)
    made_s = time.perf_counter() - began
    loop = JobLoop(use, options.stop or Stop(), job, startup_seconds=made_s)
    refused = source.reject_file(listed)
    ray = None
    if afar is not None:
        ray = RayJob(
            afar,
            source,
            options,
            job,
            loop.stop,
            replace(pools, precision=use.pool.identity.precision),
        )
    with hold_job(target.folder, wait_s=wait_s), refused:
        return run_job(source, loop, target, space, options, refused, ray)


def run_job(
    source: Input,
    loop: JobLoop,
    target: Target,
    space: VectorSpace,
    options: JobOptions,
    refused: RejectFile,
    ray: RayJob | None = None,
) -> IngestReport:
    """Run the job, with its lock held; on a cluster where `ray` is given."""
    job, stop, counts = loop.job, loop.stop, loop.job.counts
    known = target.existing(space)
    if known is not None and target.durable:
        known.set_durable(True)
    durable = target.durable or (known is not None and known.durable)
    command = _command(source, options, target, space)
    with history(target.folder, known, command, counts, durable=durable) as told:
        refusals = options.refusals(counts, refused)
        if options.observer is not None:
            options.observer(job)

        def open_table() -> Table:
            name, db = target.table, target.db
            opened = known or Table.open_or_create(
                db, name, space, durable=durable, chunking=target.chunking
            )
            # Each commit adds a fragment, which every later version names.
            opened.keep_little()
            return opened

        notes: list[str]
        if target.chunking is None:
            sieve = Sieve(known, refusals, target.on_conflict)
            notes, committing = sieve.notes, partial(Committer, open_table, sieve, told)
            if ray is not None:
                table = _embedded_afar(ray, target, sieve, loop, told, open_table)
            else:
                coming = source.coming(job, stop)
                table = _embedded(coming, sieve.windows, known, loop, committing)
        else:
            chosen = ChunkSieve(known, refusals, target.on_conflict, target.first_counts)
            whole = partial(ChunkCommitter, open_table, chosen, told)
            notes = chosen.notes
            with Cutting(target.chunking, loop.tokenization) as cutting:
                cut = source.through(cutting.cut, job, stop)
                table = _embedded(cut, chosen.windows, known, loop, whole)
        if table is not None:
            if not stop.cut_short:
                told.notes += build_index(table, target.memory)
            if durable:
                # Rows may be known from a run that was killed before it forced them.
                table.sync()
            counts.table_version = table.version
        told.finished("interrupted" if stop.cut_short else "finished")
        long = (
            () if target.chunking else loop.truncation("into another table, cuts them into chunks")
        )
        notes = [*source.notes, *notes, *told.notes, *long]
        setting = loop.setting(refused, notes)
        if ray is not None:
            return report(counts, ray.cluster.work, ray.setting(setting))
        return report(counts, loop.work, setting)


def _embedded(
    coming: AbstractContextManager[Iterator[B]],
    windows: Callable[[Iterator[B]], Iterator[W]],
    known: Table | None,
    loop: JobLoop,
    committing: Callable[[], CommitThread[W, Any]],
) -> Table | None:
    """Read, embed and commit; return the table, if there is one."""
    table = None
    with loop.running():
        committer = committing()
        try:
            with coming as batches:
                loop.run(windows(batches), committer.put)
        finally:
            # What is embedded is kept, also when the rest failed or was interrupted.
            table = committer.finish() or known
    return table


def _embedded_afar(
    ray: RayJob,
    target: Target,
    sieve: Sieve,
    loop: JobLoop,
    told: History,
    open_table: Callable[[], Table],
) -> Table | None:
    """Commit what is read and embedded on a cluster; return the table, if there is one.

    Where nodes write files of it, it is there before, and the files are kept until they are
    committed.
    """
    # Into a bucket one committer writes: Lance's files there need its options on every node.
    policy = target.on_conflict if isinstance(target.db, Path) else OnConflict.UPDATE
    written = open_table() if ray.fragments(policy) else None
    known, table = sieve.table or written, None
    with loop.running() as here, written.kept() if written else nullcontext():
        committer: CommitThread[Window, Sieve]
        if written is None:
            committer = Committer(open_table, sieve, told)
        else:
            committer = Waves(lambda: written, sieve, told)
        try:
            with ray.windows(sieve, target.db, target.table, here) as windows:
                for window, vectors in windows:
                    committer.put(window, vectors)
        finally:
            table = committer.finish() or known
    return table


def _command(source: Input, options: JobOptions, target: Target, space: VectorSpace) -> Command:
    read_as = options.told() | {"on_conflict": target.on_conflict.value}
    if target.chunking is not None:
        read_as["chunk"] = target.chunking.told()
    return Command(source.names, source.sources, read_as, space.fingerprint)


def build_index(table: Table, memory: int | str | None) -> list[str]:
    """Build the vector index if the table is large enough; return a note where that failed."""
    try:
        if table.maintenance.wants_index("vector"):
            if short := _too_little(table.maintenance.index_bytes(), memory):
                return [
                    f"the rows are committed, but no index was built, so searches scan: {short}"
                ]
            table.maintenance.ensure_index("vector")
    except StoreError as error:
        return [
            f"the rows are committed, but no index was built, so searches scan: {error}."
            " `memworker table optimize` tries again."
        ]
    return []


def _too_little(need: int, memory: int | str | None) -> str | None:
    """Return what is missing where building an index takes more memory than is allowed or free."""
    heap.give_back()
    held = heap.private_bytes() or 0
    allowed = machine.memory_bytes() if memory is None else parse_bytes(memory)
    if held + need > allowed:
        ample = (held + need) * 11 // 10**7  # a tenth more: another run holds more or less
        whose = "this machine has" if memory is None else "--memory (memory=) allows"
        return (
            f"building it takes about {need >> 20:,} MiB beside the {held >> 20:,} MiB that are"
            f" held, and {whose} {allowed >> 20:,} MiB. Allow {ample:,}MB or"
            " more, or run `memworker table optimize` where there is more"
        )
    free = machine.free_bytes()
    if need > free:
        return (
            f"building it takes about {need >> 20:,} MiB, and {free >> 20:,} MiB of memory are free"
            " now. `memworker table optimize` builds it later"
        )
    return None

"""`sync_folder()`: a folder's documents into a table, and out of it again when they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from memworker import values
from memworker.chunking import ChunkGiven, chunking_of
from memworker.errors import UsageError
from memworker.ingestion.chunks import cut_for
from memworker.ingestion.documents.kinds import MAX_FILE_BYTES
from memworker.ingestion.job import Target
from memworker.ingestion.loop import RunningJob
from memworker.ingestion.readers import Fields
from memworker.ingestion.readers.dialects import Dialect
from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.source import JobOptions
from memworker.ingestion.stop import Stop
from memworker.ingestion.sync.asked import FolderJob, most_of, naming_of, patterns_of
from memworker.ingestion.sync.looking import Chosen
from memworker.ingestion.sync.outcome import SyncReport
from memworker.ingestion.sync.passes import look_only, one_pass
from memworker.ingestion.sync.planning import Reading
from memworker.ingestion.sync.removal import Removal
from memworker.ingestion.sync.watching import FolderWatch, Tell
from memworker.paths import DatabaseGiven, PathGiven, used_path
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
    VectorSpace,
    database_path,
    ensure_writable,
    table_name,
)

_CHECKS = ("stamp", "content")


def sync_folder(
    folder: PathGiven,
    *,
    db: DatabaseGiven,
    table: str,
    storage_options: Mapping[str, str] | None = None,
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
    encoding: str | None = None,
    pool: EmbeddingPool | None = None,
    model: Any = DEFAULT_MODEL,
    precision: PrecisionGiven = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
    max_tokens: int | None = None,
    dim: int | None = None,
    max_text_bytes: int | None = None,
    distance: str = "cosine",
    chunk: ChunkGiven = None,
    overlap: int | None = None,
    contextual: bool | None = None,
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
    folder by it, and not by its path, and ids begin with it. With `chunk` documents are cut as
    `ingest` cuts texts: an edit writes the chunks that it changed.

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
    if pool is not None and chunk is None:
        most = pool.max_text_bytes
        max_text_bytes = most if max_text_bytes is None else min(max_text_bytes, most)
    chunking = chunking_of(chunk, overlap, contextual)
    most_bytes = DEFAULT_MAX_TEXT_BYTES if chunking is None else MAX_FILE_BYTES
    cap = most_bytes if max_text_bytes is None else max_text_bytes
    options = JobOptions(
        Fields(), rejects=rejects, stop=stop, observer=observer, max_text_bytes=cap
    )
    policy = OnConflict(values.checked_choice("on_conflict", on_conflict, OnConflict))
    place, name_there = database_path(db, storage_options), table_name(table)
    target = Target(place, name_there, distance, policy, durable, wait_s, memory)
    written_in = Dialect(encoding=encoding).encoding or ""
    by_stamp = values.checked_choice("check", check, _CHECKS) == "stamp"
    job = FolderJob(
        root := str(used_path(folder, "a folder")),
        naming_of(root, name),
        Chosen(patterns_of("include", include), patterns_of("exclude", exclude)),
        Reading(by_stamp, text_field, written_in, cap, chunking is not None),
        Removal(delete, delete_excluded, allow_empty, most_of(max_delete)),
        target,
        options.reject_list(target.reject_list),
    )
    if dry_run and watch:
        raise UsageError("a dry run looks once; leave out --watch (watch=) or --dry-run (dry_run=)")
    if dry_run:
        return look_only(job)
    job.files(LeftOut())  # whether it is there, before a model is loaded
    ensure_writable(target.db, target.table)
    pools = PoolOptions(
        model,
        precision,
        workers,
        memory,
        max_tokens,
        dim,
        storing=True,
        max_text_bytes=min(cap, DEFAULT_MAX_TEXT_BYTES) if chunking is not None else cap,
    )
    began = time.perf_counter()
    if pool is None and is_auto(precision) and (there := target.space()):
        pools = pools.for_table(there.model, there.precision)
    use = borrowed_or_own(pool, pools)
    made_s = time.perf_counter() - began
    space = VectorSpace.of(use.pool.identity, distance)
    if chunking is not None:
        target = replace(target, chunking=cut_for(chunking, use.pool.identity))
        job = replace(job, target=target)
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

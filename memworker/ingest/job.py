"""The main job: read, leave out what is known, embed, commit — all at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from memworker.errors import NoRows, TableNotFound, UsageError
from memworker.ingest.ahead import ahead
from memworker.ingest.committer import Committer
from memworker.ingest.readers import Chunk, Fields, read, read_records
from memworker.ingest.rejects import RejectFile
from memworker.ingest.report import Counts, IngestReport, Setting, report
from memworker.ingest.windows import Sieve
from memworker.pool.pool import DEFAULT_MODEL, EmbeddingPool, Identity, identity, resolve
from memworker.store import OnConflict, Table, VectorSpace, ensure_writable
from memworker.store.lock import state_dir

Records = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Live:
    """A running job, for whoever shows its progress."""

    counts: Counts
    pool: EmbeddingPool


def ingest(
    records_or_paths: Records,
    *,
    db: str | Path,
    table: str,
    model: Any = DEFAULT_MODEL,
    precision: str = "fp32",
    workers: int | None = None,
    max_tokens: int | None = None,
    distance: str = "cosine",
    text_field: str = "text",
    id_field: str = "id",
    scope: Mapping[str, str] | None = None,
    limit: int | None = None,
    format: str | None = None,
    on_error: str = "reject",
    on_conflict: str = "reject",
    rejects: str | Path | None = None,
    observer: Callable[[Live], None] | None = None,
) -> IngestReport:
    """Embed texts and add them to a LanceDB table, each row once.

    `records_or_paths` is a path, folder, glob or "-", a list of those, or any
    iterable of mappings. `scope` maps user_id, agent_id or run_id to the field
    that holds it. Bad rows go to the file `rejects` (default: beside the table,
    in ``DB/.memworker/TABLE/rejects.jsonl``). Running the same call again
    writes only what is not there yet.

    Raises UsageError, InputNotFound, MissingField, NoRows, ModelError,
    TableMismatch, StoreUnwritable before any row is written; RowRejected with
    ``on_error="stop"``.
    """
    fields = Fields(text_field, id_field, tuple((scope or {}).items()))
    policy = checked_choice("on_conflict", on_conflict, OnConflict)
    stop = checked_choice("on_error", on_error, ("reject", "stop")) == "stop"
    chunks = not_empty(_open(records_or_paths, fields, limit=limit, format=format))
    ensure_writable(db)
    started = time.perf_counter()
    resolved = resolve(model, precision=precision, max_tokens=max_tokens)
    space = vector_space(identity(resolved), distance)
    known = existing(db, table, space)
    counts = Counts()
    refused = RejectFile(Path(rejects) if rejects else state_dir(Path(db), table) / "rejects.jsonl")
    sieve = Sieve(known, counts, refused, OnConflict(policy), stop)
    with refused, EmbeddingPool(resolved, workers=workers) as pool, ahead(chunks) as coming:
        startup_seconds = time.perf_counter() - started
        if observer is not None:
            observer(Live(counts, pool))
        committer = Committer(
            lambda: known or Table.open_or_create(db, table, space), sieve, counts
        )
        try:
            windows = sieve.windows(coming, pool.window_ends)
            for window, embedded in pool.stream(windows, texts=attrgetter("texts")):
                committer.put(window, embedded)
        finally:
            # What is embedded is kept, also when the rest failed or was interrupted.
            written_to = committer.finish() or known
        if written_to is not None:
            written_to.ensure_index()
            counts.table_version = written_to.version
        setting = Setting(
            startup_seconds=startup_seconds,
            workers=pool.workers,
            model=space.model,
            precision=space.precision,
            rejects=str(refused.path) if refused.rows else None,
        )
        return report(counts, pool.work, setting)


def vector_space(model: Identity, distance: str = "cosine") -> VectorSpace:
    """Say in the store's words what vectors a model gives."""
    return VectorSpace(
        model=model.name,
        precision=model.precision,
        max_tokens=model.max_tokens,
        dim=model.dim,
        fingerprint=model.fingerprint,
        distance=distance,
    )


def existing(db: str | Path, name: str, space: VectorSpace) -> Table | None:
    """Open a table if it is there; raises TableMismatch when its vectors are of another kind."""
    try:
        table = Table.open(db, name)
    except TableNotFound:
        return None
    table.space.must_equal(space, name)
    return table


def _open(given: Records, fields: Fields, **options: Any) -> Iterator[Chunk]:
    if isinstance(given, (str, Path)):
        return read([given], fields, **options)
    items: Iterator[Any] = iter(given)
    first = next(items, None)
    if first is None:
        return iter(())
    if isinstance(first, (str, Path)):
        return read([first, *items], fields, **options)
    options.pop("format")
    return read_records(chain([first], items), fields, **options)


def not_empty(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Look at the first chunk before anything is made or started."""
    first = next(chunks, None)
    if first is None:
        raise NoRows("the input holds no rows; nothing was written")
    return chain([first], chunks)


def checked_choice(name: str, value: str, allowed: Sequence[str] | type[OnConflict]) -> str:
    """Return `value` if it is allowed; raises UsageError naming the choices."""
    choices = [str(choice) for choice in allowed]
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value

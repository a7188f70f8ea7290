"""The main job: read, leave out what is known, embed, commit — all at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from memworker import heap
from memworker.errors import NoRows, PoolClosed, StoreError, TableNotFound, UsageError
from memworker.ingest.ahead import ahead, timed_reads
from memworker.ingest.committer import Committer
from memworker.ingest.history import Command, History, history
from memworker.ingest.readers import Chunk, Fields, Source, expand, read, read_records
from memworker.ingest.readers.objects import RECORDS_PATH
from memworker.ingest.records import ReadProgress
from memworker.ingest.rejects import RejectFile
from memworker.ingest.report import Counts, IngestReport, Setting, report
from memworker.ingest.reuse import Reuse, Shared
from memworker.ingest.stop import Stop, closed_after_grace
from memworker.ingest.windows import Sieve, Window
from memworker.pool import limit, machine
from memworker.pool.budget import parse_bytes
from memworker.pool.engine import Identity
from memworker.pool.meter import Work
from memworker.pool.opening import PoolUse, borrowed_or_own
from memworker.pool.pool import DEFAULT_MODEL, EmbeddingPool
from memworker.store import OnConflict, Table, VectorSpace, ensure_writable
from memworker.store.lance import database_path, table_name
from memworker.store.lock import hold_job, state_dir

Records = str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]]


@dataclass(slots=True)
class Live:
    """A running job, for whoever shows its progress; `pool` is there once it has started."""

    counts: Counts
    progress: ReadProgress
    pool: EmbeddingPool | None = None


def ingest(
    records_or_paths: Records,
    *,
    db: str | Path,
    table: str,
    pool: EmbeddingPool | None = None,
    model: Any = DEFAULT_MODEL,
    precision: str = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
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
    durable: bool = False,
    wait_s: float = 0.0,
    stop: Stop | None = None,
    observer: Callable[[Live], None] | None = None,
) -> IngestReport:
    """Embed texts and add them to a LanceDB table, each row once.

    `records_or_paths` is a path, folder, glob or "-", a list of those, or any
    iterable of mappings. `scope` maps user_id, agent_id or run_id to the field
    that holds it. Bad rows go to the file `rejects` (default: beside the table,
    in ``DB/.memworker/TABLE/rejects.jsonl``). Running the same call again
    writes only what is not there yet, after whatever end of the first.

    `pool` is a pool to embed with, in place of `model` and the options behind
    it; it stays open, and the figures of the report count all that it did meanwhile.
    `memory` ("4GB") bounds what this process and its workers hold together.
    One ingest at a time works on a table: another one waits for `wait_s`
    seconds. `durable` forces every commit to the disk, from now on and whoever makes it
    (see `Table.set_durable`). `stop.set()` ends the
    job early: what is in flight is committed and the report says
    ``interrupted``. A KeyboardInterrupt commits what is embedded and is raised.

    Raises UsageError, InputNotFound, MissingField, NoRows, ModelError,
    TableLocked, TableMismatch, StoreUnwritable before any row is written;
    RowRejected with ``on_error="stop"``.
    """
    fields = Fields(text_field, id_field, tuple((scope or {}).items()))
    policy = OnConflict(checked_choice("on_conflict", on_conflict, OnConflict))
    stop_at_reject = checked_choice("on_error", on_error, ("reject", "stop")) == "stop"
    db, table = database_path(db), table_name(table)
    progress = ReadProgress()
    source = opened(records_or_paths, fields, limit=limit, format=format, progress=progress)
    chunks = not_empty(source.chunks)
    ensure_writable(db, table)
    began = time.perf_counter()
    options = {"precision": precision, "max_tokens": max_tokens, "storing": True}
    use = borrowed_or_own(pool, model, workers=workers, memory=memory, **options)
    space = VectorSpace.of(use.pool.identity, distance)
    existing(db, table, space)
    prepared_seconds = time.perf_counter() - began
    folder = state_dir(db, table)
    refused = RejectFile(Path(rejects) if rejects else folder / "rejects.jsonl")
    with hold_job(folder, wait_s=wait_s), refused:
        known = existing(db, table, space)
        read_as = {
            "text_field": text_field,
            "id_field": id_field,
            "on_conflict": policy.value,
            **{f"scope.{column}": field for column, field in fields.scopes},
        }
        command = Command(source.names, source.sources, read_as, space.fingerprint)
        counts = Counts()
        if known is not None and durable:
            known.set_durable(True)
        durable = durable or (known is not None and known.durable)
        with history(folder, known, command, counts, durable=durable) as told:
            job = _Job(
                chunks=chunks,
                read_ahead=source.read_ahead,
                sieve=Sieve(known, counts, refused, policy, stop_at_reject),
                open_table=lambda: known or Table.open_or_create(db, table, space, durable=durable),
                use=use,
                history=told,
                stop=stop or Stop(),
                live=Live(counts, progress),
                observer=observer,
            )
            done = job.run()
            if done.table is not None:
                if not job.stop.cut_short:
                    told.notes += _indexed(done.table, memory)
                if durable:
                    # Rows may be known from a run that was killed before it forced them.
                    done.table.sync()
                counts.table_version = done.table.version
            told.finished("interrupted" if job.stop.cut_short else "finished")
            setting = Setting(
                startup_seconds=prepared_seconds + done.startup_seconds,
                workers=done.workers,
                model=space.model,
                precision=space.precision,
                rejects=str(refused.path) if refused.rows else None,
                interrupted=job.stop.cut_short,
                notes=tuple(told.notes),
                **gemm_facts(use.pool.identity),
            )
            return report(counts, done.work, setting)


@dataclass(frozen=True, slots=True)
class _Done:
    table: Table | None
    work: Work = Work()
    workers: int = 0
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Job:
    """One run's parts, in the order in which rows pass them."""

    chunks: Iterator[Chunk]
    read_ahead: bool
    sieve: Sieve
    open_table: Callable[[], Table]
    use: PoolUse
    history: History
    stop: Stop
    live: Live
    observer: Callable[[Live], None] | None

    def run(self) -> _Done:
        if self.observer is not None:
            self.observer(self.live)
        timed = timed_reads(self.chunks, self.live.counts)
        with ahead(timed, self.stop) if self.read_ahead else nullcontext(timed) as coming:
            windows = self.sieve.windows(coming)
            first = next(windows, None)
            if first is None:
                # All rows are known: no worker has to be started to find that out.
                return _Done(self.sieve.table)
            return self._embed(chain([first], windows))

    def _embed(self, windows: Iterator[Window]) -> _Done:
        with self.use as pool, heap.given_back():
            startup_s = start(self.use)
            self.history.notes += self.use.notes
            self.live.pool, before = pool, pool.work
            committer = Committer(self.open_table, self.sieve, self.history)
            with closed_after_grace(self.use, self.stop):
                try:
                    self._stream(windows, pool, committer)
                except PoolClosed:
                    if not self.stop.obeyed():
                        raise
                finally:
                    # What is embedded is kept, also when the rest failed or was interrupted.
                    table = committer.finish() or self.sieve.table
            return _Done(table, pool.work.since(before), pool.workers, startup_s)

    def _stream(self, windows: Iterator[Window], pool: EmbeddingPool, committer: Committer) -> None:
        reuse = Reuse(pool.dim)
        parts = self._parts(windows, pool, reuse)
        for (window, shared), embedded in pool.stream(parts, texts=_texts_to_embed):
            self.sieve.counts.add(reused=shared.reused)
            committer.put(window, reuse.settle(shared, embedded))
            # Not held while the next one is waited for; it may be megabytes.
            del window, shared, embedded

    def _parts(
        self, windows: Iterator[Window], pool: EmbeddingPool, reuse: Reuse
    ) -> Iterator[tuple[Window, Shared]]:
        for window in windows:
            for part in window.cut(pool.window_ends(window.texts)):
                if self.stop.obeyed():
                    return
                yield part, reuse.plan(part.texts, part.text_keys)


def _texts_to_embed(part: tuple[Window, Shared]) -> pa.Array:
    return part[1].texts


def _indexed(table: Table, memory: int | str | None) -> list[str]:
    """Build the index when the table deserves one; an index that fails costs no row."""
    try:
        if table.wants_index():
            if short := _too_little(table.index_bytes(), memory):
                return [
                    f"the rows are committed, but no index was built, so searches scan: {short}"
                ]
            table.ensure_index()
    except StoreError as error:
        return [
            f"the rows are committed, but no index was built, so searches scan: {error}."
            " `memworker table optimize` tries again."
        ]
    return []


def _too_little(need: int, memory: int | str | None) -> str | None:
    """Say what is missing where building an index takes more than is allowed or there."""
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


def start(use: PoolUse) -> float:
    """Start a job's pool, if it has not been, and say how many seconds that took.

    Before an own one starts, what the machine can do is measured, if it is not known yet.
    """
    if use.own:
        limit.know_for(use.pool.identity.flops_per_token)
    made_s = use.pool.startup_seconds
    return use.pool.start().startup_seconds - made_s


def gemm_facts(made_with: Identity) -> dict[str, Any]:
    """Give what the report needs to name the share of the machine's limit."""
    return {
        "flops_per_token": made_with.flops_per_token,
        "gemm_flops_per_s": limit.recall(machine.usable_cores()),
    }


def existing(db: str | Path, name: str, space: VectorSpace) -> Table | None:
    """Open a table if it is there; raises TableMismatch when its vectors are of another kind."""
    try:
        table = Table.open(db, name)
    except TableNotFound:
        return None
    table.space.must_equal(space, name)
    return table


@dataclass(frozen=True, slots=True)
class Opened:
    """An input that is about to be read: its chunks, its names, and its files if it has any.

    Python records are not read ahead: their iterator may belong to one thread, as
    a database cursor does.
    """

    chunks: Iterator[Chunk]
    names: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    read_ahead: bool = False


def opened(
    given: Records,
    fields: Fields,
    *,
    limit: int | None,
    format: str | None,
    progress: ReadProgress,
) -> Opened:
    """Open paths or Python records, whichever `given` holds."""
    if isinstance(given, (str, Path)):
        given = [given]
    items = _items(given)
    first = next(items, None)
    if first is None:
        return Opened(iter(()), ())
    if not isinstance(first, (str, Path)):
        return Opened(read_records(chain([first], items), fields, limit=limit), (RECORDS_PATH,))
    paths = [first, *items]
    chunks = read(paths, fields, limit=limit, format=format, progress=progress)
    sources = tuple(expand(paths, format))
    return Opened(chunks, tuple(map(str, paths)), sources, read_ahead=True)


def _items(given: Any) -> Iterator[Any]:
    if isinstance(given, (pa.Table, pa.RecordBatch)):
        table = given if isinstance(given, pa.Table) else pa.Table.from_batches([given])
        return chain.from_iterable(batch.to_pylist() for batch in table.to_batches())
    if isinstance(given, (Mapping, bytes)) or not isinstance(given, Iterable):
        raise UsageError(
            "give paths, or an iterable of records such as [{'text': …}], not one"
            f" {type(given).__name__}"
        )
    return iter(given)


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

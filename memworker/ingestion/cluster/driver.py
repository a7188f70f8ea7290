"""The driver's side of a job on Ray: what the nodes have embedded, in the input's order."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker import diagnosis
from memworker.errors import ClusterFailed, MemworkerError, UsageError
from memworker.ingestion.ahead import ahead
from memworker.ingestion.cluster import nodes
from memworker.ingestion.cluster.cutting import looked_at, pieces_of
from memworker.ingestion.cluster.embedding import Embedder, HowToEmbed
from memworker.ingestion.cluster.parcels import EmbeddedPart, ReadPart, unpacked
from memworker.ingestion.cluster.parts import (
    HowToRead,
    InputPart,
    parts_of,
    read_table,
    refuse_streams,
)
from memworker.ingestion.cluster.runner import OnRay, is_dataset
from memworker.ingestion.loop import RunningJob
from memworker.ingestion.readers.objects import RECORDS_PATH
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import Reject
from memworker.ingestion.report import Setting
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.source import Input, JobOptions, open_input
from memworker.ingestion.stop import Stop
from memworker.ingestion.windows import Sieve, Window
from memworker.paths import Place
from memworker.pool import EmbeddingPool, PoolOptions, WorkTotals
from memworker.store import OnConflict, Output

# A batch is embedded on one node: smaller than on one machine, so that small inputs reach all.
_BATCH_ROWS = 4096
# So many rows, at most, are a file of the table where nodes write them.
_FILE_ROWS = 1 << 16
# From so many bytes of input on they do: what is less, one committer writes as quickly.
_LARGE_BYTES = 2 << 30
# So many blocks may be with an encoder at once, so that it does not wait for the next one.
_AT_ONCE = 2
# Not what encoders ask for, or Ray would read and embed in one process, one after the other.
_READER_CPUS = 0.5


@dataclass(slots=True)
class Cluster:
    """The encoders of a job, as progress and report see them."""

    nodes: int = 0
    work: WorkTotals = field(default_factory=WorkTotals)
    workers_of: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """How many workers have embedded something."""
        return sum(self.workers_of.values())

    def add(self, told: EmbeddedPart) -> None:
        """Add what a node's pool has done."""
        totals = {name: getattr(self.work, name) + value for name, value in told.work.items()}
        now = time.perf_counter()
        first = self.work.first_dispatch or now - told.took_s
        last = now if told.work.get("texts") else self.work.last_vector
        self.work = replace(
            self.work, **totals, first_dispatch=first, last_vector=last, read_at=now
        )
        if told.workers:
            self.workers_of[told.node] = told.workers
        self.notes = told.notes or self.notes


def refuse_with_ray(pool: EmbeddingPool | None, chunk: Any) -> None:
    """Raise UsageError for what nodes cannot take, or do not do."""
    if pool is not None:
        raise UsageError(
            "a pool (pool=) has its workers on this machine, and with runner='ray' each node has"
            " its own: give model=, precision= and workers= instead"
        )
    if chunk is not None:
        raise UsageError(
            "--chunk (chunk=) compares whole texts with the table as they come, which is done on"
            " one machine only: leave out --runner ray, or --chunk"
        )


def open_afar(given: Any, options: JobOptions, job: RunningJob, outputs: Sequence[Output]) -> Input:
    """Look at an input as `open_input` does, to be read on the nodes afterwards."""
    if is_dataset(given):
        return Input(iter(()), (RECORDS_PATH,), dataset=given)
    refuse_streams(given, options.sql)
    source = open_input(given, options, job, outputs)
    if not source.sources:
        raise UsageError(
            "with runner='ray' the input is files or a Ray Dataset: make one of Python records by"
            " ray.data.from_items(records)"
        )
    # What was found out so far is found again where the input is read.
    return replace(source, told=Findings())


@dataclass(slots=True)
class RayJob:
    """One job on a cluster: `windows` gives its embedded rows, in the order of the input."""

    on: OnRay
    source: Input
    options: JobOptions
    job: RunningJob
    stop: Stop
    pools: PoolOptions
    cluster: Cluster = field(default_factory=Cluster)
    startup_seconds: float = 0.0
    _fragments: bool = False
    _read: int = 0
    _part_began: int = 0
    _seen: bool = False
    _missing: MemworkerError | None = None
    _contested: set[str] = field(default_factory=set)

    @contextmanager
    def windows(
        self, sieve: Sieve, db: Place, table: str, here: EmbeddingPool
    ) -> Iterator[Iterator[tuple[Window, Any]]]:
        """Read and embed on the nodes; `here` embeds the few rows that turn out to be needed."""
        began = time.perf_counter()
        with nodes.joined(self.on.address) as ray:
            laid = nodes.usable(ray, self.pools.workers, self.on.encoders)
            self.cluster.nodes = laid.nodes
            self.job.afar = self.cluster
            pools = replace(self.pools, workers=laid.workers)
            how = HowToEmbed(pools, db, table, sieve.on_conflict, os.getcwd(), self._fragments)
            self.startup_seconds += time.perf_counter() - began
            with _blocks(ray, self._dataset(ray, laid, how), self.stop) as blocks:
                yield self._taken(blocks, sieve, here)

    def fragments(self, policy: OnConflict) -> bool:
        """Tell whether nodes write files of rows, or send their vectors to be written here."""
        commit = self.on.commit
        # An update takes a merge.
        if policy is OnConflict.UPDATE or commit == "driver":
            self._fragments = False
        elif commit == "fragments":
            self._fragments = True
        else:
            sizes = (os.path.getsize(each.path) for each in self.source.sources if not each.fault)
            self._fragments = sum(sizes) >= _LARGE_BYTES
        return self._fragments

    def setting(self, here: Setting) -> Setting:
        """Say how the job was run, where `here` says it of this process."""
        return replace(
            here,
            startup_seconds=here.startup_seconds + self.startup_seconds,
            workers=self.cluster.workers,
            notes=tuple(dict.fromkeys([*here.notes, *self.cluster.notes])),
            # What the machines of a cluster can do at most is not known here.
            gemm_flops_per_s=None,
        )

    def _dataset(self, ray: Any, laid: nodes.Nodes, how: Any) -> Any:
        from memworker.ingestion.cluster.reading import Parts

        with _context(ray):
            if self.source.dataset is not None:
                taken = partial(read_table, how=self._how())
                read = self.source.dataset.map_batches(
                    taken,
                    batch_size=_BATCH_ROWS,
                    batch_format="pyarrow",
                    num_cpus=_READER_CPUS,
                )
                _keep_order(read.context)
            else:
                parts = self._parts(ray)
                read = ray.data.read_datasource(
                    Parts(parts), override_num_blocks=len(parts), num_cpus=_READER_CPUS
                )
            return read.map_batches(
                Embedder,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    size=laid.encoders, max_concurrent_calls_per_actor=_AT_ONCE
                ),
                fn_constructor_args=[how],
                num_cpus=laid.cpus,
            )

    def _parts(self, ray: Any) -> list[InputPart]:
        how, part_bytes = self._how(), self.on.part_bytes
        sources = list(self.source.sources)
        if how.limit is not None:
            part_bytes = 1 << 62  # the first rows of an input are the first of one reader
        else:
            cut = [pieces_of(each, how.fields, part_bytes, looked_at(ray)) for each in sources]
            sources = [piece for pieces, _ in cut for piece in pieces]
            for _, note in cut:
                if note:
                    self.source.told.never_seen[note] = note
        parts = parts_of(sources, how, part_bytes)
        self.job.progress.total = sum(part.bytes for part in parts)
        return parts

    def _how(self) -> HowToRead:
        options = self.options
        return HowToRead(
            options.fields,
            options.max_text_bytes,
            options.allow_empty,
            options.limit,
            alone=len(self.source.sources) == 1,
            fields_seen=self.source.reading is not None and self.source.reading.fields_seen,
            folder=os.getcwd(),
            batch_rows=_FILE_ROWS if self._fragments else _BATCH_ROWS,
        )

    def _taken(
        self, blocks: Iterable[pa.Table], sieve: Sieve, here: EmbeddingPool
    ) -> Iterator[tuple[Window, Any]]:
        for block in blocks:
            for told, rows, known in unpacked(block, EmbeddedPart):
                self.cluster.add(told)
                self._note(told, sieve)
                if known is not None:
                    yield from self._needed(self._numbered(told.part, known), sieve, here)
                if told.fragment:
                    yield self._numbered(told.part, rows), told.fragment
                elif rows is not None:
                    yield _with_vectors(self._numbered(told.part, rows), told.failures)
                self._close(told.part)
        if not self.stop.cut_short and self._missing is not None and not self._seen:
            raise self._missing

    def _note(self, told: EmbeddedPart, sieve: Sieve) -> None:
        """Count what became of a batch's other rows, and list what was refused of them."""
        part, left = told.part, told.left
        self.job.progress.read += part.read_bytes
        sieve.counts.add(read=part.read, duplicates=left.duplicates, reused=told.reused)
        sieve.counts.add(conflicts=left.n_conflicts)
        sieve.refusals.add([self._moved(each) for each in (*part.rejects, *told.unstorable)])
        sieve.refusals.list([self._moved(each) for each in left.conflicts])
        if left.note and not sieve.notes:
            sieve.notes.append(left.note)
        self._contested.update(left.contested)
        self._seen |= part.fields_seen
        self._missing = self._missing or part.missing
        if part.found is not None:
            self.source.told.join(part.found)
        if part.error is not None:
            raise part.error

    def _needed(
        self, window: Window, sieve: Sieve, here: EmbeddingPool
    ) -> Iterator[tuple[Window, Any]]:
        """Embed rows that were known, and whose id has had another text in this run since."""
        if sieve.on_conflict is not OnConflict.UPDATE or not self._contested:
            return
        marks = pc.is_in(window.ids, pa.array(sorted(self._contested)))
        again = window.keep(marks.to_numpy(zero_copy_only=False))
        if len(again):
            sieve.counts.add(duplicates=-len(again))
            embedded = here.start().submit_rows(again.texts, kind="passage").result()
            yield again, WindowVectors(embedded.vectors, embedded.failures)

    def _numbered(self, part: ReadPart, rows: pa.RecordBatch) -> Window:
        """Give rows their numbers in the whole input; a node counts those of its part."""
        # Records stand in no file, and their number is their line.
        for name in ("ordinal", "line") if part.path == RECORDS_PATH else ("ordinal",):
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, name, pc.add(rows[name], self._part_began))
        return Window(part.path, rows)

    def _moved(self, reject: Reject) -> Reject:
        line = reject.line + self._part_began * (reject.path == RECORDS_PATH)
        return replace(reject, ordinal=reject.ordinal + self._part_began, line=line)

    def _close(self, part: ReadPart) -> None:
        self._read += part.read
        if part.found is not None:
            self._part_began = self._read


def _with_vectors(window: Window, failures: dict[int, str]) -> tuple[Window, Any]:
    vectors = window.rows["vector"]
    flat = vectors.flatten().to_numpy().reshape(len(vectors), -1)
    bare = window.rows.drop_columns(["vector"])
    return Window(window.path, bare), WindowVectors(np.asarray(flat), failures)


@contextmanager
def _blocks(ray: Any, dataset: Any, stop: Stop) -> Iterator[Iterator[pa.Table]]:
    """Run a dataset and give its blocks, in order; what fails in it is raised as ours."""

    def fetched() -> Iterator[pa.Table]:
        try:
            for bundle in dataset.iter_internal_ref_bundles():
                for block in bundle.blocks:
                    yield ray.get(block.ref)
        except MemworkerError:
            raise
        except Exception as error:
            raise _told(error) from error

    with ahead(fetched(), stop) as blocks:
        yield blocks


def _told(error: BaseException) -> MemworkerError:
    """Find what was raised on a node, below what Ray makes of it."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        # What Ray raises is of the class of its cause as well, and says a traceback.
        inner = getattr(seen, "cause", None)
        if isinstance(seen, MemworkerError) and inner is None:
            return seen
        last = seen
        seen = inner if isinstance(inner, BaseException) else seen.__cause__
    return ClusterFailed(
        f"the job on Ray ended early: {type(last).__name__}: {diagnosis.told(last)}. What was"
        " committed is safe; run the same command again to go on"
    )


@contextmanager
def _context(ray: Any) -> Iterator[None]:
    """Have Ray keep the order of rows, and leave blocks as they are: each a parcel."""
    before = ray.data.DataContext.get_current()
    context = before.copy()
    _keep_order(context)
    ray.data.DataContext._set_current(context)
    try:
        yield
    finally:
        ray.data.DataContext._set_current(before)


def _keep_order(context: Any) -> None:
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    context.target_min_block_size = 1

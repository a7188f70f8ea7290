"""A job on a few rows, into a table of its own that is removed again: what a row costs here.

It is the job itself, so that whatever bounds its speed (reading, cutting, embedding or
writing) bounds that of the rehearsal.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from memworker.ingestion.job import Target, run_job
from memworker.ingestion.loop import JobLoop, RunningJob
from memworker.ingestion.readers import ReadBatch, Source, read_sources
from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.rejects import RejectFile
from memworker.ingestion.report import Counts, IngestReport
from memworker.ingestion.source import Input, JobOptions
from memworker.ingestion.stop import Stop
from memworker.pool import EmbeddingPool, PoolUse
from memworker.store import VectorSpace

_NAME = "rehearsal"


@dataclass(slots=True)
class _Given:
    """How many rows a job got, and how much text."""

    rows: int = 0
    text_bytes: int = 0

    def noted(self, batches: Iterator[ReadBatch]) -> Iterator[ReadBatch]:
        for batch in batches:
            self.rows += batch.rows.num_rows
            self.text_bytes += batch.rows["text"].nbytes
            yield batch


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What so many new rows, with so many bytes of text, took: the job's report, and their size.

    `cpu_s` is processor time, of this process, its workers and what cuts texts; `cut_s` of the
    latter alone.
    """

    report: IngestReport
    rows: int
    text_bytes: int
    disk_bytes: int
    worker_s: float
    cpu_s: float
    cut_s: float

    @property
    def seconds(self) -> float:
        """From the first text to the last commit."""
        return self.report.seconds


def rehearsed(
    sources: Sequence[Source],
    reading: ReadOptions,
    pool: EmbeddingPool,
    target: Target,
    rows: int,
) -> Rehearsed:
    """Run the job on up to so many rows, where temporary files go. Raises what a job raises."""
    with tempfile.TemporaryDirectory(prefix="memworker-") as folder:
        given = _Given()
        read = read_sources(sources, reading, limit=rows)
        source = Input(given.noted(read), (), (), True)
        loop = JobLoop(PoolUse(pool, own=False), Stop(), RunningJob(Counts(), ReadProgress()))
        here = replace(target, db=Path(folder), table=_NAME, durable=False)
        refused = RejectFile(Path(folder) / "rejects.jsonl", lambda path: True)
        space = VectorSpace.of(pool.identity, target.distance)
        spent, cut = _cpu_s(pool), _ended_children_s()
        with refused:
            told = run_job(source, loop, here, space, JobOptions(reading.fields), refused)
        size = _bytes_under(Path(folder) / f"{_NAME}.lance")
        cut = _ended_children_s() - cut
        spent = _cpu_s(pool) - spent + cut
        worker_s = loop.work.tokenize_s + loop.work.encode_s
        # Rows that were met twice cost nothing, and say nothing of what the others cost.
        new = told.written / max(1, told.chunks or given.rows)
        rows, text_bytes = round(given.rows * new), round(given.text_bytes * new)
        return Rehearsed(told, rows, text_bytes, size, worker_s, spent, cut)


def _cpu_s(pool: EmbeddingPool) -> float:
    """Return the processor time of this process and of the workers that live."""
    spent = time.process_time()
    for pid in pool.worker_pids():
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            spent += times.user + times.system
    return spent


def _ended_children_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _bytes_under(folder: Path) -> int:
    return sum(
        os.stat(os.path.join(where, name)).st_size
        for where, _, names in os.walk(folder)
        for name in names
    )

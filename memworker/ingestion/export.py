"""Texts to a file of vectors, without a database: read, embed, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from memworker import values
from memworker.ingestion.fields import Fields
from memworker.ingestion.loop import JobLoop, RunningJob
from memworker.ingestion.readers import Dialect, ReadBatch
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.report import Counts, IngestReport, report
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.source import JobOptions, Records, open_input
from memworker.ingestion.stop import Stop
from memworker.ingestion.vectors_file import (
    VectorsFile,
    check_suffix,
    is_vectors_file,
    vectors_file,
)
from memworker.ingestion.windows import Window
from memworker.paths import PathGiven, used_path
from memworker.pool import (
    DEFAULT_MAX_TEXT_BYTES,
    DEFAULT_MODEL,
    PoolOptions,
    PrecisionGiven,
    TextKind,
    borrowed_or_own,
)
from memworker.store import Output, dedup_keys

_GAP_ROWS = 8192


def embed_to_file(
    inputs: Records,
    out: PathGiven,
    *,
    model: Any = DEFAULT_MODEL,
    precision: PrecisionGiven = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
    max_tokens: int | None = None,
    dim: int | None = None,
    max_text_bytes: int | None = None,
    text_field: str | Sequence[str] = "text",
    text_template: str | None = None,
    id_field: str = "id",
    id_template: str | None = None,
    dialect: Dialect | Mapping[str, Any] | None = None,
    sql: str | None = None,
    kind: TextKind = "passage",
    limit: int | None = None,
    format: str | None = None,
    on_error: str = "reject",
    rejects: PathGiven | None = None,
    overwrite: bool = False,
    observer: Callable[[RunningJob], None] | None = None,
) -> IngestReport:
    """Embed texts into a .npy (float32[n, dim]) or .parquet (id, text, vector) file.

    Row i is row i of the input; a rejected row is NaN (npy) or null (parquet),
    and is listed in the file `rejects` (default: OUT.rejects.jsonl). An empty
    text is embedded like any other. The file appears when it is complete. One that is
    there is replaced if it is empty or was made by this function, or with `overwrite`. A text
    over `max_text_bytes` (default: 1 MiB) is a bad row. `kind` "query" embeds what is
    looked for, with the model's own words before it. Fields, `dialect` and `sql`: see `ingest`.

    Raises UsageError, InputNotFound, MissingField, NoRows, ModelError,
    StoreUnwritable before anything is written; RowRejected with ``on_error="stop"``.
    """
    values.checked_choice("kind", kind, get_args(TextKind))
    check_suffix(used_path(out, "--out"))
    output = Output.checked(out, "--out", is_vectors_file, overwrite=overwrite)
    path = output.path
    options = JobOptions(
        Fields.of(text_field, id_field, None, False, text_template, id_template),
        limit=limit,
        format=format,
        dialect=Dialect.of(dialect),
        sql=sql,
        on_error=on_error,
        rejects=rejects,
        allow_empty=True,
        observer=observer,
        max_text_bytes=DEFAULT_MAX_TEXT_BYTES if max_text_bytes is None else max_text_bytes,
    )
    job, stop = RunningJob(Counts(), ReadProgress()), Stop()
    listed = options.reject_list(path.with_name(path.name + ".rejects.jsonl"), overwrite=overwrite)
    output.not_with(listed)
    source = open_input(inputs, options, job, [output, listed])
    began = time.perf_counter()
    use = borrowed_or_own(
        None,
        PoolOptions(
            model,
            precision,
            workers,
            memory,
            max_tokens,
            dim,
            max_text_bytes=options.max_text_bytes,
        ),
    )
    made_s = time.perf_counter() - began
    refused = source.reject_file(listed)
    loop = JobLoop(use, stop, job, startup_seconds=made_s)
    if observer is not None:
        observer(job)
    with vectors_file(path, use.pool.dim) as file, refused:
        refusals = options.refusals(job.counts, refused)
        sink = _Sink(file, refusals, use.pool.dim)
        with loop.running(), source.coming(job, stop) as batches:
            loop.run(_windows(batches, refusals), sink.take, kind=kind)
        sink.finish(job.counts.read)
        long = loop.truncation("into a table, cuts them into chunks")
        return report(job.counts, loop.work, loop.setting(refused, [*source.notes, *long]))


def _windows(batches: Iterable[ReadBatch], refusals: Refusals) -> Iterator[Window]:
    """Turn batches into windows whose rows keep their ids as they were."""
    for batch in batches:
        refusals.counts.add(read=batch.read)
        refusals.add(batch.rejects)
        keys = dedup_keys(batch.rows["text"])
        if batch.rows.num_rows:
            yield Window(batch.path, batch.rows.append_column("key", keys))


class _Sink:
    """Writes each row at its ordinal; refused rows between them are NaN."""

    def __init__(self, file: VectorsFile, refusals: Refusals, dim: int) -> None:
        self._file, self._refusals, self._dim = file, refusals, dim
        self._next = 0

    def take(self, window: Window, outcome: WindowVectors) -> None:
        """Write the rows of a window, and the gaps before them."""
        self._refusals.add(window.rejects(outcome.failures))
        ordinals = window.rows["ordinal"].to_numpy()
        self._skip_to(int(ordinals[0]))
        rows = int(ordinals[-1]) + 1 - self._next
        if rows == len(ordinals):
            self._file.write(outcome.vectors, window.texts, window.ids)
        else:
            vectors = np.full((rows, self._dim), np.nan, np.float32)
            vectors[ordinals - self._next] = outcome.vectors
            sources = np.full(rows, -1, np.int64)
            sources[ordinals - self._next] = np.arange(len(ordinals))
            taken = pa.array(sources, mask=sources < 0)
            self._file.write(vectors, window.texts.take(taken), window.ids.take(taken))
        self._next += rows

    def finish(self, read: int) -> None:
        """Write what was refused behind the last good row."""
        self._skip_to(read)

    def _skip_to(self, row: int) -> None:
        # In blocks: a whole file may have been refused.
        while (rows := min(row - self._next, _GAP_ROWS)) > 0:
            none = pa.nulls(rows, pa.string())
            self._file.write(np.full((rows, self._dim), np.nan, np.float32), none, none)
            self._next += rows

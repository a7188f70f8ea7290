"""Texts to a file of vectors, without a database: read, embed, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from memworker import heap
from memworker.errors import RowRejected
from memworker.ingest.ahead import ahead, timed_reads
from memworker.ingest.job import Live, checked_choice, gemm_facts, not_empty, start
from memworker.ingest.readers import Chunk, Fields, read
from memworker.ingest.records import ReadProgress, Reject, rejected
from memworker.ingest.rejects import RejectFile
from memworker.ingest.report import Counts, IngestReport, Setting, report
from memworker.ingest.reuse import Outcome, Reuse, Shared
from memworker.ingest.stop import Stop
from memworker.ingest.vectors_file import VectorsFile, check_suffix, vectors_file
from memworker.pool.opening import borrowed_or_own
from memworker.pool.pool import DEFAULT_MODEL
from memworker.store import dedup_keys


def embed_to_file(
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    model: Any = DEFAULT_MODEL,
    precision: str = "fp32",
    workers: int | None = None,
    memory: int | str | None = None,
    max_tokens: int | None = None,
    text_field: str = "text",
    id_field: str = "id",
    limit: int | None = None,
    format: str | None = None,
    on_error: str = "reject",
    rejects: str | Path | None = None,
    observer: Callable[[Live], None] | None = None,
) -> IngestReport:
    """Embed texts into a .npy (float32[n, dim]) or .parquet (id, text, vector) file.

    Row i is row i of the input; a rejected row is NaN (npy) or null (parquet),
    and is listed in the file `rejects` (default: OUT.rejects.jsonl). An empty
    text is embedded like any other. The file appears when it is complete.

    Raises UsageError, InputNotFound, MissingField, NoRows, ModelError,
    StoreUnwritable before anything is written; RowRejected with ``on_error="stop"``.
    """
    path = Path(out)
    check_suffix(path)
    stop = checked_choice("on_error", on_error, ("reject", "stop")) == "stop"
    fields = Fields(text_field, id_field, metadata=False)
    progress = ReadProgress()
    chunks = not_empty(
        read(inputs, fields, limit=limit, format=format, allow_empty=True, progress=progress)
    )
    began = time.perf_counter()
    options = {"precision": precision, "max_tokens": max_tokens}
    use = borrowed_or_own(None, model, workers=workers, memory=memory, **options)
    kind = use.pool.identity
    counts = Counts()
    refused = RejectFile(Path(rejects) if rejects else path.with_name(path.name + ".rejects.jsonl"))
    with (
        vectors_file(path, kind.dim) as file,
        refused,
        use as pool,
        ahead(timed_reads(chunks, counts), Stop()) as coming,
        heap.given_back(),
    ):
        start(use)
        startup_seconds = time.perf_counter() - began
        if observer is not None:
            observer(Live(counts, progress, pool))
        export = _Export(file, refused, counts, stop)
        reuse = Reuse(pool.dim)
        parts = ((chunk, _planned(chunk, reuse)) for chunk in coming)
        for (chunk, shared), embedded in pool.stream(parts, texts=_texts_to_embed):
            counts.add(reused=shared.reused)
            export.write(chunk, reuse.settle(shared, embedded))
            # Not held while the next one is waited for; it may be megabytes.
            del chunk, shared, embedded
        setting = Setting(
            startup_seconds=startup_seconds,
            workers=pool.workers,
            model=kind.name,
            precision=kind.precision,
            rejects=str(refused.path) if refused.rows else None,
            notes=use.notes,
            **gemm_facts(kind),
        )
        return report(counts, pool.work, setting)


def _planned(chunk: Chunk, reuse: Reuse) -> Shared:
    texts = chunk.rows["text"]
    return reuse.plan(texts, dedup_keys(texts))


def _texts_to_embed(part: tuple[Chunk, Shared]) -> pa.Array:
    return part[1].texts


@dataclass(frozen=True, slots=True)
class _Export:
    file: VectorsFile
    rejects: RejectFile
    counts: Counts
    stop_at_reject: bool

    def write(self, chunk: Chunk, outcome: Outcome) -> None:
        """Write a chunk's rows in their places, the refused ones as NaN."""
        self.counts.add(read=chunk.read)
        self._refuse([*chunk.rejects, *_failures(chunk, outcome)])
        texts, ids = chunk.rows["text"], chunk.rows["id"]
        if not chunk.rejects:
            self.file.write(outcome.vectors, texts, ids)
            return
        places = chunk.rows["ordinal"].to_numpy()
        places = places - min([*places[:1].tolist(), *(reject.ordinal for reject in chunk.rejects)])
        vectors = np.full((chunk.read, outcome.vectors.shape[1]), np.nan, np.float32)
        vectors[places] = outcome.vectors
        sources = np.full(chunk.read, -1, np.int64)
        sources[places] = np.arange(len(places))
        rows = pa.array(sources, mask=sources < 0)
        self.file.write(vectors, texts.take(rows), ids.take(rows))

    def _refuse(self, rejects: list[Reject]) -> None:
        self.counts.add(rejected=len(rejects))
        self.rejects.add(rejects)
        if rejects and self.stop_at_reject:
            first = rejects[0]
            raise RowRejected(f"{first.path}:{first.line}: {first.reason}. Nothing was written.")


def _failures(chunk: Chunk, outcome: Outcome) -> list[Reject]:
    failures = sorted(outcome.failures.items())
    return [rejected(chunk.path, chunk.rows, row, reason) for row, reason in failures]

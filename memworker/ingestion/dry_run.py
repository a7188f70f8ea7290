"""What an ingest would do, from a sample of its input: nothing of it is done.

::

    sources ─► survey: pieces of each ─► rows, fields, what is wrong, tokens of its texts
                         │
                         └─► rehearsal: the job on a few rows ─► seconds and bytes a row
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from memworker.chunking import ChunkGiven, Chunking, chunking_of
from memworker.errors import NoRows, UsageError
from memworker.ingestion.chunks import cut_for
from memworker.ingestion.job import Target
from memworker.ingestion.readers import Dialect, Fields, Reject, found, read_options
from memworker.ingestion.rehearsal import Rehearsed, rehearsed
from memworker.ingestion.source import Records
from memworker.ingestion.survey import Survey, dialect_of, smaller, surveyed
from memworker.paths import DatabaseGiven, is_path, shown_name
from memworker.pool import (
    DEFAULT_MAX_TEXT_BYTES,
    DEFAULT_MODEL,
    EmbeddingPool,
    PoolOptions,
    PrecisionGiven,
    TokenCounter,
    borrowed_or_own,
    is_auto,
    machine,
)
from memworker.store import (
    INDEX_MIN_ROWS,
    OnConflict,
    VectorSpace,
    built_apart,
    database_path,
    table_name,
)

_TOKENISED = 4000, 1 << 20
_REJECTS_TOLD = 10
_FIELDS_TOLD = 100
# A rehearsal works about so long, on so many rows at most.
_REHEARSAL_S = 1.5
_FIRST_ROWS, _MOST_ROWS = 64, 20_000
# Of the vector index, measured on two quiet cores for 64 to 768 dimensions and 50,000 to 400,000
# rows, within 15 %: where a child builds it, its start and what it learns the index from, row by
# row, the same however many rows there are; then each number.
_INDEX_START_S, _INDEX_LEARNT_S_A_DIM, _INDEX_S_A_NUMBER = 0.9, 1.5 / 384, 3e-8
_INDEX_BYTES_BESIDE = 12


@dataclass(frozen=True, slots=True)
class FieldFound:
    """A field of the input: kinds of its values, the share of rows that have one, what it makes."""

    name: str
    kinds: tuple[str, ...]
    share: float
    use: str


@dataclass(frozen=True, slots=True)
class TokensFound:
    """Tokens of the texts, special ones included; `truncated` is the share over the limit.

    Where `estimated`, the model's tokenizer is not known, and they are reckoned by bytes.
    """

    mean: float
    median: float
    p99: float
    limit: int
    truncated: float
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """What an ingest would do, as a sample of its input shows.

    `rows` there are in all: counted, where `rows_counted`, else estimated, and None where
    nothing tells. Of `sampled` rows `rejected` would be refused, some of which are told, by
    line 0 where that is not known. `seconds` go from the first text to the last commit,
    `startup_seconds` before, `index_seconds` after it; `bytes` is what the table takes on the
    disk, its index included. Rows that the table has already, and equal texts, count as new.
    """

    files: int
    input_bytes: int
    formats: tuple[str, ...]
    encodings: tuple[str, ...]
    dialect: str
    rows: int | None
    rows_counted: bool
    sampled: int
    rejected: int
    rejects: tuple[Reject, ...]
    fields: tuple[FieldFound, ...]
    text: str
    id: str
    tokens: TokensFound | None
    chunks: int | None
    seconds: float | None
    index_seconds: float
    startup_seconds: float
    bytes: int | None
    index_bytes: int
    model: str
    precision: str
    workers: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as plain values, for JSON."""
        return asdict(self)


def plan_ingest(
    records_or_paths: Records,
    *,
    db: DatabaseGiven,
    table: str,
    storage_options: Mapping[str, str] | None = None,
    format: str | None = None,
    dialect: Dialect | Mapping[str, Any] | None = None,
    sql: str | None = None,
    limit: int | None = None,
    chunk: ChunkGiven = None,
    overlap: int | None = None,
    contextual: bool | None = None,
    text_field: str | Sequence[str] = "text",
    id_field: str = "id",
    text_template: str | None = None,
    id_template: str | None = None,
    metadata: bool | str | Sequence[str] | None = None,
    scope: Mapping[str, str] | None = None,
    distance: str = "cosine",
    pool: EmbeddingPool | None = None,
    model: Any = DEFAULT_MODEL,
    workers: int | None = None,
    precision: PrecisionGiven = "fp32",
    max_tokens: int | None = None,
    memory: int | str | None = None,
    dim: int | None = None,
    max_text_bytes: int | None = None,
) -> IngestPlan:
    """Say what `ingest` with these arguments would do, from a sample of the input's files.

    Nothing is made where the table would be. A few of the sample's rows are embedded and
    written in the folder for temporary files, and removed, to know how long the rest takes
    here; and what the model needs is fetched as for `ingest`.

    Raises what `ingest` raises before it writes, and UsageError for what can be read once only.
    """
    fields = Fields.of(text_field, id_field, scope, metadata, text_template, id_template)
    chunking = chunking_of(chunk, overlap, contextual)
    paths = _paths(records_or_paths)
    target = Target(
        database_path(db, storage_options),
        table_name(table),
        distance,
        OnConflict.UPDATE,
        False,
        0.0,
        memory,
    )
    there = found(paths, format, [target.reject_list.path], dialect=Dialect.of(dialect), sql=sql)
    for source in there.sources:
        if source.stream:
            raise UsageError(
                f"{source.told} can be read once only, so a dry run would leave nothing for the"
                " run itself; write it to a file, or leave out --dry-run"
            )
    largest = max_text_bytes or (pool.max_text_bytes if pool else DEFAULT_MAX_TEXT_BYTES)
    reading = read_options(fields, max_text_bytes=largest)
    survey = surveyed(there.sources, reading, limit)
    if not survey.seen:
        raise NoRows("the input holds no rows; nothing was written")
    pools = PoolOptions(
        model, precision, workers, memory, max_tokens, dim, True, max_text_bytes=largest
    )
    held = target.space()
    if pool is None and held is not None and is_auto(precision):
        pools = pools.for_table(held.model, held.precision)
    use = borrowed_or_own(pool, pools)
    with use:
        if chunking is not None:
            target = replace(target, chunking=cut_for(chunking, use.pool.identity))
        target.existing(VectorSpace.of(use.pool.identity, distance))
        left_out = there.left_out.told()
        notes = [*([left_out] if left_out else []), *reading.told.notes, *_notes(survey)]
        return _planned(survey, fields, target, use.pool, [*notes, *use.notes])


def _paths(given: Records) -> list[Any]:
    paths = [given] if is_path(given) else list(given) if isinstance(given, list | tuple) else []
    if not paths or not all(map(is_path, paths)):
        raise UsageError("a dry run is for files: name a path, or a list of paths")
    return paths


def _planned(
    survey: Survey, fields: Fields, target: Target, pool: EmbeddingPool, notes: list[str]
) -> IngestPlan:
    texts = survey.texts(*_TOKENISED)
    cost = _RowCosts()
    if texts:
        pool.start()
        cost = _costs(survey, fields, target, pool)
    tokens, longer = _tokens(texts, survey, pool, cost, target.chunking)
    rows = survey.rows
    accepted = 0.0 if rows is None else rows * survey.accepted / survey.seen
    written = accepted * cost.written_a_row * (longer if target.chunking else 1.0)
    indexed = written >= INDEX_MIN_ROWS
    index_bytes = round(written * (pool.dim + _INDEX_BYTES_BESIDE)) if indexed else 0
    index_s = _index_s(written, pool.dim) if indexed else 0.0
    known = rows is not None and bool(texts)
    seconds = cost.seconds(accepted * longer)
    sources = survey.sources
    return IngestPlan(
        files=len(sources),
        input_bytes=survey.size,
        formats=tuple(sorted({source.format for source in sources})),
        encodings=tuple(dict.fromkeys(survey.encodings)),
        dialect=dialect_of(survey),
        rows=rows,
        rows_counted=survey.counted,
        sampled=survey.seen,
        rejected=len(survey.rejects),
        rejects=tuple(survey.rejects[:_REJECTS_TOLD]),
        fields=tuple(_fields(survey, fields)),
        text=fields.told().get("text_template", fields.told()["text_field"]),
        id=fields.told().get("id_template", fields.id),
        tokens=tokens,
        chunks=round(written) if known and target.chunking else None,
        seconds=round(seconds, 2) if known else None,
        index_seconds=round(index_s, 2),
        startup_seconds=round(pool.startup_seconds, 2),
        bytes=round(written * cost.bytes_a_row) + index_bytes if known else None,
        index_bytes=index_bytes,
        model=pool.identity.name,
        precision=pool.identity.precision,
        workers=pool.workers,
        notes=tuple(notes),
    )


def _index_s(rows: float, dim: int) -> float:
    """Foretell how long building the vector index takes."""
    once = _INDEX_START_S + dim * _INDEX_LEARNT_S_A_DIM if built_apart(rows, dim) else 0.05
    return once + rows * dim * _INDEX_S_A_NUMBER


@dataclass(frozen=True, slots=True)
class _RowCosts:
    """What rows cost: the rehearsed ones with all that is done once, and each behind them."""

    base_s: float = 0.0
    base_rows: int = 1
    row_s: float = 0.0
    written_a_row: float = 1.0
    bytes_a_row: float = 0.0
    tokens_a_row: float = 0.0
    bytes_of_text: float = 1.0

    def seconds(self, rows: float) -> float:
        """Say how long so many rows take, from the first text to the last commit."""
        if rows <= self.base_rows:
            return self.base_s * rows / self.base_rows
        return self.base_s + (rows - self.base_rows) * self.row_s


def _costs(survey: Survey, fields: Fields, target: Target, pool: EmbeddingPool) -> _RowCosts:
    """Rehearse the job with more and more rows, up to what takes about a second."""

    def rehearse(rows: int) -> Rehearsed:
        reading = read_options(fields, max_text_bytes=pool.max_text_bytes)
        return rehearsed(smaller(survey, rows), reading, pool, target, rows)

    first = last = rehearse(_FIRST_ROWS)
    # Twice: what a few rows took says little, for much is done once, or slowly at first.
    for spent_s in (_REHEARSAL_S / 4, _REHEARSAL_S):
        each_s = last.worker_s / max(1, last.rows * pool.workers)
        rows = int(min(_MOST_ROWS, survey.accepted, spent_s / max(1e-6, each_s)))
        if rows > 2 * last.rows:
            first, last = last, rehearse(rows)
    written = last.report.written
    return _RowCosts(
        base_s=last.seconds,
        base_rows=max(1, last.rows),
        row_s=_steady_s(first, last, pool.workers),
        written_a_row=written / max(1, last.rows),
        bytes_a_row=last.disk_bytes / max(1, written),
        tokens_a_row=last.report.tokens / max(1, last.rows),
        bytes_of_text=last.text_bytes / max(1, last.rows),
    )


def _steady_s(first: Rehearsed, last: Rehearsed, workers: int) -> float:
    """Say what a row costs once reading, embedding and writing go on at the same time.

    A rehearsal is too short for that: it does one after the other.
    """
    more = last.rows - first.rows
    if more <= 0:
        return last.seconds / max(1, last.rows)
    spent = {
        stage: max(0.0, last.report.time[stage] - first.report.time[stage]) / more
        for stage in ("read", "tokenize", "encode", "write")
    }
    embedding = (spent["tokenize"] + spent["encode"]) / max(1, workers)
    cutting = max(0.0, last.cut_s - first.cut_s) / more
    # Of processor time: by the clock, each would count what it waited while the others had the
    # cores, too.
    shared = max(0.0, last.cpu_s - first.cpu_s) / more / machine.usable_cores()
    return max(spent["read"], spent["write"], embedding, cutting, shared)


def _tokens(
    texts: list[str],
    survey: Survey,
    pool: EmbeddingPool,
    cost: _RowCosts,
    chunking: Chunking | None,
) -> tuple[TokensFound | None, float]:
    """Count tokens; say also how much longer the sample's texts are than those rehearsed."""
    if not texts:
        return None, 1.0
    longer = survey.text_bytes / max(1, survey.accepted) / max(1.0, cost.bytes_of_text)
    made, limit = pool.identity.tokenization, pool.identity.max_tokens or 0
    if made is None:
        lengths = np.array([len(text.encode()) for text in texts])
        counts = lengths * (cost.tokens_a_row / max(1.0, cost.bytes_of_text))
    else:
        counter = TokenCounter(made)
        counts = np.array(counter.count(texts)) + counter.around
        if chunking is None and cost.tokens_a_row:
            # Of a text that is cut off the model sees no more than its limit.
            seen = np.minimum(counts, limit) if limit else counts
            longer = float(seen.mean()) / cost.tokens_a_row
    mean, median = float(counts.mean()), float(np.median(counts))
    over = float((counts > limit).mean()) if limit and made is not None else 0.0
    p99 = float(np.percentile(counts, 99))
    mean, median, p99 = (round(each, 1) for each in (mean, median, p99))
    return TokensFound(mean, median, p99, limit, round(over, 4), made is None), longer


def _fields(survey: Survey, fields: Fields) -> list[FieldFound]:
    names = sorted(survey.kinds, key=lambda name: -survey.with_value[name])[:_FIELDS_TOLD]
    of_scopes = {name: column for column, name in fields.scopes}
    told = []
    for name in names:
        uses = ["text"] if name in fields.texts else []
        uses += ["id"] if name in fields.ids else []
        uses += [of_scopes[name]] if name in of_scopes else []
        kept = fields.metadata is True or name in (fields.metadata or ())
        uses += ["metadata"] if kept and name not in fields.used else []
        kinds = tuple(kind for kind, _ in _common(survey.kinds[name]))
        share = survey.with_value[name] / max(1, survey.looked_at)
        told.append(FieldFound(name, kinds, round(share, 4), ", ".join(uses)))
    return told


def _common(kinds: Counter[str]) -> list[tuple[str, int]]:
    return kinds.most_common(3)


def _notes(survey: Survey) -> list[str]:
    notes = []
    if survey.rows is None:
        notes.append("how many rows there are took too long to count, so no time is predicted")
    if survey.heads:
        notes.append(
            "of packed files, and of those with rows over several lines, only the beginning was"
            " looked at; if the rest is of another kind, the figures are off"
        )
    if len(survey.kinds) > _FIELDS_TOLD:
        notes.append(
            f"there are {len(survey.kinds):,} fields; the {_FIELDS_TOLD} commonest are told"
        )
    return [shown_name(note) for note in notes]

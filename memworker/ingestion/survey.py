"""A sample of an input: how many rows it has, which fields, which texts, what is wrong with it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from memworker.errors import InputError
from memworker.ingestion.readers import (
    Dialect,
    ReadBatch,
    Reject,
    Source,
    databases,
    delimited,
    read_sources,
)
from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.readers.delimited import UNCLOSED
from memworker.ingestion.readers.encodings import TornStream, encoding_of
from memworker.ingestion.readers.objects import ObjectRows, type_name
from memworker.ingestion.readers.sampling import FileSample, spread
from memworker.ingestion.readers.shapes import Shape, shape_of
from memworker.ingestion.readers.streams import byte_blocks, text_blocks

BUDGET = 8 << 20
_HEAD = 64 << 10
_FILES = 64
_LEAST = 64 << 10
# What a query gives at most, and how long its rows may be counted.
_ROWS_OF_QUERY = 20_000
_COUNTING_S = 1.5
# After so long no other file of many is looked into.
_LOOKING_S = 2.0
_TEXT = ("jsonl", "json", "csv", "tsv", "txt")
_QUERIES = ("sqlite", "duckdb")
_ARROW_KINDS = (
    (("string", "large_string", "string_view", "dictionary"), "a string"),
    (("int", "uint", "float", "double", "half", "decimal"), "a number"),
    (("bool",), "true or false"),
    (("struct", "map"), "an object"),
    (("list", "large_list", "fixed_size_list"), "an array"),
)


@dataclass(slots=True)
class SampledPart:
    """What the sample of one source gave; `rows` there are in all, which may be an estimate."""

    source: Source
    seen: int
    rows: float | None
    counted: bool


@dataclass(slots=True)
class Survey:
    """What a sample of an input shows.

    `rows` is None where nothing tells how many there are. `encodings` and `cells` are those of
    files of text; `told_of_rows` says what the number stands on.
    """

    sources: Sequence[Source]
    rows: int | None = 0
    counted: bool = True
    size: int = 0
    batches: list[ReadBatch] = field(default_factory=list)
    parts: list[SampledPart] = field(default_factory=list)
    seen: int = 0
    rejects: list[Reject] = field(default_factory=list)
    with_value: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    looked_at: int = 0
    encodings: list[str] = field(default_factory=list)
    heads: int = 0

    @property
    def accepted(self) -> int:
        """Rows of the sample that would be taken."""
        return self.seen - len(self.rejects)

    @property
    def text_bytes(self) -> int:
        """How much text the sample's rows have."""
        return sum(batch.rows["text"].nbytes for batch in self.batches)

    def texts(self, most_rows: int, most_bytes: int) -> list[str]:
        """Choose texts from all of the sample, evenly."""
        columns = [batch.rows["text"] for batch in self.batches if batch.rows.num_rows]
        if not columns:
            return []
        whole = pa.chunked_array(columns)
        count = min(most_rows, max(1, int(len(whole) * most_bytes / max(1, whole.nbytes))))
        chosen: list[str] = whole.take(pa.array(spread(len(whole), count))).to_pylist()
        return chosen

    def look(self, rows: ObjectRows | pa.RecordBatch) -> None:
        """Count which fields have values, and of what kind."""
        if isinstance(rows, ObjectRows):
            for i, each in enumerate(rows.objects):
                if i not in rows.faults:
                    self._look_at(each.items())
            return
        self.looked_at += rows.num_rows
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            self._found(name, _arrow_kind(column.type), len(column) - column.null_count)

    def _look_at(self, items: Iterable[tuple[str, Any]]) -> None:
        self.looked_at += 1
        for name, value in items:
            missing = value is None or value == ""
            self._found(name, "" if missing else type_name(value), 0 if missing else 1)

    def _found(self, name: str, kind: str, count: int) -> None:
        self.with_value[name] += count
        kinds = self.kinds.setdefault(name, Counter())
        if count:
            kinds[kind] += count


def surveyed(sources: Sequence[Source], reading: ReadOptions, limit: int | None) -> Survey:
    """Read a sample of files, each by pieces of it, and estimate the rest.

    Raises what reading them raises, where none of the sources gives rows.
    """
    found = Survey(sources)
    reading.looked_at = found.look
    sizes = [_size(source) for source in sources]
    found.size = sum(sizes)
    chosen = spread(len(sources), _FILES)
    shared = sum(sizes[at] for at in chosen) or 1
    deadline = time.monotonic() + _LOOKING_S
    failed: InputError | None = None
    for at in chosen:
        if found.parts and time.monotonic() > deadline:
            break
        budget = max(_LEAST, BUDGET * sizes[at] // shared)
        try:
            _add(found, _sampled(sources[at], budget, reading, found), sizes[at], reading, limit)
        except InputError as error:
            if len(sources) == 1:
                raise
            failed = failed or error
            found.parts.append(SampledPart(sources[at], 1, 1, True))
            found.rejects.append(Reject(sources[at].path, 1, found.seen, str(error)))
            found.seen += 1
    if failed is not None and not found.batches:
        raise failed
    _add_up(found, sizes, limit)
    return found


def smaller(found: Survey, rows: int) -> list[Source]:
    """Give samples of the same files with about so many rows, from as many places."""
    share = 1.2 * rows / max(1, found.seen)
    sources = []
    for part in found.parts:
        sample = part.source.sample
        if sample is not None:
            places = 1 if sample.places == 1 else max(2, min(64, rows // 32))
            budget = max(4 << 10, int(sample.budget * share))
            sample = FileSample(budget, places, sample.newline)
        sources.append(replace(part.source, sample=sample))
    return [sources[at] for at in spread(len(sources), rows)]


def _size(source: Source) -> int:
    try:
        return os.stat(source.path).st_size
    except OSError:
        return 0


def _sampled(source: Source, budget: int, reading: ReadOptions, found: Survey) -> Source:
    """Say how a file is sampled: text by its lines, if a line is a row or more."""
    if source.fault or source.format in (*_QUERIES, "document"):
        return source
    sample = FileSample(budget)
    if source.format in _TEXT:
        head = replace(source, sample=FileSample(_HEAD, 1))
        try:
            raw = b"".join(byte_blocks(head))
            name, _ = encoding_of(source.told, raw, source.dialect.encoding or "")
            found.encodings.append(name)
            sample.newline = _newline(name)
            if _spans_lines(replace(source, sample=FileSample(_HEAD, 1)), reading):
                sample.places = 1
        except TornStream:
            pass  # the reader tells what is wrong, and of which row
    return replace(source, sample=sample)


def _newline(encoding: str) -> bytes:
    width = {"utf_16": 2, "utf_32": 4}.get(encoding.replace("-", "_")[:6], 0)
    # "utf-16" alone would write a mark before it.
    return "\n".encode(encoding)[-width:] if width else "\n".encode(encoding)


def _spans_lines(head: Source, reading: ReadOptions) -> bool:
    """Tell whether a row of the file may stand on several lines."""
    if head.format in ("jsonl", "json"):
        shape, _ = shape_of(text_blocks(head), reading.max_line_bytes)
        return shape is Shape.VALUES
    if head.format == "txt":
        return False
    looking = replace(reading, looked_at=None)
    return any(
        "\n" in cell
        for rows in delimited.read_rows(head, looking)
        for each in rows.objects
        for cell in each.values()
        if isinstance(cell, str)
    )


def _add(found: Survey, source: Source, size: int, reading: ReadOptions, limit: int | None) -> None:
    of_query = source.format in _QUERIES
    most = min(limit or _ROWS_OF_QUERY, _ROWS_OF_QUERY) if of_query else limit
    batches = list(read_sources([source], reading, limit=most))
    sample = source.sample
    rejects = [reject for batch in batches for reject in batch.rejects]
    seen = sum(batch.read for batch in batches)
    if sample is not None and sample.is_head:
        seen = _before_cut_off(rejects, seen)
        rejects = [each for each in rejects if each.ordinal < seen]
        found.heads += 1
    rows: float | None = float(seen)
    counted = sample is None or sample.whole
    if of_query and seen == most and seen != limit:
        rows = databases.count_rows(source, _COUNTING_S)
    elif sample is not None and sample.rows is not None:
        rows, counted = float(sample.rows), sample.whole or source.format == "parquet"
    elif sample is not None and not sample.whole:
        rows = seen * (sample.size or size) / max(1, sample.read)
    found.parts.append(SampledPart(source, seen, rows, counted))
    cut = (batch for batch in batches if batch.rows.num_rows)
    found.batches += [_rows_before(batch, seen) for batch in cut]
    exact = sample is None or sample.whole
    found.rejects += rejects if exact else [replace(each, line=0) for each in rejects]
    found.seen += seen


def _rows_before(batch: ReadBatch, end: int) -> ReadBatch:
    kept = pc.less(batch.rows["ordinal"], end)
    return replace(batch, rows=batch.rows.filter(kept), rejects=())


def _before_cut_off(rejects: list[Reject], seen: int) -> int:
    """Say how many rows stand before one that the sample's end cut off."""
    # Lines behind an open quote were read as rows of their own.
    open_ones = [each.ordinal for each in rejects if UNCLOSED in each.reason]
    if open_ones:
        return open_ones[-1]
    return seen - 1 if rejects and rejects[-1].ordinal == seen - 1 else seen


def _add_up(found: Survey, sizes: list[int], limit: int | None) -> None:
    """Estimate what the files have in all that were not looked into."""
    known = [part.rows for part in found.parts]
    if any(rows is None for rows in known):
        found.rows, found.counted = limit, False
        return
    rows = sum(each or 0.0 for each in known)
    looked = {part.source.path for part in found.parts}
    left = [n for source, n in zip(found.sources, sizes, strict=True) if source.path not in looked]
    if left:
        documents = all(part.source.format == "document" for part in found.parts)
        per_file = rows / len(found.parts)
        per_byte = rows / max(1, found.size - sum(left))
        rows += len(left) * per_file if documents else sum(left) * per_byte
    found.counted = not left and all(part.counted for part in found.parts)
    found.rows = round(rows) if limit is None else min(limit, round(rows))


def _arrow_kind(kind: pa.DataType) -> str:
    name = str(kind)
    for begins, told in _ARROW_KINDS:
        if name.startswith(begins):
            return told
    return name


def dialect_of(found: Survey) -> str:
    """Say how the cells of the first file of cells are parted, as it was found; "" without one."""
    for part in found.parts:
        sample = part.source.sample
        if sample is not None and sample.cells is not None:
            given: Dialect = part.source.dialect
            mark = "a tab" if sample.cells.delimiter == "\t" else repr(sample.cells.delimiter)
            quoted = f"quoted by {sample.cells.quotechar}" if sample.cells.quotechar else "unquoted"
            if sample.cells.escapechar:
                quoted += f", escaped by {sample.cells.escapechar}"
            header = "with a header" if given.header else "without a header"
            return f"cells parted by {mark}, {quoted}, {header}"
    return ""

"""Parquet and Arrow files: texts stay in Arrow all the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from memworker.errors import InputError
from memworker.ingestion.fields import Fields, splits
from memworker.ingestion.readers.checked import (
    CheckedRows,
    ReadOptions,
    broken_rows,
    column_faults,
    distinct,
)
from memworker.ingestion.readers.columns import ColumnTaker, inside, is_stringlike
from memworker.ingestion.readers.encodings import TornStream
from memworker.ingestion.readers.jsonl import excerpt
from memworker.ingestion.readers.objects import (
    RECORDS_PATH,
)
from memworker.ingestion.readers.paths import Source
from memworker.ingestion.readers.pieces import RowGroups
from memworker.ingestion.readers.streams import is_packed, spooled
from memworker.ingestion.records import EXCERPT_CHARS, row_batch

_BATCH_BYTES = 64 << 20
_ARROW_MAGIC = b"ARROW1"
_UNREADABLE = (pa.ArrowException, TornStream, OSError, EOFError)
_Batches = Iterator["pa.RecordBatch | _UnreadableRows"]


class _UnreadableRows:
    """Rows that are there and cannot be read: how many, and why."""

    def __init__(self, rows: int, reason: str) -> None:
        self.rows, self.reason = rows, reason


def read_rows(source: Source, options: ReadOptions) -> Iterator[CheckedRows]:
    """Yield the rows of a Parquet or Arrow file; `lines` are row numbers.

    A row group that cannot be read costs its rows, each by itself, and a record batch of
    an Arrow file one row, for it does not say how many it held.
    Raises InputError if the text, id or a scope column has a type that cannot
    hold it: then no row of the file could be taken.
    """
    read = source.piece.rows if isinstance(source.piece, RowGroups) else 0
    try:
        # What is spooled to a temporary file has been counted on its way there.
        with _opened(source) as (file, source):
            for batch in _batches(source, file, options):
                if isinstance(batch, _UnreadableRows):
                    for at in range(0, batch.rows, options.batch_rows):
                        count = min(options.batch_rows, batch.rows - at)
                        yield broken_rows(batch.reason, first=read + 1, count=count)
                        read += count
                    continue
                for part in _bounded(_with_partition(batch, source.partition)):
                    yield _checked(source.path, part, read, options)
                    read += part.num_rows
    except _UNREADABLE as error:
        reason = f"{source.format} file cannot be read from here on: {error}"
        yield broken_rows(reason, first=read + 1)


def _with_partition(batch: pa.RecordBatch, partition: Mapping[str, str | None]) -> pa.RecordBatch:
    for name, value in partition.items():
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.array([value] * len(batch), pa.string()))
    return batch


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Source]]:
    if _is_spooled(source):
        with spooled(source) as file:
            yield pa.PythonFile(file, "r"), replace(source, progress=None)
        return
    try:
        fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{source.path} cannot be opened: {error.strerror}") from error
    with open(fd, "rb", buffering=0):
        # Mapped: a file with one huge record batch then costs no memory. By its
        # number: Arrow takes no names that are not UTF-8, and reads a "~" in them.
        mapped = pa.memory_map if source.format == "arrow" else pa.OSFile
        with mapped(f"/dev/fd/{fd}") as file:
            yield file, source


def _is_spooled(source: Source) -> bool:
    return source.stream or bool(source.compression) or is_packed(source)


def _batches(source: Source, file: Any, options: ReadOptions) -> _Batches:
    if source.format == "parquet":
        yield from _parquet_batches(source, file, options)
        return
    magic = file.read(len(_ARROW_MAGIC))
    file.seek(0)
    whole: Iterator[Any]
    if magic == _ARROW_MAGIC:
        reader = pa.ipc.open_file(file)
        whole = _file_batches(reader)
        if source.sample is not None:
            whole = source.sample.of_batches(reader, file.size())
    else:
        reader = pa.ipc.open_stream(file)
        whole = iter(reader)
        if source.sample is not None:
            whole = source.sample.first_batches(whole, file)
    _require(source.path, reader.schema, 1, options, source)
    for batch in whole:
        if isinstance(batch, _UnreadableRows):
            yield batch
            continue
        for at in range(0, batch.num_rows, options.batch_rows):
            yield batch.slice(at, options.batch_rows)
        source.count(batch.nbytes)


def _file_batches(reader: Any) -> _Batches:
    for i in range(reader.num_record_batches):
        try:
            yield reader.get_batch(i)
        except _UNREADABLE as error:
            yield _UnreadableRows(1, f"record batch {i + 1} of the file cannot be read: {error}")


def _parquet_batches(source: Source, file: Any, options: ReadOptions) -> _Batches:
    import pyarrow.parquet as pq

    # Without pre-buffering: it would hold a whole row group's bytes.
    parquet = pq.ParquetFile(file, pre_buffer=False)
    names = parquet.schema_arrow.names
    _require(source.path, parquet.schema_arrow, parquet.metadata.num_rows, options, source)
    columns = _columns(names, options.fields)
    options.fields_there.update(dict.fromkeys(names))
    bytes_a_row = file.size() / max(1, parquet.metadata.num_rows)
    if source.sample is not None:
        yield from source.sample.of_groups(parquet, columns, bytes_a_row, options.batch_rows)
        return

    def batches(groups: range) -> Iterator[pa.RecordBatch]:
        for batch in parquet.iter_batches(options.batch_rows, groups, columns=columns):
            yield batch
            source.count(round(batch.num_rows * bytes_a_row))

    groups = range(parquet.metadata.num_row_groups)
    if isinstance(source.piece, RowGroups):
        groups = range(source.piece.first, source.piece.end)
    yield from _around_bad_groups(parquet, groups, batches)


def names_in(source: Source, wanted: Iterable[str]) -> set[str]:
    """Return a file's columns, and the fields within them that are wanted and there."""
    import pyarrow.parquet as pq

    with _opened(source) as (file, _):
        if source.format == "parquet":
            schema = pq.ParquetFile(file).schema_arrow
        else:
            magic = file.read(len(_ARROW_MAGIC))
            file.seek(0)
            opened = pa.ipc.open_file if magic == _ARROW_MAGIC else pa.ipc.open_stream
            schema = opened(file).schema
        return set(schema.names) | {name for name in wanted if inside(schema, name) is not None}


def _require(
    path: str, schema: pa.Schema, rows: int, options: ReadOptions, source: Source | None = None
) -> None:
    """Raise MissingField as `ReadOptions.require_fields` does, of a file's columns."""
    if options.fields_seen:
        return
    present = set(schema.names) | (set(source.partition) if source else set())
    required = options.fields.required
    present |= {name for name in required if inside(schema, name) is not None}
    if not present.issuperset(required):
        structs = (each for each in schema if pa.types.is_struct(each.type))
        present |= {f"{each.name}.{inner.name}" for each in structs for inner in each.type}
    options.require_fields(path, present, rows)


def _columns(names: list[str], fields: Fields) -> list[str] | None:
    """Name the columns of a file that are looked at; None for all."""
    if fields.wanted is None:
        return None
    heads = {head for name in fields.wanted for head, _ in splits(name)}
    return [name for name in names if name in fields.wanted or name in heads]


def _around_bad_groups(
    parquet: Any, groups: range, batches: Callable[[range], Iterator[pa.RecordBatch]]
) -> _Batches:
    """Yield row groups all at once, and from the first that fails on one by one."""
    read = 0
    try:
        for batch in batches(groups):
            yield batch
            read += batch.num_rows
        return
    except _UNREADABLE:
        pass  # met again where its group is read by itself
    ends = list(accumulate(parquet.metadata.row_group(i).num_rows for i in groups))
    for group, begin, end in zip(groups, [0, *ends], ends, strict=False):
        if end <= read:
            continue
        # What was delivered of this group already is not delivered again.
        known = max(0, read - begin)
        try:
            for batch in batches(range(group, group + 1)):
                fresh, known = batch.slice(known), max(0, known - batch.num_rows)
                yield fresh
                read += fresh.num_rows
        except _UNREADABLE as error:
            yield _UnreadableRows(
                end - read, f"row group {group + 1} of the file cannot be read: {error}"
            )
            read = end


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch.num_rows > 1 and batch.nbytes > _BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _bounded(batch.slice(0, half))
        yield from _bounded(batch.slice(half))
    else:
        yield batch


def checked_batches(
    batches: Iterable[pa.RecordBatch],
    options: ReadOptions,
    first: int = 1,
    path: str = RECORDS_PATH,
) -> Iterator[CheckedRows]:
    """Yield the rows of Arrow batches in memory."""
    for batch in batches:
        _require(path, batch.schema, batch.num_rows, options)
        for part in _bounded(batch):
            yield _checked(path, part, first - 1, options)
            first += part.num_rows


def _checked(path: str, batch: pa.RecordBatch, before: int, options: ReadOptions) -> CheckedRows:
    fields = options.fields
    faults: dict[int, str] = {}
    batch = batch.rename_columns(distinct(path, batch.schema.names, fields))
    if options.looked_at is not None:
        options.looked_at(batch)
    column = ColumnTaker(path, batch, faults)
    texts = column.texts(fields.text) if fields.composed is None else column.composed(options)
    ids = column.ids(fields)
    scopes = {name: _filled(column.strings(f), batch.num_rows) for name, f in fields.scopes}
    metadata = column.metadata(fields, options) if fields.metadata else None
    faults = column_faults(texts, ids, options, faults)
    lines = np.arange(before + 1, before + 1 + batch.num_rows, dtype=np.int64)
    rows = row_batch(lines, texts, ids, scopes, metadata)
    return CheckedRows(rows, _raw(batch, fields.lone_text), faults)


def _filled(column: pa.Array | None, rows: int) -> pa.Array:
    return pa.array([""] * rows, pa.string()) if column is None else column.fill_null("")


def _raw(batch: pa.RecordBatch, text: str) -> Callable[[int], str]:
    def raw(i: int) -> str:
        if text not in batch.schema.names:
            return ""
        value = batch.column(text)[i]
        if pa.types.is_dictionary(value.type):
            value = value.value
        if not is_stringlike(value.type):
            return str(value.as_py())[:EXCERPT_CHARS]
        buffer = value.as_buffer() if value.is_valid else None
        return "" if buffer is None else excerpt(buffer.to_pybytes())

    return raw

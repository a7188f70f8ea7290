"""Files, folders, globs, standard input and Python records, as Arrow batches of rows.

A bad row costs that row alone: it comes back as a `Reject` beside the batch.
Blank lines are no rows: they are skipped and not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa

from memworker.errors import InputError, MissingField, UsageError
from memworker.ingestion.fields import Fields
from memworker.ingestion.readers import (
    columnar,
    databases,
    delimited,
    document_rows,
    jsonl,
    objects,
    plain,
)
from memworker.ingestion.readers.checked import CheckedRows, ReadOptions, broken_rows
from memworker.ingestion.readers.dialects import Dialect
from memworker.ingestion.readers.joined import joined
from memworker.ingestion.readers.lines import line_blocks, lines_of
from memworker.ingestion.readers.objects import RECORDS_PATH, ObjectRows
from memworker.ingestion.readers.ours import Ours
from memworker.ingestion.readers.paths import Found, Source, expand, followed, found
from memworker.ingestion.readers.pieces import FilePiece
from memworker.ingestion.readers.shapes import Shape, shape_of, values_of
from memworker.ingestion.readers.streams import text_blocks
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import ReadBatch, ReadProgress, Reject
from memworker.paths import PathGiven, shown_name
from memworker.values import shown, whole

__all__ = [
    "ReadBatch",
    "Dialect",
    "Fields",
    "Found",
    "Reject",
    "Source",
    "expand",
    "found",
    "read",
    "read_options",
    "read_records",
    "read_sources",
]

MIB = 1 << 20
# So many sources of a run are searched for a field that the first one lacks.
_LOOKED_INTO = 64

_NOT_UTF8 = (
    "rows that are not UTF-8 are rejected; --encoding (dialect) names what they are in, such as"
    " latin-1"
)

_log = logging.getLogger(__name__)

_READERS: dict[str, Callable[[Source, ReadOptions], Iterator[ObjectRows | CheckedRows]]] = {
    "jsonl": jsonl.read_rows,
    "json": jsonl.read_rows,
    "csv": delimited.read_rows,
    "tsv": delimited.read_rows,
    "parquet": columnar.read_rows,
    "arrow": columnar.read_rows,
    "txt": plain.read_rows,
    "document": document_rows.read_rows,
    "sqlite": databases.read_rows,
    "duckdb": databases.read_rows,
}


def read(
    inputs: Sequence[PathGiven],
    fields: Fields | None = None,
    *,
    batch_rows: int = 8192,
    limit: int | None = None,
    max_text_bytes: int = MIB,
    max_line_bytes: int | None = None,
    format: str | None = None,
    dialect: Dialect | None = None,
    sql: str | None = None,
    allow_empty: bool = False,
    progress: ReadProgress | None = None,
) -> Iterator[ReadBatch]:
    """Read files, folders, globs and "-" in the order given, in batches of at most `batch_rows`.

    `limit` counts rows read, refused ones included. A line over
    `max_line_bytes` (default: 4 times `max_text_bytes` and 1 MiB) is skipped
    without being held. `format` overrides what the suffixes say, `dialect` says how
    files of text are written. With `sql` the inputs are databases, and its rows are
    read. `progress` is kept up to date with the bytes read.
    Raises InputNotFound and UsageError at once; MissingField when the first
    rows come, if none of them has a field that `fields` requires.
    """
    options = read_options(fields, batch_rows, max_text_bytes, max_line_bytes, allow_empty)
    there = found(inputs, format, dialect=dialect, sql=sql)
    if told := there.left_out.told():
        _log.warning("memworker: %s", told)
    return read_sources(there.sources, options, limit=limit, progress=progress)


def read_sources(
    sources: Sequence[Source],
    options: ReadOptions,
    *,
    limit: int | None = None,
    progress: ReadProgress | None = None,
) -> Iterator[ReadBatch]:
    """Read what was found, as `read` does. What is wrong with one of several costs that one."""
    options.alone = len(sources) == 1
    options.elsewhere = partial(_elsewhere, sources, options)
    options.without_encoding = frozenset(shown_name(s.path) for s in sources if s.of_columns)
    return _batches(joined(_parts(followed(sources, progress), options), options), limit, options)


def _parts(
    sources: Sequence[Source], options: ReadOptions
) -> Iterator[tuple[str, ObjectRows | CheckedRows | None]]:
    for source in sources:
        name = shown_name(source.path)
        if source.fault:
            yield name, broken_rows(source.fault)
            continue
        try:
            for rows in _rows(source, options):
                yield name, rows
                if source.stream:
                    yield name, None
        except MissingField:
            raise
        except Ours:
            if source.left_out is not None:
                source.left_out.add("lists of rejected rows", source.path)
        except InputError as error:
            if options.alone:
                raise
            yield name, broken_rows(shown_name(str(error)))


def _rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows | CheckedRows]:
    partition = source.partition
    for rows in _READERS[source.format](source, options):
        if isinstance(rows, ObjectRows):
            if isinstance(source.piece, FilePiece):
                own = source.piece.numbered(rows)
                if own is None:
                    continue
                rows = own
            rows = rows.within(partition) if partition else rows
            if options.looked_at is not None:
                options.looked_at(rows)
        yield rows


def _elsewhere(
    sources: Sequence[Source], options: ReadOptions, names: Collection[str]
) -> Collection[str]:
    """Return which of these fields a source has; what can be read once is not looked at."""
    there: set[str] = set()
    for source in sources[:_LOOKED_INTO]:
        if not source.stream and not source.fault and not there.issuperset(names):
            there |= field_names(source, options, names)
    return there


def field_names(source: Source, options: ReadOptions, wanted: Collection[str] = ()) -> set[str]:
    """Return the fields of a source's first rows; of nested ones those that are wanted."""
    looking = replace(options, fields=Fields(metadata=False), fields_seen=True, told=Findings())
    try:
        rows = next(_READERS[source.format](replace(source, progress=None), looking), None)
    except (InputError, Ours):
        return set()
    if isinstance(rows, ObjectRows):
        return objects.present(rows, wanted)
    return columnar.names_in(source, wanted) if rows is not None else set()


def read_lines(
    given: PathGiven, max_line_bytes: int, *, of_json: bool = False
) -> Iterator[tuple[int, bytes, str]]:
    """Read one text file, or "-", line by line, unpacked and decoded as `read` does it.

    Yields the number of each from 1, the line in UTF-8, and why it could not be read, or "".
    With `of_json` a text whose objects stand in an array, or over several lines, is read
    object by object.
    Raises InputNotFound and UsageError at once, InputError when the first line comes.
    """
    sources = expand([given], "txt")
    if len(sources) != 1 or sources[0].fault:
        why = sources[0].fault if len(sources) == 1 else f"it names {len(sources)} files"
        raise UsageError(f"{given!r} is not one file that can be read: {why}")
    return _text_lines(
        sources[0], read_options(None, max_line_bytes=max_line_bytes), of_json=of_json
    )


def _text_lines(
    source: Source, options: ReadOptions, *, of_json: bool
) -> Iterator[tuple[int, bytes, str]]:
    cap = options.max_line_bytes
    if of_json:
        shape, blocks = shape_of(text_blocks(source), cap)
        if shape is Shape.VALUES:
            for values in values_of(blocks, cap):
                yield from ((value.number, value.raw, value.fault) for value in values)
            return
        of_lines = lines_of(blocks, options.batch_rows, cap)
    else:
        of_lines = line_blocks(source, options.batch_rows, cap)
    for block in of_lines:
        faults = jsonl.stream_faults(block, options)
        for i, line in enumerate(block.lines):
            yield block.first + i, line, faults.get(i, "")


def read_records(
    records: Iterable[Any], options: ReadOptions | Fields | None = None, *, limit: int | None = None
) -> Iterator[ReadBatch]:
    """Read Python records: strings, mappings with the fields' names, Arrow batches; as `read`.

    The path of their batches is "<records>", and `line` counts them from 1.
    """
    if not isinstance(options, ReadOptions):
        options = read_options(options)
    checked = ((RECORDS_PATH, rows) for rows in _of_records(records, options))
    return _batches(checked, limit, options)


def _of_records(records: Iterable[Any], options: ReadOptions) -> Iterator[CheckedRows]:
    first = 1
    for batch, group in groupby(records, lambda row: isinstance(row, pa.RecordBatch)):
        read = columnar.checked_batches if batch else objects.checked_records
        for rows in read(group, options, first):
            yield rows
            first += rows.rows.num_rows


def read_options(
    fields: Fields | None,
    batch_rows: int = 8192,
    max_text_bytes: int = MIB,
    max_line_bytes: int | None = None,
    allow_empty: bool = False,
) -> ReadOptions:
    """Give what readers go by, with its defaults. Raises UsageError."""
    if batch_rows < 1 or max_text_bytes < 1 or (max_line_bytes is not None and max_line_bytes < 1):
        raise UsageError(
            f"batch_rows={batch_rows}, max_text_bytes={max_text_bytes}, "
            f"max_line_bytes={max_line_bytes}: each must be at least 1"
        )
    return ReadOptions(
        fields=fields or Fields(),
        batch_rows=batch_rows,
        max_text_bytes=max_text_bytes,
        # JSON escapes may take six bytes for one of text; four leaves room for real writing.
        max_line_bytes=max_line_bytes or 4 * max_text_bytes + MIB,
        allow_empty=allow_empty,
    )


def _batches(
    parts: Iterable[tuple[str, CheckedRows]], limit: int | None, options: ReadOptions
) -> Iterator[ReadBatch]:
    found = None if limit is None else whole(limit)
    if limit is not None and (found is None or found < 1):
        raise UsageError(f"limit must be a whole number of at least 1, not {shown(limit)}")
    return _closing(_numbered(parts, found, options), options)


def _closing(batches: Iterator[ReadBatch], options: ReadOptions) -> Iterator[ReadBatch]:
    with closing(options.extraction):
        yield from batches


def _numbered(
    parts: Iterable[tuple[str, CheckedRows]], limit: int | None, options: ReadOptions
) -> Iterator[ReadBatch]:
    ordinal = 0
    for path, checked in parts:
        if limit is not None:
            checked = checked.head(limit - ordinal)
        count = checked.rows.num_rows
        silent = path == RECORDS_PATH or path in options.without_encoding
        if not silent and any("valid UTF-8" in why for why in checked.faults.values()):
            options.told.once(_NOT_UTF8, path)
        if count:
            yield checked.batch(path, ordinal)
        ordinal += count
        if ordinal == limit:
            break
    options.require_any()

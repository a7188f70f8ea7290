"""An input as parts that nodes read by themselves: files, groups of small ones, pieces of large."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from memworker.errors import InputError, MissingField, UsageError
from memworker.ingestion.cluster.parcels import ReadPart, packed
from memworker.ingestion.readers import (
    Fields,
    Source,
    read_options,
    read_records,
    read_sources,
)
from memworker.ingestion.readers.objects import RECORDS_PATH
from memworker.ingestion.readers.paths import STDIN
from memworker.ingestion.readers.pieces import FilePiece
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import ReadProgress
from memworker.paths import is_path, shown_name


@dataclass(frozen=True, slots=True)
class HowToRead:
    """How every part is read: as the whole input would be read on one machine."""

    fields: Fields
    max_text_bytes: int
    allow_empty: bool
    limit: int | None
    alone: bool
    fields_seen: bool
    folder: str
    batch_rows: int


@dataclass(frozen=True, slots=True)
class InputPart:
    """Sources that are read one behind the other, and about how many bytes they are."""

    sources: tuple[Source, ...]
    bytes: int
    how: HowToRead


def parts_of(sources: Sequence[Source], how: HowToRead, part_bytes: int) -> list[InputPart]:
    """Group an input's sources, in their order; a piece of a large file is a part by itself."""
    parts: list[InputPart] = []
    gathered: list[Source] = []
    size = 0
    for source in sources:
        each = _size(source)
        if gathered and (size + each > part_bytes or source.piece is not None):
            parts.append(InputPart(tuple(gathered), size, how))
            gathered, size = [], 0
        # What it was found in stays with the driver, and is not sent along.
        gathered.append(replace(source, left_out=None))
        size += each
    if gathered:
        parts.append(InputPart(tuple(gathered), size, how))
    return parts


def read_part(part: InputPart) -> Iterator[object]:
    """Read a part on a node, as blocks of one parcel each; the last one tells what was found.

    What ends the reading is told, and not raised: it is the driver's to say so, in its place.
    """
    how = part.how
    be_in(how.folder)
    options = read_options(
        how.fields, how.batch_rows, max_text_bytes=how.max_text_bytes, allow_empty=how.allow_empty
    )
    options.fields_seen = how.fields_seen
    progress = ReadProgress()
    counted = 0
    name = shown_name(part.sources[0].path)
    batches = read_sources(part.sources, options, limit=how.limit, progress=progress)
    options.alone = how.alone
    missing = error = None
    try:
        for batch in batches:
            told = ReadPart(batch.path, batch.read, progress.read - counted, batch.rejects)
            counted = progress.read
            yield packed(told, batch.rows)
    except MissingField as raised:
        missing = raised
    except InputError as raised:
        error = raised
    yield packed(
        ReadPart(
            name,
            read_bytes=progress.read - counted,
            found=options.told,
            fields_seen=options.fields_seen,
            missing=missing,
            error=error,
        )
    )


def read_table(table: pa.Table, how: HowToRead) -> pa.Table:
    """Read rows of a Ray Dataset, as one parcel; each block is a part by itself."""
    options = read_options(
        how.fields, max(1, table.num_rows), how.max_text_bytes, allow_empty=how.allow_empty
    )
    options.alone = False
    missing, blocks = None, []
    try:
        batches = table.combine_chunks().to_batches()
        for batch in read_records(batches, options):
            told = ReadPart(batch.path, batch.read, 0, batch.rejects, Findings())
            blocks.append(packed(told, batch.rows))
    except MissingField as raised:
        missing = raised
    told = ReadPart(
        RECORDS_PATH, found=options.told, fields_seen=options.fields_seen, missing=missing
    )
    return pa.concat_tables([*blocks, packed(told)])


def refuse_streams(given: Any, sql: str | None) -> None:
    """Raise UsageError for what can be read once, by one process, before anything is read."""
    names = [given] if is_path(given) else given if isinstance(given, list | tuple) else []
    for name in names:
        if name == STDIN or (is_path(name) and Path(name).is_fifo()):
            raise UsageError(_once("standard input" if name == STDIN else f"the pipe {name}"))
    if sql is not None:
        raise UsageError(_once("a database"))


def _once(what: str) -> str:
    return (
        f"{what} is read by one process alone, and --runner ray reads on all nodes: write its rows"
        " to a file that every node sees, or leave out --runner ray"
    )


def be_in(folder: str) -> None:
    """Work where the driver does, so that names are what they are there."""
    if os.path.isdir(folder) and os.getcwd() != folder:
        os.chdir(folder)


def _size(source: Source) -> int:
    if isinstance(source.piece, FilePiece):
        return source.piece.end - source.piece.start
    try:
        return os.path.getsize(source.path)
    except OSError:
        return 0

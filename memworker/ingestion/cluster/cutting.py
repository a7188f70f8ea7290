"""Large files cut into pieces that nodes read by themselves: where rows begin, and no other place.

A line of JSON, or of text, ends at its newline. A cell of CSV may have newlines within its quotes:
where each quote stands where a quote may, their number tells whether a newline ends a row. A file
in which one does not is read as a whole, for it takes its parser to say where its rows begin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memworker.errors import InputError
from memworker.ingestion.fields import Fields
from memworker.ingestion.readers import Source
from memworker.ingestion.readers.delimited import cells_of_head
from memworker.ingestion.readers.pieces import FilePiece, RowGroups
from memworker.ingestion.readers.shapes import Shape, shape_of
from memworker.ingestion.readers.streams import is_packed

Int64s = npt.NDArray[np.int64]

# What of a file tells its dialect: more lines than are looked at for it.
_HEAD_BYTES = 1 << 20
_HEAD_LINES = 256
_LINES = ("jsonl", "json", "txt")
_CELLS = ("csv", "tsv")
# Encodings in which the bytes of marks and newlines stand for nothing else.
_PLAIN = ("", "utf-8", "utf8", "ascii", "latin-1", "latin1", "iso-8859-1", "iso-8859-15", "cp1252")
_READ = 4 << 20
_NEWLINE, _RETURN = 10, 13


@dataclass(frozen=True, slots=True)
class Marks:
    """The bytes that part and quote cells; no quote for lines, where every newline ends one."""

    delimiter: int = -1
    quote: int = -1


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of a file from `start` to `end`, to be looked through on some node."""

    path: str
    start: int
    end: int
    marks: Marks


@dataclass(frozen=True, slots=True)
class StretchFacts:
    """What a stretch shows, for a beginning outside of quotes and for one within.

    `begins` is where the first row begins (-1: nowhere) with so many `lines` of the stretch
    before; `strays` are quotes where none may stand.
    """

    newlines: int
    quotes: int
    begins: tuple[int, int]
    lines: tuple[int, int]
    strays: tuple[int, int]


Look = Callable[[Sequence[Stretch]], Iterable[StretchFacts]]


def pieces_of(
    source: Source, fields: Fields, part_bytes: int, look: Look
) -> tuple[list[Source], str]:
    """Cut a source into pieces of about `part_bytes`, or give it whole and say why, if at all."""
    if source.stream or source.fault or source.sql or source.compression:
        return [source], ""
    try:
        size = os.path.getsize(source.path)
        if size < 2 * part_bytes or is_packed(source):
            return [source], ""
        if source.format == "parquet":
            return _row_groups(source, part_bytes), ""
        if source.format in _LINES or source.format in _CELLS:
            return _text(source, fields, size, part_bytes, look)
    except (OSError, InputError):
        pass  # whoever reads it says what is wrong
    return [source], ""


def _row_groups(source: Source, part_bytes: int) -> list[Source]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(source.path, "rb") as file:
            told = pq.ParquetFile(pa.PythonFile(file, "r")).metadata
    except pa.ArrowException:
        return [source]
    pieces: list[RowGroups] = []
    first = rows = before = size = 0
    for group in range(told.num_row_groups):
        facts = told.row_group(group)
        size, rows = size + facts.total_byte_size, rows + facts.num_rows
        if size >= part_bytes or group == told.num_row_groups - 1:
            pieces.append(RowGroups(first, group + 1, before))
            first, before, size = group + 1, rows, 0
    return [replace(source, piece=piece) for piece in pieces] or [source]


def _text(
    source: Source, fields: Fields, size: int, part_bytes: int, look: Look
) -> tuple[list[Source], str]:
    with open(source.path, "rb") as file:
        beginning = file.read(_HEAD_BYTES)
    if b"\0" in beginning or (source.dialect.encoding or "").lower() not in _PLAIN:
        return [source], ""
    if source.format in ("jsonl", "json") and shape_of(iter([beginning]), 1)[0] is not Shape.LINES:
        return [source], ""
    marks = Marks()
    if source.format in _CELLS:
        found = cells_of_head(source, beginning, fields)
        marks = Marks(ord(found.delimiter), ord(found.quotechar) if found.quotechar else -1)
        if max(marks.delimiter, marks.quote) > 127:
            return [source], ""
    head = _head(beginning, marks)
    if head is None:
        return [source], ""
    cuts = range(part_bytes, size - part_bytes // 2, part_bytes)
    places = [0, *cuts, size]
    stretches = [
        Stretch(source.path, start, end, marks)
        for start, end in zip(places[:-1], places[1:], strict=True)
    ]
    pieces = _joined(list(look(stretches)), size, head)
    if pieces is None:
        return [source], (
            f"{source.told} is read as a whole, by one node: a quote stands within a cell that is"
            " not quoted, so its rows cannot be told from afar"
        )
    return [replace(source, piece=piece) for piece in pieces], ""


def _head(beginning: bytes, marks: Marks) -> tuple[int, int] | None:
    """Return how many bytes and lines are read before each piece; None where no row ends there."""
    array = np.frombuffer(beginning, np.uint8)
    newlines = np.flatnonzero(array == _NEWLINE)
    quotes = np.flatnonzero(array == marks.quote) if marks.quote >= 0 else newlines[:0]
    even = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
    if not len(even):
        return None
    wanted = newlines[min(_HEAD_LINES, len(newlines)) - 1]
    at = min(int(np.searchsorted(even, wanted)), len(even) - 1)
    end = int(even[at]) + 1
    return end, int(np.searchsorted(newlines, end))


def _joined(seen: list[StretchFacts], size: int, head: tuple[int, int]) -> list[FilePiece] | None:
    """Say where pieces begin, knowing of each stretch whether it begins within quotes."""
    begins, lines, inside = [0], [0], 0
    before = 0
    for number, each in enumerate(seen):
        if each.strays[inside]:
            return None
        if number and each.begins[inside] > max(head[0], begins[-1]):
            begins.append(each.begins[inside])
            lines.append(before + each.lines[inside])
        before += each.newlines
        inside = (inside + each.quotes) % 2
    ends = [*begins[1:], size]
    return [
        FilePiece(start, end, lines_before, *(head if start else (0, 0)))
        for start, end, lines_before in zip(begins, ends, lines, strict=True)
    ]


def look_through(stretch: Stretch) -> StretchFacts:
    """Look for newlines and quotes; where quotes are, at what stands beside them."""
    newlines = quotes = 0
    begins, lines, strays = [-1, -1], [0, 0], [0, 0]
    for at, array, before, after in _blocks(stretch):
        ends = np.flatnonzero(array == _NEWLINE)
        quoted = ends[:0]
        if stretch.marks.quote >= 0:
            quoted = np.flatnonzero(array == stretch.marks.quote)
        within = (quotes + np.searchsorted(quoted, ends)) % 2
        for inside in (0, 1):
            if begins[inside] < 0:
                free = np.flatnonzero(within == inside)
                if len(free):
                    begins[inside] = at + int(ends[free[0]]) + 1
                    lines[inside] = newlines + int(free[0]) + 1
        if len(quoted):
            opens, closes = _strays(array, quoted, before, after, stretch.marks)
            odd = (quotes + np.arange(len(quoted))) % 2 == 1
            strays[0] += int(np.where(odd, closes, opens).sum())
            strays[1] += int(np.where(odd, opens, closes).sum())
        newlines, quotes = newlines + len(ends), quotes + len(quoted)
    return StretchFacts(newlines, quotes, _two(begins), _two(lines), _two(strays))


def _two(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]


def _strays(
    array: npt.NDArray[np.uint8], quoted: Int64s, before: int, after: int, marks: Marks
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Tell of each quote whether it may not open a cell, and whether it may not close one."""
    around = np.concatenate(([before], array, [after])).astype(np.int16)
    # Beside a cell stand marks, ends of lines, and the ends of the file.
    ends = [marks.delimiter, marks.quote, _NEWLINE, _RETURN, -1]
    return ~np.isin(around[quoted], ends), ~np.isin(around[quoted + 2], ends)


def _blocks(stretch: Stretch) -> Iterator[tuple[int, npt.NDArray[np.uint8], int, int]]:
    """Yield blocks with their place, and the bytes beside them; -1 where the file ends."""
    with open(stretch.path, "rb", buffering=0) as file:
        fd = file.fileno()
        for at in range(stretch.start, stretch.end, _READ):
            end = min(at + _READ, stretch.end)
            data = os.pread(fd, end - at, at)
            array = np.frombuffer(data, np.uint8)
            before = _byte(fd, at - 1) if at else -1
            yield at, array, before, _byte(fd, at + len(data))


def _byte(fd: int, at: int) -> int:
    found = os.pread(fd, 1, at)
    return found[0] if found else -1


def looked_at(ray: Any) -> Look:
    """Have stretches looked through on the nodes, in parallel."""
    task = ray.remote(num_cpus=0.5)(look_through)

    def look(stretches: Sequence[Stretch]) -> Iterable[StretchFacts]:
        found: Iterable[StretchFacts] = ray.get([task.remote(each) for each in stretches])
        return found

    return look

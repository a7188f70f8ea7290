"""CSV and TSV with a header line, every column a string."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from memworker.ingest.readers.drafts import Draft, ReadOptions
from memworker.ingest.readers.jsonl import stream_faults
from memworker.ingest.readers.objects import ObjectRows, draft_rows
from memworker.ingest.readers.paths import Source
from memworker.ingest.readers.streams import line_blocks
from memworker.ingest.records import EXCERPT_CHARS

_DRAFT_CHARS = 8 << 20


def drafts(source: Source, options: ReadOptions) -> Iterator[Draft]:
    """Yield drafts of a CSV or TSV file; quoted fields may span lines, `lines` tells the first.

    An empty cell of the id column is no id.
    """
    # The module's own limit holds for the whole process and is 131,072: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_line_bytes))
    rows = _parsed(_Lines(source, options), "\t" if source.format == "tsv" else ",")
    header = next(rows, None)
    if header is None:
        return
    if not header.fault:
        options.require_fields(source.path, header.cells)
    batch: list[_Row] = [] if not header.fault else [header]
    chars = 0
    for row in rows:
        batch.append(row)
        chars += row.chars
        if len(batch) == options.batch_rows or chars >= _DRAFT_CHARS:
            yield _draft(source.path, header.cells, batch, options)
            batch, chars = [], 0
    if batch:
        yield _draft(source.path, header.cells, batch, options)


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    cells: list[str]
    chars: int
    fault: str = ""


def _draft(path: str, header: list[str], batch: list[_Row], options: ReadOptions) -> Draft:
    faults = {i: row.fault for i, row in enumerate(batch) if row.fault}
    width = len(header)
    for i, row in enumerate(batch):
        if len(row.cells) != width:
            faults.setdefault(i, f"{len(row.cells)} columns where the header has {width}")
    # Reversed, so that of two columns of one name the first is taken.
    names = header[::-1]
    objects: list[Any] = [dict(zip(names, row.cells[::-1], strict=False)) for row in batch]
    name = options.fields.id
    if name in header:
        for row in objects:
            row[name] = row.get(name) or None
    rows = ObjectRows(
        np.array([row.line for row in batch], dtype=np.int64),
        objects,
        lambda i: _shown(batch[i].cells),
        faults,
        "is not valid UTF-8",
    )
    return draft_rows(path, rows, options)


def _shown(cells: list[str]) -> str:
    text = ",".join(cell[:EXCERPT_CHARS] for cell in cells)[:EXCERPT_CHARS]
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parsed(lines: _Lines, delimiter: str) -> Iterator[_Row]:
    # strict: a stray quote is a fault of its row; unstrict it would swallow the lines after it.
    parser = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.give_up_first(f"malformed {_name(delimiter)}: {error}")
        except _BadLine as error:
            yield lines.give_up_first(str(error))
        else:
            if cells and (len(cells) > 1 or not cells[0].isspace()):
                yield _Row(lines.row[0].number, cells, lines.row_chars)


def _name(delimiter: str) -> str:
    return "TSV" if delimiter == "\t" else "CSV"


class _BadLine(Exception):
    """The line that comes next cannot be part of a row."""


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    fault: str = ""


class _Lines:
    """Feeds lines to the parser and takes them back when a row turns out to be bad.

    Only the first line of a bad row is given up: the lines after it, which an
    open quote may have swallowed, are parsed again.
    """

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self._lines = _decoded(source, options)
        self._again: deque[_Line] = deque()
        self._cap = options.max_line_bytes
        self.row: list[_Line] = []
        self.row_chars = 0

    def begin_row(self) -> None:
        self.row, self.row_chars = [], 0

    def give_up_first(self, fault: str) -> _Row:
        first, *others = self.row
        self._again.extendleft(reversed(others))
        return _Row(first.number, [first.text[:EXCERPT_CHARS]], EXCERPT_CHARS, fault)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.row.append(line)
        self.row_chars += len(line.text)
        if line.fault:
            raise _BadLine(line.fault)
        if self.row_chars > self._cap:
            raise _BadLine(f"a row over {self._cap:,} bytes (max_line_bytes): an unclosed quote?")
        return line.text


def _decoded(source: Source, options: ReadOptions) -> Iterator[_Line]:
    for block in line_blocks(source, options.batch_rows, options.max_line_bytes):
        faults = stream_faults(block, options)
        for i, line in enumerate(block.lines):
            text = line.decode(errors="surrogateescape") + "\n"
            yield _Line(block.first + i, text, faults.get(i, ""))

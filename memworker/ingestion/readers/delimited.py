"""CSV and TSV with a header line, every column a string."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from memworker.ingestion.fields import Fields
from memworker.ingestion.readers.checked import ReadOptions, distinct
from memworker.ingestion.readers.dialects import Cells, cells_of
from memworker.ingestion.readers.encodings import BOM
from memworker.ingestion.readers.jsonl import stream_faults
from memworker.ingestion.readers.lines import LineBlock, line_blocks
from memworker.ingestion.readers.objects import ObjectRows
from memworker.ingestion.readers.paths import Source
from memworker.ingestion.records import EXCERPT_CHARS

_SAMPLE_LINES = 200
_NO_HEADER = (
    "Name it with --text-field (text_field=); if the first line is a row, say --no-header"
    " (header=False), and name columns by their numbers; if cells are parted by something else, say"
    " --delimiter"
)
_NUMBERED = (
    "Without a header columns are called by their numbers: name it with --text-field 2"
    " (text_field=); if cells are parted by something else, say --delimiter"
)
UNCLOSED = "a quote opens and none closes"
"""How the reason begins for which a row without its last line is bad."""
# What csv says of a row is for programmers; by the words that it begins with.
_MALFORMED = {
    "unexpected end of data": f"{UNCLOSED}; if quotes are a part of the text,"
    " say --quotechar none (dialect)",
    "new-line character seen": "a carriage return stands within it, outside of quotes; where"
    " lines end by it, write newlines: tr '\\r' '\\n'",
}
_TOO_MANY = (
    "rows of more cells than the header has are rejected; if cells are parted or quoted otherwise,"
    " say --delimiter or --quotechar (dialect)"
)
_ESCAPED = (
    "rows are malformed in which a backslash stands before a quote; if it makes the quote a part"
    " of the text, say --escapechar '\\' (dialect)"
)


def read_rows(source: Source, options: ReadOptions) -> Iterator[ObjectRows]:
    """Yield the rows of a CSV or TSV file; quoted fields may span lines, `lines` tells the first.

    An empty cell of the id column is no id. A file whose header line is bad
    gives that one fault and no rows.
    """
    # The module's own limit holds for the whole process and is 131,072: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_line_bytes))
    blocks = _parsed(source, options)
    first = next(blocks, None)
    if first is None:
        return
    header = first.pop(0) if source.dialect.header else first[0]
    if header.fault:
        bad = header._replace(fault=f"{header.fault}; without its header no row can be read")
        yield _rows([], [bad], source, options)
        return
    names = distinct(source.path, _named(header.cells, source, options), options.fields)
    for rows in chain([first], blocks):
        # Also where there are no rows yet: the header may lack a field that must be there.
        for at in range(0, max(1, len(rows)), options.batch_rows):
            yield _rows(names, rows[at : at + options.batch_rows], source, options)


def _named(cells: list[str], source: Source, options: ReadOptions) -> list[str]:
    """Name the columns by the header, or by numbers; a lone one without a header is the text."""
    if source.dialect.header:
        return cells
    if len(cells) == 1:
        return [options.fields.lone_text]
    return [str(number) for number in range(1, len(cells) + 1)]


def cells_of_head(source: Source, head: bytes, fields: Fields) -> Cells:
    """Find out how a file is cut into cells, by its beginning, as its reader does."""
    usual = "\t" if source.format == "tsv" else ","
    encoded = head.removeprefix(BOM).split(b"\n")[:_SAMPLE_LINES]
    lines = [line.decode(errors="surrogateescape") for line in encoded]
    return cells_of(source.told, lines, usual, source.dialect, fields)


class _DelimitedRow(NamedTuple):
    number: int
    cells: list[str]
    fault: str = ""
    raw: str = ""


def _rows(
    header: list[str], batch: list[_DelimitedRow], source: Source, options: ReadOptions
) -> ObjectRows:
    faults = {i: row.fault for i, row in enumerate(batch) if row.fault}
    width = len(header)
    for i, row in enumerate(batch):
        if row.fault and '\\"' in row.raw:
            options.told.once(_ESCAPED, source.told)
        if len(row.cells) != width:
            faults.setdefault(i, f"{len(row.cells)} columns where the header has {width}")
            if len(row.cells) > width > 0:
                options.told.once(_TOO_MANY, source.told)
    return ObjectRows(
        np.array([row.number for row in batch], dtype=np.int64),
        _objects(header, batch, options.fields.id),
        lambda i: _shown(batch[i].raw),
        faults,
        "is not valid UTF-8",
        header=header or None,
        hint=_NO_HEADER if source.dialect.header else _NUMBERED,
    )


def _objects(header: list[str], batch: list[_DelimitedRow], id_name: str) -> list[Any]:
    # A bad row is a line that was not cut into cells, and holds no id.
    objects: list[Any] = [
        {} if row.fault else dict(zip(header, row.cells, strict=False)) for row in batch
    ]
    if id_name in header:
        for each in objects:
            each[id_name] = each.get(id_name) or None
    return objects


def _shown(raw: str) -> str:
    text = raw[:EXCERPT_CHARS].rstrip("\r\n")
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parsed(source: Source, options: ReadOptions) -> Iterator[list[_DelimitedRow]]:
    """Yield the rows of block after block, never an empty list; blank lines are no rows."""
    usual = "\t" if source.format == "tsv" else ","
    parse = None
    for block in line_blocks(source, options.batch_rows, options.max_line_bytes):
        if parse is None:
            lines = [line.decode(errors="surrogateescape") for line in block.lines[:_SAMPLE_LINES]]
            cells = cells_of(source.told, lines, usual, source.dialect, options.fields)
            if source.sample is not None:
                source.sample.cells = cells
            if told := cells.told(usual, source.dialect):
                options.told.say(told, source.told)
            parse = _Parser(cells, options.max_line_bytes)
            if cells.skipped:
                block = replace(block, first=block.first + 1, lines=block.lines[1:])
        if rows := parse.block(block, stream_faults(block, options)):
            yield rows
    if parse is not None and (rows := parse.rest()):
        yield rows


class _Parser:
    """Parses blocks of lines; a row that a block leaves open is parsed again with the next one.

    Only the first line of a bad row is given up: the lines after it, which an
    open quote may have swallowed, are parsed again as rows of their own.
    """

    def __init__(self, how: Cells, cap: int) -> None:
        self._how = how
        self._cap = cap
        self._open: list[str] = []
        self._first = 1 + how.skipped

    def block(self, block: LineBlock, faults: dict[int, str]) -> list[_DelimitedRow]:
        """Return the rows that end in this block; its lines at the indices `faults` are bad."""
        rows: list[_DelimitedRow] = []
        texts = [line.decode(errors="surrogateescape") + "\n" for line in block.lines]
        start = 0
        for i in sorted(faults):
            self._open += texts[start:i]
            bad = _DelimitedRow(block.first + i, [texts[i]], faults[i], texts[i])
            rows += [*self.rest(), bad]
            start, self._first = i + 1, block.first + i + 1
        self._open += texts[start:]
        return rows + self._rows(at_end=False)

    def rest(self) -> list[_DelimitedRow]:
        """Return the rows of what is left, when nothing follows that could end an open one."""
        return self._rows(at_end=True)

    def _rows(self, *, at_end: bool) -> list[_DelimitedRow]:
        texts, first, at = self._open, self._first, 0
        rows: list[_DelimitedRow] = []
        while at < len(texts):
            try:
                for cells, after in self._cells(texts, at):
                    if cells and (len(cells) > 1 or not cells[0].isspace()):
                        raw = texts[at] if after == at + 1 else "".join(texts[at:after])
                        rows.append(_DelimitedRow(first + at, cells, "", raw))
                    at = after
            except _BadRow as error:
                if error.ran_out and not at_end and sum(map(len, texts[at:])) <= self._cap:
                    break
                why = f"malformed row: {_explained(str(error))}"
                rows.append(_DelimitedRow(first + at, [texts[at]], why, texts[at]))
                at += 1
        self._open, self._first = texts[at:], first + at
        return rows

    def _cells(self, texts: list[str], at: int) -> Iterator[tuple[list[str], int]]:
        """Yield the cells of each row from line `at` on, and the index of the line after it."""
        rows = self._how.reader(islice(texts, at, None))
        try:
            for cells in rows:
                yield cells, at + rows.line_num
        except csv.Error as error:
            raise _BadRow(str(error), at + rows.line_num == len(texts)) from error


def _explained(error: str) -> str:
    return next((why for said, why in _MALFORMED.items() if error.startswith(said)), error)


class _BadRow(Exception):
    """A row cannot be parsed; if the lines ran out, more of them might help."""

    def __init__(self, message: str, ran_out: bool) -> None:
        super().__init__(message)
        self.ran_out = ran_out

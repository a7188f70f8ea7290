"""CSV and TSV with a header line, every column a string."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from memworker.ingest.readers.drafts import Draft, ReadOptions
from memworker.ingest.readers.jsonl import stream_faults
from memworker.ingest.readers.objects import ObjectRows, draft_rows
from memworker.ingest.readers.paths import Source
from memworker.ingest.readers.streams import LineBlock, line_blocks
from memworker.ingest.records import EXCERPT_CHARS


def drafts(source: Source, options: ReadOptions) -> Iterator[Draft]:
    """Yield drafts of a CSV or TSV file; quoted fields may span lines, `lines` tells the first.

    An empty cell of the id column is no id. A file whose header line is bad
    gives that one fault and no rows.
    """
    # The module's own limit holds for the whole process and is 131,072: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), options.max_line_bytes))
    blocks = _parsed(source, options)
    first = next(blocks, None)
    if first is None:
        return
    header = first.pop(0)
    if header.fault:
        bad = header._replace(fault=f"{header.fault}; without its header no row can be read")
        yield _draft(source.path, [], [bad], options)
        return
    options.require_fields(source.path, header.cells)
    for rows in chain([first], blocks):
        for at in range(0, len(rows), options.batch_rows):
            yield _draft(source.path, header.cells, rows[at : at + options.batch_rows], options)


class _Line(NamedTuple):
    number: int
    text: str
    fault: str = ""


class _Row(NamedTuple):
    number: int
    cells: list[str]
    fault: str = ""


def _draft(path: str, header: list[str], batch: list[_Row], options: ReadOptions) -> Draft:
    faults = {i: row.fault for i, row in enumerate(batch) if row.fault}
    width = len(header)
    for i, row in enumerate(batch):
        if len(row.cells) != width:
            faults.setdefault(i, f"{len(row.cells)} columns where the header has {width}")
    rows = ObjectRows(
        np.array([row.number for row in batch], dtype=np.int64),
        _objects(header, batch, options.fields.id),
        lambda i: _shown(batch[i].cells),
        faults,
        "is not valid UTF-8",
    )
    return draft_rows(path, rows, options)


def _objects(header: list[str], batch: list[_Row], id_name: str) -> list[Any]:
    # Reversed, so that of two columns of one name the first is taken.
    names = header[::-1]
    objects: list[Any] = [dict(zip(names, row.cells[::-1], strict=False)) for row in batch]
    if id_name in header:
        for each in objects:
            each[id_name] = each.get(id_name) or None
    return objects


def _shown(cells: list[str]) -> str:
    text = ",".join(cell[:EXCERPT_CHARS] for cell in cells)[:EXCERPT_CHARS]
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _parsed(source: Source, options: ReadOptions) -> Iterator[list[_Row]]:
    """Yield the rows of block after block, never an empty list; blank lines are no rows."""
    dialect = _Dialect("\t" if source.format == "tsv" else ",", options.max_line_bytes)
    open_row: list[_Line] = []
    for block in line_blocks(source, options.batch_rows, options.max_line_bytes):
        lines = [*open_row, *_decoded(block, options)]
        rows = None if open_row else dialect.one_row_a_line(lines)
        if rows is None:
            rows, open_row = dialect.rows_and_open_row(lines)
        if rows:
            yield rows
    while open_row:
        # At the end an open quote stays open: its line is bad, those after it may be good.
        rows, open_row = dialect.rows_and_open_row(open_row, at_end=True)
        yield rows


def _decoded(block: LineBlock, options: ReadOptions) -> list[_Line]:
    faults = stream_faults(block, options)
    texts = [line.decode(errors="surrogateescape") + "\n" for line in block.lines]
    return [
        _Line(n, text, faults.get(n - block.first, "")) for n, text in enumerate(texts, block.first)
    ]


class _BadLine(Exception):
    """The line that comes next cannot be part of a row."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How rows are written, and how many characters one may have."""

    delimiter: str
    cap: int

    def one_row_a_line(self, lines: list[_Line]) -> list[_Row] | None:
        """Parse lines that are a row each, all good; None if they are not."""
        if any(line.fault for line in lines):
            return None
        try:
            parsed = list(self._parser(line.text for line in lines))
        except csv.Error:
            return None
        if len(parsed) != len(lines):
            return None
        pairs = zip(lines, parsed, strict=True)
        return [_Row(line.number, cells) for line, cells in pairs if not _blank(cells)]

    def rows_and_open_row(
        self, lines: list[_Line], *, at_end: bool = False
    ) -> tuple[list[_Row], list[_Line]]:
        """Parse row by row; return also the lines of a row that is not ended yet.

        Only the first line of a bad row is given up: the lines after it, which
        an open quote may have swallowed, are parsed again.
        """
        rows: list[_Row] = []
        at = 0
        feed = _Feed(lines, self.cap)
        parser = self._parser(feed)
        while at < len(lines):
            feed.begin(at)
            try:
                cells = next(parser)
            except (csv.Error, _BadLine) as error:
                if feed.ran_out and not at_end:
                    return rows, lines[at:]
                rows.append(_Row(lines[at].number, [lines[at].text], f"malformed row: {error}"))
                at += 1
                continue
            if not _blank(cells):
                rows.append(_Row(lines[at].number, cells))
            at = feed.at
        return rows, []

    def _parser(self, lines: Iterator[str]) -> Any:
        # strict: a stray quote is a fault of its row; unstrict it would swallow the lines after it.
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


class _Feed:
    """Gives the parser the lines of one row after the other."""

    def __init__(self, lines: list[_Line], cap: int) -> None:
        self._lines = lines
        self._cap = cap
        self.begin(0)

    def begin(self, at: int) -> None:
        self.at, self._chars, self.ran_out = at, 0, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.at == len(self._lines):
            self.ran_out = True
            raise StopIteration
        line = self._lines[self.at]
        self._chars += len(line.text)
        if line.fault:
            raise _BadLine(line.fault)
        if self._chars > self._cap:
            raise _BadLine(f"over {self._cap:,} bytes (max_line_bytes); is a quote left open?")
        self.at += 1
        return line.text


def _blank(cells: list[str]) -> bool:
    return not cells or (len(cells) == 1 and cells[0].isspace())

"""How the cells of a CSV file are parted and quoted: as it is said, else as its first lines show.

A guess is made only where the first lines leave one: a header has the fields that are asked for
under one mark alone, or rows without a header have as many cells, all of them. All else is
asked for.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields as fields_of, replace
from typing import Any

from memworker.errors import InputError, UsageError
from memworker.ingestion.fields import Fields
from memworker.values import shown

_MARKS = (",", ";", "\t", "|")
_QUOTES = ('"', "'")
_BACKSLASH = "\\"
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
# Excel writes it before the header, and reads it.
_SEP = re.compile(r"sep=(.)\s*$")
_SAMPLE_LINES = 200
_ALIKE = 0.9


@dataclass(frozen=True, slots=True)
class Dialect:
    """How files of text are written, as far as it is said; None is found out.

    `quotechar` "" means that nothing is quoted, `escapechar` "" that nothing stands before a
    quote to make it a part of the text. `encoding` goes for every format of text, the
    others for csv and tsv. Raises UsageError for what cannot be.
    """

    delimiter: str | None = None
    quotechar: str | None = None
    encoding: str | None = None
    header: bool = True
    escapechar: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            mark = _mark(self.delimiter, "--delimiter (delimiter)")
            object.__setattr__(self, "delimiter", mark)
        if self.quotechar is not None:
            none = self.quotechar in ("", "none")
            quote = "" if none else _mark(self.quotechar, "--quotechar (quotechar)")
            object.__setattr__(self, "quotechar", quote)
            if quote and quote == self.delimiter:
                raise UsageError(f"{quote!r} cannot both part cells and quote them")
        if self.escapechar is not None:
            none = self.escapechar in ("", "none")
            escape = "" if none else _mark(self.escapechar, "--escapechar (escapechar)")
            object.__setattr__(self, "escapechar", escape)
            if escape and escape in (self.delimiter, self.quotechar):
                raise UsageError(f"{escape!r} cannot both part or quote cells and escape in them")
        if self.encoding is not None:
            object.__setattr__(self, "encoding", _encoding(self.encoding))

    @classmethod
    def of(cls, given: Dialect | Mapping[str, Any] | None) -> Dialect:
        """Take what a caller gave: a dialect, a mapping of its fields, or nothing."""
        if given is None or isinstance(given, Dialect):
            return given or cls()
        names = [each.name for each in fields_of(cls)]
        if not isinstance(given, Mapping) or not set(given) <= set(names):
            raise UsageError(f"a dialect has {', '.join(names)}; it is not {shown(given)}")
        return cls(**given)

    @property
    def of_cells(self) -> str:
        """Name the option that only files of cells know, where one is given; else ""."""
        given = {name: getattr(self, name) for name in ("delimiter", "quotechar", "escapechar")}
        named = [f"--{name}" for name, value in given.items() if value is not None]
        return (named + ([] if self.header else ["--no-header"]) + [""])[0]

    @property
    def of_text(self) -> str:
        """Name the option that all files of text know, where it is given; else ""."""
        return "" if self.encoding is None else "--encoding"

    def told(self) -> dict[str, str]:
        """Describe what is said, for the journal."""
        pairs = ((each.name, getattr(self, each.name)) for each in fields_of(self))
        return {f"dialect.{k}": str(v) for k, v in pairs if v is not None and v is not True}


def _mark(given: Any, option: str) -> str:
    mark = _NAMES.get(given, given) if isinstance(given, str) else given
    if not isinstance(mark, str) or len(mark) != 1 or mark in "\r\n\0":
        raise UsageError(f"{option} must be one character, such as ';' or tab, not {shown(given)}")
    return mark


def _encoding(given: Any) -> str:
    try:
        found = codecs.lookup(given)
        "".encode(given)  # refuses codecs that are none of text, such as base64
    except (LookupError, TypeError, ValueError):
        raise UsageError(
            f"--encoding (encoding) names no encoding of text: {shown(given)}; there are utf-8,"
            " utf-16, latin-1, cp1252, …"
        ) from None
    return found.name


@dataclass(frozen=True, slots=True)
class Cells:
    """How one file's lines are cut into cells; `skipped` lines stand before its header."""

    delimiter: str
    quotechar: str = '"'
    spaced: bool = False
    skipped: int = 0
    escapechar: str = ""

    def reader(self, lines: Any) -> Any:
        """Give csv's reader; strict: a stray quote costs its row, and not the lines after it."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quotechar or None,
            quoting=csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE,
            skipinitialspace=self.spaced,
            escapechar=self.escapechar or None,
            strict=True,
        )

    def told(self, usual: str, given: Dialect) -> str:
        """Say what is not as usual, and was not said by the user; "" where nothing is."""
        said = []
        if given.delimiter is None and self.delimiter != usual:
            said.append(f"cells are parted by {_shown(self.delimiter)}")
        if given.quotechar is None and self.quotechar == "'":
            said.append("quoted by '")
        if given.escapechar is None and self.escapechar:
            said.append(f"{self.escapechar} stands before quotes within them")
        if self.spaced:
            said.append("spaces before cells are left out")
        if not said:
            return ""
        shown = "lines" if given.header else "rows"
        return (
            f"{', '.join(said)}, as its first {shown} show (--delimiter, --quotechar and"
            " --escapechar decide it)"
        )


def cells_of(
    path: str, lines: Sequence[str], usual: str, dialect: Dialect, fields: Fields
) -> Cells:
    """Find out how a file is cut into cells, by its first lines. Raises UsageError, InputError.

    `usual` is the mark of its format.
    """
    lines = [line for line in lines[:_SAMPLE_LINES] if line.strip()]
    parted = _parted(path, lines, usual, dialect, fields)
    parted = replace(parted, escapechar=dialect.escapechar or "")
    return _quoted(parted, lines[parted.skipped :], dialect)


def _parted(path: str, lines: Sequence[str], usual: str, dialect: Dialect, fields: Fields) -> Cells:
    skipped = 0
    if lines and dialect.delimiter is None and (said := _SEP.match(lines[0])):
        lines, skipped, usual = lines[1:], 1, said[1]
        marks: tuple[str, ...] = (usual,)
    elif dialect.delimiter is not None:
        marks = (dialect.delimiter,)
    else:
        marks = (usual, *(mark for mark in _MARKS if mark != usual))
    quotes = _QUOTES if dialect.quotechar is None else (dialect.quotechar,)
    first = Cells(marks[0], quotes[0], skipped=skipped)
    if len(marks) == len(quotes) == 1 or (len(marks) == 1 and not dialect.header):
        return first
    if not dialect.header:
        return _alike(path, lines, marks, first)
    for quote in quotes:
        for spaced in (False, True):
            for mark in marks:
                found = Cells(mark, quote, spaced, skipped)
                if set(fields.required) <= set(_first_row(found, lines)):
                    return found
    return _likely(lines, marks, first)


def _quoted(parted: Cells, lines: Sequence[str], dialect: Dialect) -> Cells:
    """Choose how cells are quoted: as it is said, else as cuts the most rows like the header.

    What is usual stays unless another way cuts more of them so, or unless all cells of a column
    stand between single quotes, and none between double ones.
    """
    quotes, escapes = [parted.quotechar], [parted.escapechar]
    if dialect.quotechar is None:
        quotes += [quote for quote in _QUOTES if _begun(parted, lines) == {quote} - set(quotes)]
    if dialect.escapechar is None and any(_BACKSLASH + q in line for q in quotes for line in lines):
        escapes.append(_BACKSLASH)
    ways = [replace(parted, quotechar=q, escapechar=e) for q in quotes for e in escapes]
    if len(ways) == 1:
        return parted
    rows = {way: _rows(way, lines) for way in ways}
    fit = {way: _fit(rows[way], len(lines), dialect.header) for way in ways}
    best = max(ways, key=lambda way: fit[way])
    if fit[best] > fit[parted] and fit[best] >= _ALIKE:
        return best
    single = replace(parted, quotechar="'")
    body = [row for row, _ in rows[parted][dialect.header :] if row]
    if single in ways and fit[single] >= fit[parted] and _between_single_quotes(body):
        return single
    return parted


def _begun(parted: Cells, lines: Sequence[str]) -> set[str]:
    """Return the quotes that some cell begins with."""
    begins = re.compile(rf"(?:^|{re.escape(parted.delimiter)} *)([{''.join(_QUOTES)}])")
    return {quote for line in lines for quote in begins.findall(line)}


def _fit(rows: Sequence[tuple[list[str], int]], lines: int, header: bool) -> float:
    """Return the share of lines in rows as wide as the header, or without one, as most are.

    Of lines, for a quote that never ends would swallow the bad rows.
    """
    widths: Counter[int] = Counter()
    for row, taken in rows:
        widths[len(row)] += taken
    if not header:
        return max((n / lines for width, n in widths.items() if width > 1), default=0.0)
    return widths[len(rows[0][0])] / lines if rows and rows[0][0] else 0.0


def _between_single_quotes(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether all cells of some column are between single quotes, in two rows or more."""
    return any(
        sum(map(bool, column)) >= 2
        and all(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in column if cell)
        for column in zip(*rows, strict=False)
    )


def _rows(cells: Cells, lines: Sequence[str]) -> list[tuple[list[str], int]]:
    """Cut lines into rows, each with its number of lines; one that cannot be cut is empty."""
    reader = cells.reader(iter([f"{line}\n" for line in lines]))
    found, taken = list[tuple[list[str], int]](), 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            row = []
        if row is None:
            return found
        found.append((row, reader.line_num - taken))
        taken = reader.line_num


def _first_row(cells: Cells, lines: Sequence[str]) -> list[str]:
    try:
        found: list[str] = next(cells.reader(iter(lines)), [])
    except csv.Error:
        return []
    return found


def _share(cells: Cells, lines: Sequence[str]) -> float:
    """Return the share of rows that have as many cells as most; 0 where that is one."""
    widths: Counter[int] = Counter()
    rows = cells.reader(iter(lines))
    while True:
        try:
            widths[len(next(rows))] += 1
        except StopIteration:
            break
        except csv.Error:
            widths[0] += 1
    (width, count), total = widths.most_common(1)[0] if widths else (0, 0), widths.total()
    return count / total if width > 1 else 0.0


def _likely(lines: Sequence[str], marks: Sequence[str], first: Cells) -> Cells:
    """Choose what shows the fields that there are, where those asked for are not among them."""
    shares = {mark: _share(_with(first, mark), lines) for mark in marks}
    best = max(marks, key=lambda mark: shares[mark])
    return _with(first, best) if shares[best] >= _ALIKE else first


def _alike(path: str, lines: Sequence[str], marks: Sequence[str], first: Cells) -> Cells:
    """Choose the mark under which rows without a header have as many cells, if one alone does."""
    shares = {mark: _share(_with(first, mark), lines) for mark in marks}
    fit = [mark for mark in marks if shares[mark] >= _ALIKE]
    if len(fit) == 1:
        return _with(first, fit[0])
    if not fit and not any(mark in line for mark in marks for line in lines):
        return first
    why = f"it may be any of {', '.join(map(_shown, fit))}" if fit else "none fits its first rows"
    raise InputError(
        f"{path}: without a header it is not certain what parts its cells: {why}; say it with"
        " --delimiter"
    )


def _with(cells: Cells, mark: str) -> Cells:
    return replace(cells, delimiter=mark)


def _shown(mark: str) -> str:
    return "a tab" if mark == "\t" else repr(mark)

"""Inputs as the user names them, to the list of files that are read."""

from __future__ import annotations

import difflib
import glob
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from memworker.errors import InputError, InputNotFound, UsageError
from memworker.ingestion.documents.suffixes import OF_DOCUMENTS
from memworker.ingestion.readers.addresses import located
from memworker.ingestion.readers.dialects import Dialect
from memworker.ingestion.readers.folders import Folders, LeftOut
from memworker.ingestion.readers.pieces import FilePiece, RowGroups
from memworker.ingestion.readers.sampling import FileSample
from memworker.ingestion.records import ReadProgress
from memworker.paths import ADDRESS, PathGiven, is_path, named
from memworker.values import shown

STDIN = "-"

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "txt",
    **dict.fromkeys(OF_DOCUMENTS, "document"),
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read.

    `compression` is what the suffix says, "gz", "zst" or "". A `stream` (a pipe, a terminal,
    standard input) can be read once, and may keep its reader waiting. With a `fault` it
    could not be read when it was looked for, and that is all that is known. What was found
    in a folder or by a glob has a place for its name if it turns out to be `left_out`. `name` is
    what it is called within the folder that was given. With a `sample` or a `piece` only that is
    read.
    """

    path: str
    format: str
    compression: str = ""
    stream: bool = field(default=False, compare=False)
    fault: str = field(default="", compare=False)
    left_out: LeftOut | None = field(default=None, compare=False, repr=False)
    dialect: Dialect = field(default=Dialect(), compare=False)
    sql: str = field(default="", compare=False)
    progress: ReadProgress | None = field(default=None, compare=False)
    name: str = field(default="", compare=False)
    sample: FileSample | None = field(default=None, compare=False)
    piece: FilePiece | RowGroups | None = field(default=None, compare=False)

    @property
    def partition(self) -> dict[str, str | None]:
        """The columns that folders called KEY=VALUE right above the file stand for."""
        return {} if "=" not in self.path or self.sql else _partition(self.path)

    @property
    def of_columns(self) -> bool:
        """Whether its texts are values of columns or databases, and no encoding says more."""
        return self.format in ("parquet", "arrow", "sqlite", "duckdb")

    @property
    def told(self) -> str:
        """What the source is called in messages."""
        return "standard input" if self.path == STDIN else self.path

    def count(self, read_bytes: int) -> None:
        """Note that so many more bytes were read."""
        if self.progress is not None:
            self.progress.read += read_bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What the inputs name: the sources, in order, and what of folders and globs is none."""

    sources: list[Source]
    left_out: LeftOut


def followed(sources: Sequence[Source], progress: ReadProgress | None) -> list[Source]:
    """Give sources whose reading `progress` follows."""
    if progress is None:
        return list(sources)
    progress.total = _total_bytes(sources)
    return [replace(source, progress=progress) for source in sources]


def expand(inputs: Sequence[PathGiven], format: str | None = None) -> list[Source]:
    """List the files that the inputs name; raises as `found` does."""
    return found(inputs, format).sources


def _partition(path: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for folder in reversed(path.split("/")[:-1]):
        key, equals, value = folder.partition("=")
        if not (equals and key):
            break
        none = value == "__HIVE_DEFAULT_PARTITION__"
        # What is nearest the file goes before the same key further up.
        found = {unquote(key): None if none else unquote(value)} | found
    return found


def found(
    inputs: Sequence[PathGiven],
    format: str | None = None,
    outputs: Sequence[Path] = (),
    *,
    dialect: Dialect | None = None,
    sql: str | None = None,
) -> Found:
    """List the files that the inputs name, in their order, folders and globs sorted.

    Of folders and globs, `outputs` are left out: what the run itself writes. With `sql` the
    inputs are databases, of which it is asked. `dialect` says how files of text are written.
    Raises InputNotFound where an input names nothing readable, InputError where
    a file may not be read, UsageError for an unknown format or suffix.
    """
    if is_path(inputs):
        inputs = [inputs]  # type: ignore[list-item]
    if not inputs:
        raise UsageError("no input is given; name a file, a folder, a glob, or - for stdin")
    looking = _Looking(None if format is None else _known_format(format), outputs)
    if sql is not None:
        if dialect is not None and (option := dialect.of_cells or dialect.of_text):
            raise UsageError(
                f"{option} is for files of text, and --sql (sql=) asks a database, which reads"
                " them itself; leave it out, or say it in the query"
            )
        return Found([_asked(name, sql) for name in inputs], looking.left_out)
    sources = [source for name in inputs for source in looking.sources(_name(name))]
    _read_once(sources)
    if dialect is not None:
        _check_dialect(dialect, sources)
        sources = [replace(source, dialect=dialect) for source in sources]
    return Found(sources, looking.left_out)


def _name(given: PathGiven) -> str:
    """Return the name of an input; raises UsageError for an address, saying what to do with it."""
    text = os.fsdecode(given) if is_path(given) else ""
    scheme = text.partition(":/")[0].lower()
    if scheme in ("sqlite", "duckdb") and ":/" in text:
        raise UsageError(f"{text}: say what is to be read of it: --sql 'SELECT …' (sql=)")
    if ADDRESS.match(text):
        raise UsageError(
            f"{text} is an address, and what is not on this machine is not read; fetch it first"
            " and name the file"
        )
    return named(given, "an input")


def _asked(given: PathGiven, sql: Any) -> Source:
    """Give the source of what a database answers."""
    if not isinstance(sql, str) or not sql.strip():
        raise UsageError(f"--sql (sql=) takes a query such as 'SELECT …', not {shown(sql)}")
    kind, path = located(given)
    return Source(path, kind, sql=sql)


def _check_dialect(dialect: Dialect, sources: list[Source]) -> None:
    if dialect.of_cells and not any(source.format in ("csv", "tsv") for source in sources):
        formats = ", ".join(sorted({source.format for source in sources}))
        raise UsageError(
            f"{dialect.of_cells} is for csv and tsv, and the input is read as {formats};"
            " say --format csv, or leave it out"
        )
    if dialect.of_text and sources and all(source.of_columns for source in sources):
        formats = ", ".join(sorted({source.format for source in sources}))
        raise UsageError(
            f"{dialect.of_text} is for files of text, and the input is read as {formats};"
            " leave it out"
        )


def _total_bytes(sources: Sequence[Source]) -> int | None:
    if any(source.stream for source in sources):
        return None  # pipes do not tell how much there is to come
    sizes = 0
    for source in sources:
        try:
            sizes += os.stat(source.path).st_size
        except OSError:
            pass  # reading it will say so
    return sizes


def _read_once(sources: list[Source]) -> None:
    """Raise UsageError where a stream is named twice: its second reader would find nothing."""
    seen: dict[tuple[int, int], str] = {}
    for source in sources:
        if not source.stream:
            continue
        try:
            facts = os.fstat(0) if source.path == STDIN else os.stat(source.path)
        except OSError:
            continue  # reading it will say so
        if (same := seen.setdefault((facts.st_dev, facts.st_ino), source.path)) != source.path:
            raise UsageError(f"{same} and {source.path} are the same pipe, which is read once")
    names = [source.path for source in sources if source.stream]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice; what comes from a pipe can be read once")


class _Looking:
    """Looks up what inputs name, and keeps what is left out."""

    def __init__(self, format: str | None, outputs: Sequence[Path]) -> None:
        self._format = format
        self.left_out = LeftOut()
        self._folders = Folders(self.left_out, outputs, self._wanted)

    def sources(self, name: str) -> list[Source]:
        if name == STDIN:
            return [Source(STDIN, self._format or "jsonl", stream=True)]
        if os.path.isdir(name):
            found = self._named(self._folders.under(name), len(name.rstrip("/")) + 1)
            return found or self._nothing_in(f"folder {name}")
        if os.path.lexists(name):
            return [_file(name, self._format)]
        if glob.has_magic(name):
            return self._matches(name)
        raise InputNotFound(_no_such(name))

    def _wanted(self, name: str) -> bool:
        return self._format is not None or _by_suffix(name)[0] is not None

    def _matches(self, pattern: str) -> list[Source]:
        chosen = self._folders.matching(pattern)
        return self._named(chosen) or self._nothing_in(f"pattern {pattern}")

    def _named(self, names: list[tuple[str, str]], before: int = 0) -> list[Source]:
        sources = []
        for path, fault in names:
            suffix_format, compression = _by_suffix(path)
            chosen = self._format or suffix_format or "jsonl"
            sources.append(
                Source(
                    path,
                    chosen,
                    compression,
                    fault=fault,
                    left_out=self.left_out,
                    name=path[before:],
                )
            )
        return sources if self._format is not None else self._of_rows(sources)

    def _of_rows(self, sources: list[Source]) -> list[Source]:
        """Leave out documents that lie beside files of rows: they tell of these, as a README."""
        rows = [source for source in sources if source.format != "document"]
        if not rows:
            return sources
        for source in sources:
            if source.format == "document":
                self.left_out.add(
                    "documents beside files of rows; --format document reads them", source.path
                )
        return rows

    def _nothing_in(self, what: str) -> list[Source]:
        suffixes = " ".join(_FORMATS)
        told = self.left_out.told()
        raise InputNotFound(
            f"{what} has no file to read; these suffixes are read: {suffixes}, each also with .gz"
            f" or .zst; --format reads files of any name. {told or 'There are none at all'}."
        )


def _file(name: str, format: str | None) -> Source:
    """Give the source of a file that was named itself."""
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
    if not os.access(name, os.R_OK):
        raise InputError(f"{name} may not be read by this user; change its mode or its owner")
    stream = not stat.S_ISREG(mode)
    if stream:
        _check_stream(name, mode)
    suffix_format, compression = _by_suffix(name)
    chosen = format or suffix_format
    if chosen is None and stream:
        chosen = "jsonl"  # a pipe such as bash's <(…) has no suffix; as stdin then
    if chosen is None:
        raise UsageError(
            f"{name}: its suffix names no format; say --format {'|'.join(_format_names())}"
        )
    return Source(name, chosen, compression, stream)


def _check_stream(name: str, mode: int) -> None:
    """Raise InputError for what is neither a file nor a pipe."""
    if stat.S_ISFIFO(mode):
        return
    # A device may never end; a terminal does, and so does /dev/null.
    if stat.S_ISCHR(mode) and (os.path.realpath(name) == os.devnull or _is_terminal(name)):
        return
    what = "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise InputError(
        f"{name} is {what}, which cannot be read as a file; pipe what it gives: … | memworker … -"
    )


def _is_terminal(name: str) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.isatty(fd)
    finally:
        os.close(fd)


def _by_suffix(name: str) -> tuple[str | None, str]:
    stem, suffix = os.path.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    return _FORMATS.get(suffix), compression


def _known_format(format: str) -> str:
    known = None
    if isinstance(format, str):
        name = format.lower().lstrip(".")
        known = name if name in _FORMATS.values() else _FORMATS.get(f".{name}")
    if known is None:
        raise UsageError(f"unknown format {shown(format)}; there are {', '.join(_format_names())}")
    return known


def _format_names() -> list[str]:
    return sorted(set(_FORMATS.values()))


def _no_such(name: str) -> str:
    parent = os.path.dirname(name) or "."
    try:
        names = os.listdir(parent)
    except OSError:
        return f"no such file: {name}; there is no folder {parent} either. Check the path."
    near = difflib.get_close_matches(os.path.basename(name), names, n=3)
    if near:
        return f"no such file: {name}; near it there are: {', '.join(near)}"
    return f"no such file: {name}; nothing in {parent} has a name like it. Check the path."

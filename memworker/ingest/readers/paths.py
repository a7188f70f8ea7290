"""Inputs as the user names them, to the list of files that are read."""

from __future__ import annotations

import difflib
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from memworker.errors import InputError, InputNotFound, UsageError
from memworker.ingest.records import ReadProgress
from memworker.paths import PathGiven, is_path, named

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
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to read; `compression` is "gz", "zst" or "", for stdin found out by its bytes."""

    path: str
    format: str
    compression: str = ""
    progress: ReadProgress | None = field(default=None, compare=False)

    def count(self, read_bytes: int) -> None:
        """Note that so many more bytes were read."""
        if self.progress is not None:
            self.progress.read += read_bytes


def followed(sources: list[Source], progress: ReadProgress | None) -> list[Source]:
    """Give sources whose reading `progress` follows."""
    if progress is None:
        return sources
    progress.total = _total_bytes(sources)
    return [replace(source, progress=progress) for source in sources]


def expand(inputs: Sequence[PathGiven], format: str | None = None) -> list[Source]:
    """List the files that the inputs name, in their order, folders and globs sorted.

    Raises InputNotFound where an input names nothing readable, InputError where
    a file may not be read, UsageError for an unknown format or suffix.
    """
    if is_path(inputs):
        inputs = [inputs]  # type: ignore[list-item]
    if not inputs:
        raise UsageError("no input is given; name a file, a folder, a glob, or - for stdin")
    if format is not None:
        format = _known_format(format)
    return [source for name in inputs for source in _sources(named(name, "an input"), format)]


def _total_bytes(sources: list[Source]) -> int | None:
    paths = [source.path for source in sources]
    # Standard input and pipes do not tell how much there is to come.
    return sum(map(os.path.getsize, paths)) if all(map(os.path.isfile, paths)) else None


def _sources(name: str, format: str | None) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN, format or "jsonl")]
    if os.path.isdir(name):
        found = list(_in_folder(name, format))
        return found or _nothing_in(f"folder {name}")
    if os.path.exists(name):
        return [_file(name, format)]
    if glob.has_magic(name):
        return _matches(name, format)
    raise InputNotFound(_no_such(name))


def _file(name: str, format: str | None) -> Source:
    if not os.access(name, os.R_OK):
        raise InputError(f"{name} may not be read by this user; change its mode or its owner")
    suffix_format, compression = _by_suffix(name)
    chosen = format or suffix_format
    if chosen is None and not stat.S_ISREG(os.stat(name).st_mode):
        chosen = "jsonl"  # a pipe such as bash's <(…) has no suffix; as stdin then
    if chosen is None:
        raise UsageError(
            f"{name}: its suffix names no format; say --format {'|'.join(_format_names())}"
        )
    return Source(name, chosen, compression)


def _in_folder(folder: str, format: str | None) -> Iterator[Source]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            if _by_suffix(file)[0] is not None:
                yield _file(os.path.join(parent, file), format)


def _matches(pattern: str, format: str | None) -> list[Source]:
    found: list[Source] = []
    for name in sorted(glob.glob(pattern, recursive=True)):
        # With ** the files of a folder match by themselves.
        if os.path.isfile(name) and (format or _by_suffix(name)[0]):
            found.append(_file(name, format))
    return found or _nothing_in(f"pattern {pattern}")


def _by_suffix(name: str) -> tuple[str | None, str]:
    stem, suffix = os.path.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    return _FORMATS.get(suffix), compression


def _known_format(format: str) -> str:
    known = _FORMATS.get("." + format.lower().lstrip("."))
    if known is None:
        raise UsageError(f"unknown format {format!r}; there are {', '.join(_format_names())}")
    return known


def _format_names() -> list[str]:
    return sorted(set(_FORMATS.values()))


def _nothing_in(what: str) -> list[Source]:
    suffixes = " ".join(_FORMATS)
    raise InputNotFound(
        f"{what} has no file to read; these suffixes are read: {suffixes}, "
        "each also with .gz or .zst; hidden files are left out"
    )


def _no_such(name: str) -> str:
    parent = os.path.dirname(name) or "."
    if not os.path.isdir(parent):
        return f"no such file: {name}; there is no folder {parent} either. Check the path."
    near = difflib.get_close_matches(os.path.basename(name), os.listdir(parent), n=3)
    if near:
        return f"no such file: {name}; near it there are: {', '.join(near)}"
    return f"no such file: {name}; nothing in {parent} has a name like it. Check the path."

"""What a job reads: paths or Python records, and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from memworker import containers, values
from memworker.errors import InputNotFound, NoRows, UsageError
from memworker.ingestion.ahead import ahead, timed_reads
from memworker.ingestion.loop import RunningJob
from memworker.ingestion.readers import (
    Dialect,
    Fields,
    Found,
    ReadBatch,
    Source,
    found,
    read_options,
    read_records,
    read_sources,
)
from memworker.ingestion.readers.checked import ReadOptions
from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.readers.objects import RECORDS_PATH
from memworker.ingestion.readers.ours import is_reject_list
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.rejects import Refusals, RejectFile
from memworker.ingestion.report import Counts
from memworker.ingestion.stop import Stop
from memworker.paths import PathGiven, is_path, named, shown_name
from memworker.pool import DEFAULT_MAX_TEXT_BYTES
from memworker.store import Output

# A first row may be None: it is bad, and the rows behind it are not.
_NOTHING = object()
_NO_ROWS = "the input holds no rows; nothing was written"

T = TypeVar("T")
Records = PathGiven | Iterable[PathGiven] | Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job reads, what becomes of bad rows, and who is told.

    Raises UsageError for an `on_error` that there is not.
    """

    fields: Fields
    limit: int | None = None
    format: str | None = None
    dialect: Dialect | None = None
    sql: str | None = None
    on_error: str = "reject"
    rejects: PathGiven | None = None
    allow_empty: bool = False
    stop: Stop | None = None
    observer: Callable[[RunningJob], None] | None = None
    max_text_bytes: int = DEFAULT_MAX_TEXT_BYTES

    def __post_init__(self) -> None:
        values.checked_choice("on_error", self.on_error, ("reject", "stop"))

    def told(self) -> dict[str, str]:
        """Describe how rows are read, as far as it tells one job from another."""
        told = self.fields.told() | (self.dialect.told() if self.dialect else {})
        return told | ({"sql": self.sql} if self.sql else {})

    def reject_list(self, default: Output | Path, *, overwrite: bool | None = None) -> Output:
        """Look at the file that lists refused rows: the one named, or `default`.

        Raises UsageError where another program made it.
        """
        given = default if self.rejects is None else self.rejects
        if isinstance(given, Output):
            return given
        return Output.checked(given, "--rejects", is_reject_list, overwrite=overwrite)

    def refusals(self, counts: Counts, file: RejectFile) -> Refusals:
        """Return where refused rows go."""
        return Refusals(counts, file, stop_at_first=self.on_error == "stop")


@dataclass(frozen=True, slots=True)
class Input:
    """An input that is about to be read: its batches, its names, and its files if it has any.

    Python records are not read ahead: their iterator may belong to one thread, as
    a database cursor does. `left_out` tells what of folders and globs is not read.
    """

    batches: Iterator[ReadBatch]
    names: tuple[str, ...]
    sources: tuple[Source, ...] = ()
    read_ahead: bool = False
    left_out: LeftOut = field(default_factory=LeftOut)
    told: Findings = field(default_factory=Findings)
    reading: ReadOptions | None = None
    dataset: Any = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Which names of folders and globs were not read, and what readers found out."""
        left_out = self.left_out.told()
        return (*([left_out] if left_out else []), *self.told.notes)

    def reject_file(self, output: Output) -> RejectFile:
        """Give the list of refused rows, in which earlier runs may have listed others."""
        read = {shown_name(source.path) for source in self.sources}
        names = tuple(map(shown_name, self.names))

        def is_read(path: str) -> bool:
            # What is gone from a folder, or matches no longer, is of this input still.
            return path in read or any(
                path == name or path.startswith(f"{name.rstrip('/')}/") or fnmatchcase(path, name)
                for name in names
            )

        return RejectFile(output.path, is_read)

    def coming(self, job: RunningJob, stop: Stop) -> AbstractContextManager[Iterator[ReadBatch]]:
        """Give the batches, their reading timed and, where it may be, ahead of their use."""
        return self.through(lambda batches: batches, job, stop)

    def through(
        self, make: Callable[[Iterator[ReadBatch]], Iterator[T]], job: RunningJob, stop: Stop
    ) -> AbstractContextManager[Iterator[T]]:
        """Give what is made of the batches; it is made where they are read."""
        made = make(timed_reads(self.batches, job.counts))
        return ahead(made, stop) if self.read_ahead else nullcontext(made)


def open_input(
    given: Records, options: JobOptions, job: RunningJob, outputs: Sequence[Output] = ()
) -> Input:
    """Open paths or Python records, whichever `given` holds, and look at the first batch.

    `outputs` are what the job writes: no inputs, where folders or globs name them, and
    UsageError is raised where the input names them itself.
    Nothing has been made or started when that raises; NoRows where there is none.
    """
    items = iter([given]) if is_path(given) else _rows_in(given)
    first = next(items, _NOTHING)
    if first is _NOTHING:
        raise NoRows(_NO_ROWS)
    reading = read_options(
        options.fields, max_text_bytes=options.max_text_bytes, allow_empty=options.allow_empty
    )
    if not is_path(first) or containers.is_column(given):
        if options.sql is not None or (options.dialect and options.dialect.told()):
            raise UsageError("a query or a dialect is for files, and the input is Python records")
        records = read_records(chain([first], items), reading, limit=options.limit)
        return Input(_not_empty(records), (RECORDS_PATH,), told=reading.told, reading=reading)
    paths = [first, *items]
    there = _found(given, paths, options, outputs)
    for output in outputs:
        output.not_among(source.path for source in there.sources)
    batches = read_sources(there.sources, reading, limit=options.limit, progress=job.progress)
    sources = tuple(there.sources)
    names = tuple(map(named, [each.path for each in sources] if options.sql else paths))
    batches = _not_empty(batches)
    return Input(batches, names, sources, True, there.left_out, reading.told, reading)


def _rows_in(given: Any) -> Iterator[Any]:
    try:
        return containers.rows_in(given)
    except containers.NotTexts as error:
        raise UsageError(str(error)) from error


def _found(given: Any, paths: list[Any], options: JobOptions, outputs: Sequence[Output]) -> Found:
    """Look up what paths name; texts that were meant to be records are told so."""
    written = [each.path for each in outputs if each.ours]
    try:
        return found(paths, options.format, written, dialect=options.dialect, sql=options.sql)
    except InputNotFound as error:
        raise InputNotFound(f"{error}{_perhaps_texts(given, paths)}") from error


def _perhaps_texts(given: Any, paths: list[Any]) -> str:
    """Say how texts are given, where names in a list look as if they were some."""
    texts = [path for path in paths if isinstance(path, str) and not os.path.exists(path)]
    words = any(len(text.split()) > 2 for text in texts)
    words = words or (bool(texts) and not any(set(text) & set("./*") for text in texts))
    if is_path(given) or not words:
        return ""
    return " If these are texts and no paths, give them as records: [{'text': t} for t in texts]"


def _not_empty(batches: Iterator[ReadBatch]) -> Iterator[ReadBatch]:
    first = next(batches, None)
    if first is None:
        raise NoRows(_NO_ROWS)
    return chain([first], batches)

"""What became of a folder's files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from memworker.ingestion.readers.folders import LeftOut
from memworker.ingestion.report import IngestReport


@dataclass(slots=True)
class FileCounts:
    """What was found of each file; counted when its commit is made."""

    files: int = 0
    added: int = 0
    updated: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    would_remove: int = 0
    kept: int = 0
    vanished: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    without_fields: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a folder and its table had to be brought in step.

    Of the `files` found, some were `added` or `updated`, `moved` ones came from another name,
    the others were `unchanged`. `removed` counts documents whose files are gone, `would_remove`
    those that still stand in the table because `delete` was not given, `kept` those whose files
    are there but are left out now. `skipped` tells what was no document, by reason; `rejected`
    counts what could not be read or written, listed in the file `rejects`. With `dry_run` all
    this is what would have been done. `embedding` tells of rows, tokens and time.
    """

    folder: str
    files: int
    added: int
    updated: int
    moved: int
    unchanged: int
    removed: int
    would_remove: int
    kept: int
    vanished: int
    skipped: dict[str, int]
    rejected: int
    conflicts: int
    embedding: IngestReport | None
    rejects: str | None = None
    dry_run: bool = False
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def in_step(self) -> bool:
        """Whether the table holds what the folder holds, as far as this run can tell."""
        return not (self.would_remove or self.rejected or self.conflicts or self.interrupted)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values, for JSON."""
        return asdict(self)


def outcome(
    folder: str, counts: FileCounts, embedding: IngestReport | None, **more: Any
) -> SyncReport:
    """Close the numbers of a run."""
    numbers = {f.name: getattr(counts, f.name) for f in fields(counts) if f.type == "int"}
    skipped = dict(counts.left_out.counts)
    return SyncReport(folder=folder, **numbers, skipped=skipped, embedding=embedding, **more)

"""What a job did: the numbers that people and scripts read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memworker.pool.meter import Work


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The outcome of an ingest (or of an embed, where the store's numbers are 0).

    ``read = written + duplicates + conflicts + rejected``; `updated` are those
    of the conflicts that replaced their row. Times are seconds, from the first
    dispatch to the last commit; `startup_seconds` come before. `tokens` are
    real ones, padding apart; `padding_ratio` is the share of padding, 0 to 1.
    `reused` rows took the vector of an equal text of this run. `workers` is 0
    when every row was known and none had to be started. `interrupted` tells
    that a `Stop` left rows undone; `notes` is what a person should know.
    """

    read: int
    embedded: int
    written: int
    duplicates: int
    conflicts: int
    updated: int
    rejected: int
    truncated: int
    startup_seconds: float
    seconds: float
    texts_per_second: float
    tokens: int
    tokens_per_second: float
    padding_ratio: float
    workers: int
    model: str
    precision: str
    table_version: int | None = None
    rejects: str | None = None
    reused: int = 0
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no row had to be refused."""
        return self.rejects is None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Counts:
    """What has happened so far; each number has one writing thread."""

    read: int = 0
    written: int = 0
    duplicates: int = 0
    conflicts: int = 0
    updated: int = 0
    rejected: int = 0
    reused: int = 0
    table_version: int | None = None
    last_commit: float = 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """How a job was run: what a report says beside its counts."""

    startup_seconds: float
    workers: int
    model: str
    precision: str
    rejects: str | None = None
    interrupted: bool = False
    notes: tuple[str, ...] = ()


def report(counts: Counts, work: Work, setting: Setting) -> IngestReport:
    """Close a job's numbers."""
    end = max(counts.last_commit, work.last_vector)
    seconds = max(0.0, end - work.first_dispatch) if work.first_dispatch else 0.0
    embedded = work.texts - work.failed
    return IngestReport(
        read=counts.read,
        embedded=embedded,
        written=counts.written,
        duplicates=counts.duplicates,
        conflicts=counts.conflicts,
        updated=counts.updated,
        rejected=counts.rejected,
        truncated=work.truncated,
        startup_seconds=round(setting.startup_seconds, 4),
        seconds=round(seconds, 4),
        texts_per_second=round(embedded / seconds, 2) if seconds else 0.0,
        tokens=work.real_tokens,
        tokens_per_second=round(work.real_tokens / seconds, 1) if seconds else 0.0,
        padding_ratio=round(work.padding_ratio, 4),
        workers=setting.workers,
        model=setting.model,
        precision=setting.precision,
        table_version=counts.table_version,
        rejects=setting.rejects,
        reused=counts.reused,
        interrupted=setting.interrupted,
        notes=setting.notes,
    )

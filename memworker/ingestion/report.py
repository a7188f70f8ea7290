"""What a job did: the numbers that people and scripts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from memworker.pool import WorkTotals


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

    `gemm_limit_ratio` is the arithmetic of the real tokens, a second, over what this
    machine's cores can do at most in the same precision; None for models without
    matrix products. `time` tells where seconds went: `read` and `write`
    of their threads, `tokenize`, `encode` and `wait` added up over the workers.
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
    padded_tokens_per_second: float = 0.0
    gemm_limit_ratio: float | None = None
    time: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chunks: int = 0
    moved: int = 0
    removed: int = 0

    @property
    def complete(self) -> bool:
        """Whether no row had to be refused."""
        return self.rejects is None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values, for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Counts:
    """What has happened so far. Several threads add to it, so they do it through `add`."""

    read: int = 0
    written: int = 0
    duplicates: int = 0
    conflicts: int = 0
    updated: int = 0
    rejected: int = 0
    reused: int = 0
    chunks: int = 0
    moved: int = 0
    removed: int = 0
    table_version: int | None = None
    last_commit: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0
    _adding: Lock = field(default_factory=Lock, repr=False, compare=False)

    def add(self, **amounts: float) -> None:
        """Add to the named numbers."""
        with self._adding:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


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
    flops_per_token: float = 0.0
    gemm_flops_per_s: float | None = None


def report(counts: Counts, work: WorkTotals, setting: Setting) -> IngestReport:
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
        padded_tokens_per_second=round(work.padded_tokens / seconds, 1) if seconds else 0.0,
        gemm_limit_ratio=_limit_ratio(work, seconds, setting),
        time=_time(counts, work, seconds, setting.workers),
        notes=setting.notes,
        chunks=counts.chunks,
        moved=counts.moved,
        removed=counts.removed,
    )


def _limit_ratio(work: WorkTotals, seconds: float, setting: Setting) -> float | None:
    if not (seconds and setting.gemm_flops_per_s and setting.flops_per_token):
        return None
    done = work.real_tokens * setting.flops_per_token / seconds
    return round(done / setting.gemm_flops_per_s, 4)


def _time(counts: Counts, work: WorkTotals, seconds: float, workers: int) -> dict[str, float]:
    spent = {
        "read": counts.read_s,
        "tokenize": work.tokenize_s,
        "encode": work.encode_s,
        "wait": max(0.0, workers * seconds - work.tokenize_s - work.encode_s),
        "write": counts.write_s,
    }
    return {name: round(value, 4) for name, value in spent.items()}

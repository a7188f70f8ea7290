"""The loop of every job: parts of a source, through a pool, to a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, Self, TypeVar

import pyarrow as pa

from memworker import heap
from memworker.chunking import MODEL
from memworker.errors import PoolClosed
from memworker.ingestion.records import ReadProgress
from memworker.ingestion.rejects import RejectFile
from memworker.ingestion.report import Counts, Setting
from memworker.ingestion.reuse import Reuse, ReusePlan, WindowVectors
from memworker.ingestion.stop import Stop, closed_after_grace
from memworker.pool import (
    EmbeddingPool,
    PoolUse,
    TextKind,
    Tokenization,
    TokenRows,
    WorkTotals,
    machine,
    peak_flops,
)


class WindowPart(Protocol):
    """Rows that come from a source together; equal `text_keys` mean equal texts, None says none.

    `cut` parts them at row numbers, without copying.
    """

    @property
    def texts(self) -> pa.Array | TokenRows: ...
    @property
    def text_keys(self) -> pa.Array | None: ...
    def cut(self, ends: Iterable[int]) -> Iterator[Self]: ...


P = TypeVar("P", bound=WindowPart)


class Afar(Protocol):
    """Encoders on other machines, as a progress display and a report see them."""

    @property
    def nodes(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def work(self) -> WorkTotals: ...


@dataclass(slots=True)
class RunningJob:
    """A running job as a progress display reads it; `pool`, or `afar`, is set once it has begun."""

    counts: Counts
    progress: ReadProgress
    pool: EmbeddingPool | None = None
    afar: Afar | None = None


class JobLoop:
    """Takes parts through a pool, cut to its windows; equal texts are embedded once.

    The workers start at the first part: a job without one starts none. `startup_seconds`
    begins with those that it took to make the pool.
    """

    def __init__(
        self, use: PoolUse, stop: Stop, job: RunningJob, *, startup_seconds: float = 0.0
    ) -> None:
        self._use, self.stop, self.job = use, stop, job
        self._before = use.pool.work
        self.startup_seconds = startup_seconds

    @property
    def work(self) -> WorkTotals:
        """What was embedded for this job; of a pool that others use too, all meanwhile."""
        return self._use.pool.work.since(self._before)

    @property
    def tokenization(self) -> Tokenization | None:
        """How the pool's model makes tokens of texts; None where it has none that we know."""
        return self._use.pool.identity.tokenization

    @property
    def workers(self) -> int:
        """How many workers there are; 0 before they start."""
        return self._use.pool.workers if self.job.pool is not None else 0

    def truncation(self, helps: str) -> tuple[str, ...]:
        """Say that a notable part of the texts is longer than the model takes, and what helps."""
        work, most = self.work, self._use.pool.identity.max_tokens
        embedded = work.texts - work.failed
        if work.truncated <= embedded / 100:
            return ()
        return (
            f"{work.truncated:,} of {embedded:,} texts are longer than the {most:,} tokens that the"
            f" model takes, and what is beyond is in no vector: `ingest --chunk {MODEL}`"
            f" (chunk={MODEL!r}), {helps}",
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the pool has less of than was asked for."""
        return self._use.notes if self.job.pool is not None else ()

    def setting(self, refused: RejectFile, notes: Iterable[str] = ()) -> Setting:
        """Return how the job was run, for its report."""
        made_with = self._use.pool.identity
        return Setting(
            startup_seconds=self.startup_seconds,
            workers=self.workers,
            model=made_with.name,
            precision=made_with.precision,
            rejects=str(refused.path) if refused.rows else None,
            interrupted=self.stop.cut_short,
            notes=(*notes, *refused.notes, *self.notes),
            flops_per_token=made_with.flops_per_token,
            gemm_flops_per_s=peak_flops.recall(machine.usable_cores(), made_with.precision),
        )

    @contextmanager
    def running(self) -> Iterator[EmbeddingPool]:
        """Hold the pool in the context; a pool closed by `stop` ends it without an error."""
        with self._use as pool, heap.given_back(), closed_after_grace(self._use, self.stop):
            try:
                yield pool
            except PoolClosed:
                if not self.stop.acknowledge():
                    raise

    def run(
        self,
        parts: Iterator[P],
        take: Callable[[P, WindowVectors], None],
        *,
        kind: TextKind = "passage",
    ) -> None:
        """Embed all parts, and give each to `take` with its vectors, in their order."""
        first = next(parts, None)
        if first is None or self.stop.acknowledge():
            return
        self.startup_seconds += _start(self._use)
        pool = self.job.pool = self._use.pool
        reuse = Reuse(pool.dim)
        planned = self._planned(chain([first], parts), pool, reuse)
        del first
        for (part, plan), embedded in pool.stream(planned, texts=_texts_to_embed, kind=kind):
            self.job.counts.add(reused=plan.reused)
            # In the order of the plans, which the stream keeps: a row may need an earlier vector.
            take(part, reuse.settle(plan, embedded))
            # Not held while the next one is waited for; it may be megabytes.
            del part, plan, embedded

    def _planned(
        self, parts: Iterator[P], pool: EmbeddingPool, reuse: Reuse
    ) -> Iterator[tuple[P, ReusePlan]]:
        for whole in parts:
            for part in whole.cut(pool.window_ends(whole.texts)):
                if self.stop.acknowledge():
                    return
                yield part, reuse.plan(part.texts, part.text_keys)


def _texts_to_embed(part: tuple[Any, ReusePlan]) -> pa.Array | TokenRows:
    return part[1].texts


def _start(use: PoolUse) -> float:
    """Start a job's pool, if it has not been, and say how many seconds that took.

    Before an own one starts, what the machine can do is measured, if it is not known yet.
    """
    if use.own:
        made_with = use.pool.identity
        peak_flops.know_for(made_with.flops_per_token, made_with.precision)
    made_s = use.pool.startup_seconds
    return use.pool.start().startup_seconds - made_s

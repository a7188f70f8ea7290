"""A line about a running job, on stderr: a live one on a terminal, else one now and then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

from memworker.cli.output import stderr_is_terminal

if TYPE_CHECKING:
    from memworker.ingestion import Afar, RunningJob
    from memworker.pool import EmbeddingPool

_REFRESH_S = 0.25
LOG_EVERY_S = 30.0


@contextmanager
def shown(
    limit: int | None, *, quiet: bool = False
) -> Iterator[Callable[[RunningJob], None] | None]:
    """Give the observer that shows a job, in a log by a line every 30 s; None if `quiet`."""
    if quiet or sys.stderr is None:
        yield None
        return
    show = _show if stderr_is_terminal() else _log
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def observe(job: RunningJob) -> None:
        thread = threading.Thread(target=show, args=(job, limit, stop), daemon=True)
        threads.append(thread)
        thread.start()

    try:
        yield observe
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _show(job: RunningJob, limit: int | None, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live as Display

    console = Console(stderr=True)
    # A terminal that was closed meanwhile must not end the job.
    with suppress(OSError), Display(console=console, auto_refresh=False, transient=True) as display:
        while not stop.wait(_REFRESH_S):
            display.update(_line(job, limit), refresh=True)


def _log(job: RunningJob, limit: int | None, stop: threading.Event) -> None:
    # A log that cannot be written any more must not end the job.
    with suppress(OSError, ValueError):
        while not stop.wait(LOG_EVERY_S):
            print(f"memworker: {_line(job, limit)}", file=sys.stderr, flush=True)


def _line(job: RunningJob, limit: int | None) -> str:
    counts = job.counts
    if job.afar is not None:
        return _line_afar(job, job.afar, limit)
    if job.pool is None:
        return f"{counts.read:,} read, {counts.duplicates:,} of them known"
    work = job.pool.work
    # To the last vector: while the rest is committed and indexed, the rate stands.
    seconds = work.seconds
    rate = work.texts / seconds if seconds else 0.0
    tokens = work.real_tokens / seconds if seconds else 0.0
    left = _rows_left(job, limit)
    eta = f", ETA {_clock(left / rate)}" if left is not None and rate else ""
    busy, total = job.pool.busy_workers, job.pool.workers
    return (
        f"{counts.read:,} read, {work.texts:,} embedded, {counts.written:,} committed"
        f" · {rate:,.0f} texts/s, {tokens:,.0f} tokens/s{_of_limit(job.pool, tokens)}{eta}"
        f" · {busy}/{total} workers busy"
    )


def _line_afar(job: RunningJob, afar: Afar, limit: int | None) -> str:
    work, counts = afar.work, job.counts
    rate = work.texts / work.seconds if work.seconds else 0.0
    tokens = work.real_tokens / work.seconds if work.seconds else 0.0
    left = _rows_left(job, limit)
    eta = f", ETA {_clock(left / rate)}" if left is not None and rate else ""
    return (
        f"{counts.read:,} read, {work.texts:,} embedded, {counts.written:,} committed"
        f" · {rate:,.0f} texts/s, {tokens:,.0f} tokens/s{eta}"
        f" · {afar.nodes:,} nodes, {afar.workers:,} workers"
    )


def _of_limit(pool: EmbeddingPool, tokens_per_s: float) -> str:
    """Name the share of this machine's matrix limit in its precision, where that is known."""
    made = pool.identity
    most, flops = _gemm_limit(made.precision), made.flops_per_token
    if not (most and flops):
        return ""
    return f" ({tokens_per_s * flops / most:.0%} of {made.precision} limit)"


@cache
def _gemm_limit(precision: str) -> float | None:
    from memworker.pool import machine, peak_flops

    return peak_flops.recall(machine.usable_cores(), precision)


def _rows_left(job: RunningJob, limit: int | None) -> float | None:
    """Estimate how many rows are still to be embedded, if there is anything to go by."""
    counts, share = job.counts, job.progress.share
    # What was read so far stands for the rest: so many rows in so many bytes.
    by_bytes = counts.read / share if share else None
    totals = [total for total in (limit, by_bytes) if total is not None]
    at_work = job.afar or job.pool
    if not totals or at_work is None:
        return None
    known = counts.duplicates + counts.conflicts + counts.rejected + counts.reused
    return max(0.0, min(totals) - known - at_work.work.texts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""A live line about a running job, on stderr and only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memworker.ingest.job import Live

_REFRESH_S = 0.25


@contextmanager
def shown(limit: int | None) -> Iterator[Callable[[Live], None] | None]:
    """Give the observer that shows a job; None where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def observe(job: Live) -> None:
        thread = threading.Thread(target=_show, args=(job, limit, stop), daemon=True)
        threads.append(thread)
        thread.start()

    try:
        yield observe
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _show(job: Live, limit: int | None, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.live import Live as Display

    console = Console(stderr=True)
    with Display(console=console, auto_refresh=False, transient=True) as display:
        while not stop.wait(_REFRESH_S):
            display.update(_line(job, limit), refresh=True)


def _line(job: Live, limit: int | None) -> str:
    counts, work = job.counts, job.pool.work
    seconds = time.perf_counter() - work.first_dispatch if work.first_dispatch else 0.0
    rate = work.texts / seconds if seconds else 0.0
    tokens = work.real_tokens / seconds if seconds else 0.0
    settled = counts.duplicates + counts.conflicts + counts.rejected + work.texts
    eta = f", ETA {_clock((limit - settled) / rate)}" if limit and rate else ""
    busy, total = job.pool.busy_workers, job.pool.workers
    return (
        f"{counts.read:,} read, {work.texts:,} embedded, {counts.written:,} committed"
        f" · {rate:,.0f} texts/s, {tokens:,.0f} tokens/s{eta} · {busy}/{total} workers busy"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

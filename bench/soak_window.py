"""What a load met since somebody last looked: how long calls took, counts, complaints."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from bench.common import Result

COMPLAINTS_MAX = 20


class Window:
    """Collects until it is taken, then begins anew; any number of threads may share one.

    It keeps nothing of what was taken: a load that grows itself could not be told
    from a program that does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, list[float]] = {}
        self._counts: Counter[str] = Counter()
        self._complaints: list[str] = []

    def count(self, what: str, many: int = 1) -> None:
        """Count something."""
        with self._lock:
            self._counts[what] += many

    def took(self, kind: str, seconds: float) -> None:
        """Note how long a call took that was answered."""
        with self._lock:
            self._counts[kind] += 1
            self._seconds.setdefault(kind, []).append(seconds)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Time a call; one that raises is not counted here."""
        started = perf_counter()
        yield
        self.took(kind, perf_counter() - started)

    def complain(self, what: str, said: str) -> None:
        """Count what must not be, and keep the words of the first few."""
        with self._lock:
            self._counts[what] += 1
            if len(self._complaints) < COMPLAINTS_MAX:
                self._complaints.append(f"{what}: {said}"[:500])

    def take(self) -> Result:
        """Give all since the last time: latencies in ms by kind of call, counts, complaints."""
        with self._lock:
            seconds, self._seconds = self._seconds, {}
            counts, self._counts = self._counts, Counter()
            complaints, self._complaints = self._complaints, []
        return {
            "latency": {kind: _percentiles(values) for kind, values in sorted(seconds.items())},
            "counts": dict(counts),
            "complaints": complaints,
        }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p95 = (1e3 * np.percentile(seconds, (50, 95))).round(3).tolist()
    return {"p50_ms": p50, "p95_ms": p95}

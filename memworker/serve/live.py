"""What the live page shows: the last minutes in numbers, never a text."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np
import psutil

from memworker.pool import EmbeddingPool
from memworker.serve.meanings import meaning
from memworker.serve.metrics import Metrics

_STEP_S = 1.0
_STEPS = 120
_RATE_STEPS = 5
_LATENCIES = 4096
_LATENCY_WINDOW_S = 60.0
_ERRORS = 12
_LOOK_S = 0.5
_EMBEDDING_ROUTES = frozenset(
    {"/v1/embeddings", "/embed", "/similarity", "/api/embed", "/api/embeddings"}
)


class Latency(msgspec.Struct, frozen=True):
    """Seconds of the embedding requests answered in the last minute."""

    requests: int
    p50: float
    p95: float
    p99: float


class WorkerView(msgspec.Struct, frozen=True):
    """A worker process; `cpu` is the share of a core it had since the page was last asked for."""

    pid: int
    alive: bool
    memory_bytes: int
    cpu: float | None


class ErrorView(msgspec.Struct, frozen=True):
    """Refusals or failures of one kind: the last `at` seconds since 1970; what it means."""

    at: float
    route: str
    status: int
    code: str | None
    count: int
    says: str


class LiveReply(msgspec.Struct, frozen=True):
    """What `GET /live` answers. Rates are a second; `tokens` and `texts` one a second, old first.

    `limit_ratio` is the arithmetic done over what this machine's cores can do at
    most by the engine and in the precision that run; null where either is not known. The
    totals are those since the start, and `wants_key` says whether requests must bear a key.
    """

    state: str
    uptime_s: float
    names: list[str]
    precision: str
    dim: int
    in_flight: int
    queue_tokens: int
    texts_per_s: float
    tokens_per_s: float
    requests_per_s: float
    limit_ratio: float | None
    latency: Latency
    busy_workers: int
    workers: list[WorkerView]
    restarts: int
    total_texts: int
    total_tokens: int
    wants_key: bool
    total_requests: int
    errors: list[ErrorView]
    texts: list[float]
    tokens: list[float]


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    texts: int
    tokens: int
    requests: int
    encode_s: float


class LiveWindow:
    """Keeps the last minutes of what `metrics` counts; used on the event loop alone."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.monotonic()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_LATENCIES)
        self._errors: dict[tuple[str, int, str | None], ErrorView] = {}
        self._samples: deque[_Sample] = deque(maxlen=_STEPS + 1)
        self._cpu: dict[int, tuple[float, float]] = {}
        self._views: list[WorkerView] = []
        self._looked = 0.0

    def answered(self, route: str, status: int, seconds: float, code: str | None) -> None:
        """Note how a request ended, and have it counted."""
        self._metrics.answered(route, status, seconds)
        if route in _EMBEDDING_ROUTES and status == 200:
            self._latencies.append((time.monotonic(), seconds))
        if status >= 400:
            self._note(route, status, code)

    async def watch(self, pool: EmbeddingPool) -> None:
        """Sample the pool's totals once a second, until cancelled."""
        while True:
            work = pool.work
            self._samples.append(
                _Sample(
                    time.monotonic(), work.texts, work.real_tokens, self.requests, work.encode_s
                )
            )
            await asyncio.sleep(_STEP_S)

    def rates(self) -> tuple[float, float, float]:
        """Give texts, tokens and requests a second over the last seconds."""
        if len(self._samples) < 2:
            return 0.0, 0.0, 0.0
        new, old = self._samples[-1], self._samples[max(0, len(self._samples) - 1 - _RATE_STEPS)]
        seconds = new.at - old.at
        return (
            (new.texts - old.texts) / seconds,
            (new.tokens - old.tokens) / seconds,
            (new.requests - old.requests) / seconds,
        )

    def computed_tokens_per_s(self, workers: int) -> float:
        """Give tokens a second of the time that they took to compute.

        Work counts when it is done: of what ends now some was computed before these seconds.
        """
        if len(self._samples) < 2:
            return 0.0
        new, old = self._samples[-1], self._samples[max(0, len(self._samples) - 1 - _RATE_STEPS)]
        seconds = max(new.at - old.at, (new.encode_s - old.encode_s) / max(1, workers))
        return (new.tokens - old.tokens) / seconds

    def series(self) -> tuple[list[float], list[float]]:
        """Give texts a second and tokens a second, a value a step, oldest first."""
        samples = list(self._samples)
        steps = list(zip(samples, samples[1:], strict=False))
        texts = [(b.texts - a.texts) / (b.at - a.at) for a, b in steps]
        tokens = [(b.tokens - a.tokens) / (b.at - a.at) for a, b in steps]
        return [round(rate, 1) for rate in texts], [round(rate, 1) for rate in tokens]

    def latency(self) -> Latency:
        """Give percentiles over the last minute."""
        since = time.monotonic() - _LATENCY_WINDOW_S
        seconds = [taken for at, taken in self._latencies if at >= since]
        if not seconds:
            return Latency(0, 0.0, 0.0, 0.0)
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99)).tolist()
        return Latency(len(seconds), p50, p95, p99)

    def errors(self) -> list[ErrorView]:
        """Give the last kinds of refusals, newest first."""
        return list(reversed(self._errors.values()))

    def _note(self, route: str, status: int, code: str | None) -> None:
        kind = (route, status, code)
        before = self._errors.pop(kind, None)
        count = 1 if before is None else before.count + 1
        self._errors[kind] = ErrorView(time.time(), route, status, code, count, meaning(*kind[1:]))
        if len(self._errors) > _ERRORS:
            del self._errors[next(iter(self._errors))]

    @property
    def uptime_s(self) -> float:
        """Seconds since the server began."""
        return time.monotonic() - self._started

    @property
    def requests(self) -> int:
        """How many embedding requests were answered."""
        return self._metrics.requests(_EMBEDDING_ROUTES)

    def workers(self, pool: EmbeddingPool) -> list[WorkerView]:
        """Look at the worker processes."""
        now = time.monotonic()
        # Several who look at once see the same: between two looks there must be some time.
        if now - self._looked >= _LOOK_S:
            views = [self._worker(pid) for pid in pool.worker_pids()]
            self._cpu = {view.pid: self._cpu[view.pid] for view in views if view.alive}
            self._views, self._looked = views, now
        return self._views

    def _worker(self, pid: int) -> WorkerView:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                memory, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error:
            return WorkerView(pid, alive=False, memory_bytes=0, cpu=None)
        now, used = time.monotonic(), times.user + times.system
        last = self._cpu.get(pid)
        self._cpu[pid] = now, used
        share = None if last is None else round((used - last[1]) / (now - last[0]), 3)
        return WorkerView(pid, alive=True, memory_bytes=memory, cpu=share)

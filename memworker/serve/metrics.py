"""What Prometheus reads: requests as they were answered, and the pool's own totals."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from memworker.pool import EmbeddingPool

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_Pool = Callable[[], EmbeddingPool | None]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """Counters on a private registry; all names begin with `memworker_`."""

    def __init__(self, pool: _Pool, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._answered: dict[tuple[str, int], int] = {}
        self._seconds = Histogram(
            "memworker_request_seconds",
            "From a request's head to its whole reply.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._inputs = Histogram(
            "memworker_request_inputs",
            "Inputs a request.",
            buckets=_INPUTS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "memworker_request_tokens", "Tokens of the inputs answered.", registry=self._registry
        )
        # Looked up once: labels cost more than counting.
        self._by_route: dict[str, Histogram] = {}
        self.cut = 0
        """Texts that were cut before they came to the pool."""
        self._registry.register(_Totals(self._answered, pool, waiting, lambda: self.cut))
        ProcessCollector(namespace="memworker", registry=self._registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._answered[route, status] = self._answered.get((route, status), 0) + 1
        histogram = self._by_route.get(route)
        if histogram is None:
            histogram = self._by_route[route] = self._seconds.labels(route)
        histogram.observe(seconds)

    def requests(self, routes: Container[str]) -> int:
        """Give how many requests of these routes were answered, whatever the status."""
        return sum(count for (route, _), count in self._answered.items() if route in routes)

    def embedded(self, inputs: int, tokens: int) -> None:
        """Count what a request gave to embed."""
        self._inputs.observe(inputs)
        self._tokens.inc(tokens)

    def page(self) -> bytes:
        """Write all of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Totals(Collector):
    """Reads the counts and the pool when asked, so that serving costs nothing."""

    def __init__(
        self,
        answered: Mapping[tuple[str, int], int],
        pool: _Pool,
        waiting: Callable[[], int],
        cut: Callable[[], int],
    ) -> None:
        self._answered = answered
        self._pool = pool
        self._waiting = waiting
        self._cut = cut

    def collect(self) -> Iterator[Metric]:
        text = "Requests answered; status 499: the client left."
        requests = CounterMetricFamily("memworker_requests", text, labels=["route", "status"])
        for (route, status), count in self._answered.items():
            requests.add_metric([route, str(status)], count)
        yield requests
        yield _gauge("requests_in_flight", "Requests that are being embedded.", self._waiting())
        pool = self._pool()
        if pool is None:
            return
        work = pool.work
        yield _gauge("queue_tokens", "Tokens (estimated) taken and not done.", pool.pending_tokens)
        yield _gauge("workers", "Worker processes.", pool.workers)
        yield _gauge("workers_ready", "Workers that can take work.", pool.ready_workers)
        yield _gauge("workers_busy", "Workers that have something to do.", pool.busy_workers)
        yield _counter("worker_restarts", "Workers that were replaced.", work.restarts)
        yield _counter("texts", "Texts embedded.", work.texts)
        yield _counter("texts_failed", "Texts that could not be embedded.", work.failed)
        truncated = work.truncated + self._cut()
        yield _counter("texts_truncated", "Texts seen in part only.", truncated)
        yield _counter("tokens", "Tokens embedded, padding apart.", work.real_tokens)
        yield _counter("tokens_padded", "Tokens computed, padding included.", work.padded_tokens)
        yield _counter("batches", "Pieces of work given to a worker.", work.shards)
        yield _counter("tokenize_seconds", "Workers' time in tokenising.", work.tokenize_s)
        yield _counter("encode_seconds", "Workers' time in the model.", work.encode_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"memworker_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"memworker_{name}", text, value=value)

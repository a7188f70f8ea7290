"""`EmbeddingPool`: texts in, vectors out, over worker processes."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa

from memworker.errors import PoolForked, TextTooLarge, UsageError
from memworker.models import ReadyModel, ready_model
from memworker.pool import machine, plan
from memworker.pool.arena import SlotShape
from memworker.pool.echo import EchoLoader
from memworker.pool.encoder import OnnxLoader
from memworker.pool.meter import Work
from memworker.pool.requests import Embedded, Floats, Request, arrow_texts
from memworker.pool.scheduler import Scheduler
from memworker.pool.worker import Loader

Kind = Literal["passage", "query"]

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MAX_TEXT_BYTES = 1 << 20
_SLOT_VECTOR_BYTES = 4 << 20
_SLOT_ROWS = 1024
_URGENT_ROWS = 64
_URGENT_TEXT_BYTES = 1 << 18
_WINDOWS_IN_FLIGHT = 3


class EmbeddingPool:
    """Worker processes that embed texts, each with its own ONNX Runtime session.

    `model` is a catalogue name, a local directory, ``"echo"`` (no model: for
    measuring everything else) or a picklable loader. `workers` defaults to the
    physical cores that this process may use. Use it as a context manager, or
    call `close`; a forgotten pool is cleaned up.

    Raises UsageError for bad arguments, ModelError when the model cannot be
    had, WorkerStartFailed and SharedMemoryExhausted when workers cannot start.
    """

    def __init__(
        self,
        model: str | Path | Loader = DEFAULT_MODEL,
        *,
        workers: int | None = None,
        precision: str = "fp32",
        max_tokens: int | None = None,
        max_text_bytes: int = DEFAULT_MAX_TEXT_BYTES,
    ) -> None:
        started = time.perf_counter()
        self.workers = machine.usable_cores() if workers is None else workers
        if self.workers < 1:
            raise UsageError(f"workers must be at least 1, not {self.workers}")
        if max_text_bytes < 1:
            raise UsageError(f"max_text_bytes must be at least 1, not {max_text_bytes}")
        self.max_text_bytes = max_text_bytes
        self.model, loader, costs = _prepare(model, precision, max_tokens)
        self.dim = loader.dim
        self._pid = os.getpid()
        shapes = _slot_shapes(self.dim, max_text_bytes)
        self._scheduler = Scheduler(loader, shapes, costs, workers=self.workers)
        self._finalizer = weakref.finalize(self, _close_here, self._scheduler, self._pid)
        self._scheduler.start()
        self.startup_seconds = time.perf_counter() - started

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Floats:
        """Embed texts; float32[n, dim] in input order.

        Raises TypeError for what is not `str`, TextTooLarge, and TextFailed for
        the first text that could not be embedded.
        """
        future = self.submit(texts, kind=kind)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def submit(self, texts: Sequence[str], *, kind: Kind = "passage") -> Future[Floats]:
        """Embed in the background; the future's result is what `embed` returns."""
        inner = self.submit_rows(texts, kind=kind)
        outer: Future[Floats] = Future()
        inner.add_done_callback(lambda done: _hand_over(done, outer))
        outer.add_done_callback(lambda done: inner.cancel() if done.cancelled() else None)
        return outer

    def submit_rows(
        self, texts: Sequence[str] | pa.Array, *, kind: Kind = "passage"
    ) -> Future[Embedded]:
        """Embed in the background, row by row: a bad text fails its own row only."""
        if os.getpid() != self._pid:
            raise PoolForked(
                f"this pool belongs to process {self._pid}; after os.fork() make a new one in"
                f" process {os.getpid()}"
            )
        if kind not in ("passage", "query"):
            raise UsageError(f"kind must be 'passage' or 'query', not {kind!r}")
        request = Request(arrow_texts(texts), self.dim, query=kind == "query")
        self._refuse_large(request)
        self._scheduler.submit(request)
        return request.future

    def embed_batches(
        self, texts: Iterable[str], *, batch_size: int = 8192, kind: Kind = "passage"
    ) -> Iterator[tuple[list[str], Floats]]:
        """Stream any number of texts; yields (texts, float32[k, dim]) in input order.

        Memory is bounded by a few batches, however long the stream is.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        source = iter(texts)
        batches = iter(lambda: list(islice(source, batch_size)), [])
        for batch, embedded in self.stream(batches, kind=kind):
            _raise_first(embedded)
            yield batch, embedded.vectors

    def stream(
        self, windows: Iterable[Any], *, kind: Kind = "passage"
    ) -> Iterator[tuple[Any, Embedded]]:
        """Embed windows (lists of str or Arrow string arrays) with a few in flight, in order."""
        flying: deque[tuple[Any, Future[Embedded]]] = deque()
        try:
            for window in windows:
                flying.append((window, self.submit_rows(window, kind=kind)))
                if len(flying) >= _WINDOWS_IN_FLIGHT:
                    done, future = flying.popleft()
                    yield done, future.result()
            while flying:
                done, future = flying.popleft()
                yield done, future.result()
        finally:
            for _, future in flying:
                future.cancel()

    @property
    def work(self) -> Work:
        """Totals since the pool began: texts, tokens, padding, times."""
        return self._scheduler.meter.work

    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._scheduler.worker_pids()

    def close(self) -> None:
        """End the workers and release their memory; unfinished work gets PoolClosed."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _refuse_large(self, request: Request) -> None:
        lengths = request.byte_lengths
        if lengths.max(initial=0) > self.max_text_bytes:
            row = int(lengths.argmax())
            raise TextTooLarge(
                f"texts[{row}] has {lengths[row]:,} bytes, over the cap of"
                f" {self.max_text_bytes:,}. Split it, or raise max_text_bytes."
            )


def _prepare(
    model: str | Path | Loader, precision: str, max_tokens: int | None
) -> tuple[ReadyModel | None, Loader, plan.Costs]:
    loader = EchoLoader() if model == "echo" else model
    if not isinstance(loader, (str, Path)):
        rows_only = plan.Costs(max_tokens=1 << 30, shard_tokens=1 << 30, row_tokens=1.0)
        return None, loader, rows_only
    ready = ready_model(loader, precision=precision, max_tokens=max_tokens)
    costs = plan.Costs(max_tokens=ready.max_tokens)
    return ready, OnnxLoader(ready, costs.batch_tokens), costs


def _slot_shapes(dim: int, max_text_bytes: int) -> tuple[SlotShape, ...]:
    rows = max(1, min(_SLOT_ROWS, _SLOT_VECTOR_BYTES // (4 * dim)))
    bulk = SlotShape(rows, dim, max(max_text_bytes, 2 << 20))
    return bulk, bulk, SlotShape(_URGENT_ROWS, dim, _URGENT_TEXT_BYTES)


def _close_here(scheduler: Scheduler, pid: int) -> None:
    # A forked child holds a copy of the pool, but neither its thread nor its workers.
    if os.getpid() == pid:
        scheduler.close()


def _hand_over(inner: Future[Embedded], outer: Future[Floats]) -> None:
    if inner.cancelled() or not outer.set_running_or_notify_cancel():
        return
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
        return
    embedded = inner.result()
    if embedded.failures:
        outer.set_exception(embedded.failures[min(embedded.failures)])
    else:
        outer.set_result(embedded.vectors)


def _raise_first(embedded: Embedded) -> None:
    if embedded.failures:
        raise embedded.failures[min(embedded.failures)]

"""`EmbeddingPool`: texts in, vectors out, over worker processes."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, Literal, Self, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memworker.containers import stream_of
from memworker.errors import PoolClosed, PoolError, PoolForked, TextTooLarge, UsageError, again
from memworker.models import DEFAULT_MODEL as DEFAULT_MODEL, check_choice
from memworker.pool import plan
from memworker.pool.arena import Form
from memworker.pool.choice import PrecisionGiven, has_choice, is_auto, settled
from memworker.pool.engine import ModelGiven, checked_precision, resolve
from memworker.pool.meter import WorkTotals
from memworker.pool.requests import Embedded, Floats, Request, VectorsFuture
from memworker.pool.rows import TokenRows, text_rows, token_rows
from memworker.pool.scheduler import CLOSED, QueueEntry, Scheduler
from memworker.pool.sizing import SizingOptions, pool_plan
from memworker.pool.supervisor import WatchLimits
from memworker.values import positive, shown, whole

TextKind = Literal["passage", "query"]
TextsGiven: TypeAlias = Sequence[str] | pa.Array | TokenRows
W = TypeVar("W")

DEFAULT_MAX_TEXT_BYTES = 1 << 20
DEFAULT_STALL_TIMEOUT_S = 30.0
DEFAULT_MEMORY_GROWTH_BYTES = 512 << 20


def _itself(window: Any) -> Any:
    return window


class EmbeddingPool:
    """Worker processes that embed texts, each with its own ONNX Runtime session.

    `model` is a catalogue name, a local directory, what `resolve` gave, ``"echo"``
    (no model: for measuring everything else) or a picklable loader. `precision` is "fp32",
    "int8", "bf16", or "auto": the fastest that is near enough to fp32, measured once on a
    machine (see `Auto`), which `choice` tells. `workers`
    defaults to what `memworker tune` found here, else to the physical cores that this
    process may use; `batch_tokens`, the padded tokens of a session run, likewise.
    `dim` keeps the first numbers of each vector, to length one again, for models
    trained for that. `memory` ("4GB", or bytes) bounds parent and workers together: fewer windows,
    smaller runs, then fewer workers keep under it, which `plan.reduced` tells;
    `storing` counts what it takes to put the rows into a table too. What waits is bounded by
    `max_pending_tokens` (estimated; as much as keeps the workers busy for a few
    windows), each for questions, small requests and bulk work: beyond that, callers wait
    their turn. A request of a few session runs goes before bulk work, as long as that keeps
    six sevenths of the work. A worker that a signal has stopped, that gives no
    sign of life for `stall_timeout_s` beyond its estimated work, or that holds
    `memory_growth_bytes` more than at its beginning, is replaced. While no worker can
    be had at all, the pool goes on trying, and what has waited for `stall_timeout_s`
    gets PoolUnavailable, with `retry_after_s`.

    Its `identity` and `dim` are known at once; the workers start at its first text, or
    by `start`, which the context manager calls. Leave that, or call `close`; a
    forgotten pool is cleaned up.

    Raises UsageError for bad arguments, ModelError when the model cannot be had.
    """

    def __init__(
        self,
        model: ModelGiven = DEFAULT_MODEL,
        *,
        workers: int | None = None,
        precision: PrecisionGiven = "fp32",
        max_tokens: int | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        memory: int | str | None = None,
        max_pending_tokens: int | None = None,
        max_text_bytes: int = DEFAULT_MAX_TEXT_BYTES,
        stall_timeout_s: float = DEFAULT_STALL_TIMEOUT_S,
        memory_growth_bytes: int = DEFAULT_MEMORY_GROWTH_BYTES,
        storing: bool = False,
    ) -> None:
        began = time.perf_counter()
        options = SizingOptions(
            workers, batch_tokens, memory, max_text_bytes, max_pending_tokens, storing
        )
        made_in, self.choice = settled(model, precision, max_tokens, EmbeddingPool)
        engine = resolve(model, precision=made_in, max_tokens=max_tokens, dim=dim)
        self.plan = pool_plan(engine, options)
        self.workers = self.plan.workers
        self.max_text_bytes = max_text_bytes
        self.identity = engine.identity
        self.dim = self.identity.dim
        self._pid = os.getpid()
        self._watch_limits = WatchLimits(stall_timeout_s, memory_growth_bytes)
        self._scheduler: Scheduler | None = None
        self._start_failure: PoolError | None = None
        self._closed = False
        self._finalizer: weakref.finalize[..., EmbeddingPool] | None = None
        # Held as long as a start takes, so nothing but a start may wait for it.
        self._starting = threading.Lock()
        self.startup_seconds = time.perf_counter() - began

    @classmethod
    def check(
        cls,
        model: ModelGiven = DEFAULT_MODEL,
        *,
        workers: int | None = None,
        precision: PrecisionGiven = "fp32",
        max_tokens: int | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        memory: int | str | None = None,
    ) -> None:
        """Refuse what no pool could be made of, as far as that is known without fetching a model.

        Raises UsageError, UnknownModel, ModelUnsupported. A repository of the hub that is not here
        passes.
        """
        SizingOptions(workers, batch_tokens, memory, DEFAULT_MAX_TEXT_BYTES)
        made_in = None if is_auto(precision) else str(checked_precision(precision))
        found, size = positive("max_tokens", max_tokens), positive("dim", dim)
        if has_choice(model):
            check_choice(model, precision=made_in, max_tokens=found, dim=size)
        else:
            resolve(model, max_tokens=found, dim=size)

    def start(self) -> Self:
        """Start the workers and wait until all are ready; nothing where they have started.

        Of several threads, one starts them, and all get what comes of it. After a start
        that failed the next one tries again.

        Raises WorkerStartFailed and SharedMemoryExhausted when workers cannot start;
        PoolClosed, also when the pool is closed meanwhile; PoolForked.
        """
        self._refuse_closed()
        self._running()
        return self

    @property
    def started(self) -> bool:
        """Whether the workers have been started; if so, no caller waits for their start."""
        return self._scheduler is not None

    def embed(self, texts: Sequence[str], *, kind: TextKind = "passage") -> Floats:
        """Embed texts; float32[n, dim] in input order.

        Raises TypeError for what is not `str`, TextTooLarge, and TextFailed for
        the first text that could not be embedded.
        """
        embedded = self.embed_rows(texts, kind=kind)
        embedded.raise_first()
        return embedded.vectors

    def embed_rows(
        self, texts: Sequence[str] | pa.Array, *, kind: TextKind = "passage"
    ) -> Embedded:
        """Embed texts row by row: a bad text fails its own row only."""
        future = self.submit_rows(texts, kind=kind)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            # It holds what it raises, whose traceback holds this frame.
            del future

    def submit(
        self, texts: Sequence[str], *, kind: TextKind = "passage", wait_s: float | None = None
    ) -> Future[Floats]:
        """Embed in the background; the future's result is what `embed` returns.

        While too much is waiting this blocks, for `wait_s` seconds at most: then it
        raises PoolBusy, with `retry_after_s`, and nothing of the request was begun. The
        pool's first one waits for its start besides. Cancelling the future drops what
        has not begun.
        """
        return _floats_of(self.submit_rows(texts, kind=kind, wait_s=wait_s))

    def submit_rows(
        self,
        texts: TextsGiven,
        *,
        kind: TextKind = "passage",
        wait_s: float | None = None,
    ) -> Future[Embedded]:
        """Embed in the background, row by row: a bad text fails its own row only."""
        request = self._request(texts, kind)
        (self._scheduler or self._running()).submit(request, wait_s)
        return request.future

    def submit_tokens(
        self, rows: Sequence[Sequence[int]], *, wait_s: float | None = None
    ) -> Future[Embedded]:
        """Embed rows of token ids of the model's own tokenizer, without special tokens.

        They are truncated and framed by special tokens as texts are, and get no
        prefix. A row with an id that is not in the vocabulary fails alone; UsageError
        for what is no token id at all.
        """
        request = self._token_request(rows)
        (self._scheduler or self._running()).submit(request, wait_s)
        return request.future

    def embed_batches(
        self, texts: Iterable[str], *, batch_size: int = 8192, kind: TextKind = "passage"
    ) -> Iterator[tuple[list[str], Floats]]:
        """Stream any number of texts; yields (texts, float32[k, dim]) in input order.

        Memory is bounded by a few batches, however long the stream is.
        """
        for batch, embedded in self.stream(batches_of(texts, batch_size), kind=kind):
            embedded.raise_first()
            yield batch, embedded.vectors
            # Not held while the next one is waited for; it may be megabytes.
            del batch, embedded

    def stream(
        self,
        windows: Iterable[W],
        *,
        texts: Callable[[W], TextsGiven] = _itself,
        kind: TextKind = "passage",
    ) -> Iterator[tuple[W, Embedded]]:
        """Embed windows with a few in flight; yields each with its outcome, in order.

        `texts` gives a window's texts: a list of str, an Arrow string array, or `TokenRows`.
        """
        flying: deque[tuple[W, Future[Embedded]]] = deque()
        try:
            for window in windows:
                flying.append((window, self.submit_rows(texts(window), kind=kind)))
                # Only the caller holds what has landed, while the next one is waited for.
                if len(flying) >= self.plan.windows_in_flight:
                    yield _landed(flying)
            while flying:
                yield _landed(flying)
        finally:
            for _, future in flying:
                future.cancel()

    def window_ends(self, texts: pa.Array | TokenRows) -> list[int]:
        """Cut an Arrow string array[n] into windows, given by their ends; the last is n.

        A window is work enough to keep all workers busy for seconds, and little
        enough to be committed every few seconds.
        """
        rows = texts.array if isinstance(texts, TokenRows) else texts
        lengths = np.asarray(pc.binary_length(rows).fill_null(0), np.int64)
        return plan.cut_windows(lengths, self.plan.costs, workers=self.workers)

    @property
    def work(self) -> WorkTotals:
        """Totals since the pool began: texts, tokens, padding, times."""
        return self._scheduler.work if self._scheduler else WorkTotals()

    @property
    def pending_tokens(self) -> int:
        """Tokens (estimated) that were admitted and are not embedded yet."""
        return self._scheduler.pending_tokens if self._scheduler else 0

    @property
    def busy_workers(self) -> int:
        """How many workers have something to do at this moment."""
        return self._scheduler.busy_workers() if self._scheduler else 0

    @property
    def ready_workers(self) -> int:
        """How many workers are ready for work or at it; 0 while none can be had."""
        return self._scheduler.ready_workers() if self._scheduler else 0

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return self._scheduler.worker_pids() if self._scheduler else []

    def close(self) -> None:
        """End the workers and release their memory; unfinished work gets PoolClosed.

        A start under way ends with PoolClosed too. In a child of os.fork() nothing is done.
        """
        if os.getpid() == self._pid:
            # In this order: a start looks for them in the other one.
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def queue_entry(self, texts: TextsGiven, *, kind: TextKind = "passage") -> QueueEntry:
        """Plan a request for those who wait for its turn in their own way."""
        return self._running().prepare(self._request(texts, kind))

    def queue_token_entry(self, rows: Sequence[Sequence[int]]) -> QueueEntry:
        """Plan a request of token ids, as `submit_tokens` takes them."""
        return self._running().prepare(self._token_request(rows))

    def _request(self, texts: TextsGiven, kind: TextKind) -> Request:
        self._refuse_forked()
        if kind not in ("passage", "query"):
            raise UsageError(f"kind must be 'passage' or 'query', not {kind!r}")
        if isinstance(texts, TokenRows):
            request = Request(texts.rows(), self.dim, Form.TOKENS)
        else:
            form = Form.QUERY if kind == "query" else Form.PASSAGE
            request = Request(text_rows(texts), self.dim, form)
        self._refuse_large(request)
        return request

    def _token_request(self, rows: Sequence[Sequence[int]]) -> Request:
        self._refuse_forked()
        request = Request(token_rows(rows), self.dim, Form.TOKENS)
        self._refuse_large(request)
        return request

    def _running(self) -> Scheduler:
        """Give what feeds the workers, which are ready then."""
        # First, for after a fork no lock can be relied on.
        self._refuse_forked()
        failed_before = self._start_failure
        with self._starting:
            if self._scheduler is None:
                failed = self._start_failure
                if failed is not None and failed is not failed_before:
                    # Another thread tried while this one waited.
                    raise again(failed)
                self._scheduler = self._launched()
            return self._scheduler

    def _launched(self) -> Scheduler:
        self._refuse_closed()
        began = time.perf_counter()
        scheduler = Scheduler(self.plan, self._watch_limits)
        self._finalizer = weakref.finalize(self, _close_here, scheduler, self._pid)
        if self._closed:
            # `close` came before there was a finalizer: the start finds out.
            self._finalizer()
        try:
            scheduler.start()
        except BaseException as error:
            self._finalizer()
            if isinstance(error, PoolError):
                self._start_failure = error
            raise
        self.startup_seconds += time.perf_counter() - began
        return scheduler

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PoolClosed(CLOSED)

    def _refuse_forked(self) -> None:
        if os.getpid() != self._pid:
            raise PoolForked(
                f"this pool belongs to process {self._pid}; after os.fork() make a new one in"
                f" process {os.getpid()}"
            )

    def _refuse_large(self, request: Request) -> None:
        if request.rows.longest > self.max_text_bytes:
            lengths = request.byte_lengths
            row = int(lengths.argmax())
            raise TextTooLarge(
                f"texts[{row}] has {lengths[row]:,} bytes, over the cap of"
                f" {self.max_text_bytes:,}. Split it, or raise max_text_bytes."
            )


def batches_of(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Cut a stream of texts into lists of `size`; UsageError where that is none."""
    count = whole(size)
    if count is None or count < 1:
        raise UsageError(f"batch_size must be a whole number of at least 1, not {shown(size)}")
    source = stream_of(texts)
    return iter(lambda: list(islice(source, count)), [])


def _landed(flying: deque[tuple[W, Future[Embedded]]]) -> tuple[W, Embedded]:
    window, future = flying.popleft()
    try:
        return window, future.result()
    finally:
        # It holds what it raises, whose traceback holds this frame.
        del future


def _close_here(scheduler: Scheduler, pid: int) -> None:
    # A forked child holds a copy of the pool, but neither its thread nor its workers.
    if os.getpid() == pid:
        scheduler.close()


def _floats_of(inner: Future[Embedded]) -> Future[Floats]:
    """Give a future of the vectors alone, which fails when a row has."""
    outer: VectorsFuture[Floats] = VectorsFuture()
    inner.add_done_callback(partial(_hand_over, outer))
    # Weakly, or the two would hold each other, and the vectors, until a full collection. While
    # there is something to cancel, the request holds it.
    outer.add_done_callback(partial(_pass_on_cancel, weakref.ref(inner)))
    return outer


def _pass_on_cancel(held: weakref.ref[Future[Embedded]], outer: Future[Floats]) -> None:
    inner = held()
    if inner is not None and outer.cancelled():
        inner.cancel()


def _hand_over(outer: VectorsFuture[Floats], inner: Future[Embedded]) -> None:
    if inner.cancelled() or not outer.claim():
        return
    error = inner.exception() or inner.result().first_failure
    # Never raised here: this frame, which a traceback would keep, holds both futures.
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result().vectors)

"""The pool as the routes see it: its state, its names, and work that can be given up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from enum import Enum

from memworker.errors import (
    PoolBusy,
    PoolClosed,
    PoolError,
    PoolUnavailable,
    TextFailed,
    TextTooLarge,
)
from memworker.pool import Embedded, EmbeddingPool, machine, peak_flops
from memworker.serve import refusals
from memworker.serve.asgi import ClientGone
from memworker.serve.bodies import Model
from memworker.serve.bridge import Awaited, Bridge
from memworker.serve.inputs import Inputs
from memworker.serve.live import LiveReply, LiveWindow
from memworker.serve.metrics import Metrics
from memworker.serve.options import ServeOptions
from memworker.serve.refusals import Refusal

# A request that is answered sooner is not watched: most are, and watching costs a task.
_WATCH_AFTER_S = 0.25
_log = logging.getLogger("memworker.serve")


class State(Enum):
    """Life cycle of a server."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """One pool served under one or more names; used on the event loop alone.

    `on_failure` is called once, should the pool fail for good.
    """

    def __init__(
        self, options: ServeOptions, on_failure: Callable[[PoolError], None] | None = None
    ) -> None:
        self.options = options
        self._on_failure = on_failure
        self.state = State.STARTING
        self.names: tuple[str, ...] = options.names
        self.created = int(time.time())
        self._awaited: set[Awaited] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.metrics = Metrics(lambda: self._pool, lambda: self.in_flight)
        self.live = LiveWindow(self.metrics)
        self._pool: EmbeddingPool | None = None
        self._bridge: Bridge | None = None
        self._watch: asyncio.Task[None] | None = None
        self._told_outage = False

    def open(self, pool: EmbeddingPool, *, names: tuple[str, ...] = ()) -> None:
        """Begin to serve a pool, under `names` where the options give none."""
        self._pool = pool
        loop = asyncio.get_running_loop()
        self._bridge = Bridge(loop)
        self._watch = loop.create_task(self.live.watch(pool))
        self.names = self.options.names or tuple(dict.fromkeys((pool.identity.name, *names)))
        if self.state is State.STARTING:
            self.state = State.READY

    @property
    def pool(self) -> EmbeddingPool:
        """The pool; Refusal 503 before it is ready and when the server ends."""
        if self.state in (State.DRAINING, State.FAILED):
            raise refusals.draining_error()
        if self._pool is None:
            raise refusals.starting_error()
        return self._pool

    @property
    def condition(self) -> str:
        """The state in a word; `no_worker` where a ready server has none at the moment."""
        if self.state is State.READY and self._pool is not None and not self._pool.ready_workers:
            return "no_worker"
        return self.state.value

    @property
    def in_flight(self) -> int:
        """How many requests are being embedded."""
        return len(self._awaited)

    def models(self) -> list[Model]:
        """Give what the model is served as."""
        return [Model(name, created=self.created) for name in self.names]

    def check_model(self, name: str) -> None:
        """Refuse a name that is not served, as OpenAI does; any before the pool is ready."""
        self.pool  # noqa: B018 - it refuses
        if name not in self.names:
            raise Refusal(
                404,
                f"The model `{name}` does not exist here. Served: {', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )

    def dimensions(self, wanted: int | None) -> int:
        """Give how many numbers a vector shall have; Refusal 400 where the model cannot."""
        made = self.pool.identity
        if wanted is None or wanted == made.dim:
            return made.dim
        if wanted < made.dim and made.matryoshka:
            return wanted
        takes = f"1 to {made.dim}" if made.matryoshka else str(made.dim)
        raise Refusal(
            400,
            f"This model gives {takes} dimensions; {wanted} were asked for.",
            param="dimensions",
            code="invalid_dimensions",
        )

    def normalize(self, wanted: bool) -> bool:
        """Tell whether vectors are still to be normalised; Refusal 400 where they are already."""
        normalised = self.pool.identity.normalized
        if normalised and not wanted:
            raise Refusal(
                400,
                "This model's vectors are normalised; leave `normalize` out, or say true.",
                param="normalize",
                code="invalid_normalize",
            )
        return wanted and not normalised

    async def embed(self, inputs: Inputs, gone: Callable[[], Awaitable[None]]) -> Embedded:
        """Embed, and check what came of it; `gone` returns when the client leaves.

        Raises Refusal, and ClientGone, with which the work was dropped.
        """
        embedded = await self._embedded(inputs, gone)
        inputs.refuse_unfit(embedded, self._max_tokens())
        self._told_outage = False
        self.metrics.embedded(len(embedded.tokens), int(embedded.tokens.sum()))
        return embedded

    def view(self) -> LiveReply:
        """Look at everything that the live page shows; Refusal before there is a pool."""
        if self._pool is None:
            raise refusals.starting_error()
        pool, live, work = self._pool, self.live, self._pool.work
        texts_per_s, tokens_per_s, requests_per_s = live.rates()
        texts, tokens = live.series()
        return LiveReply(
            state=self.condition,
            uptime_s=live.uptime_s,
            names=list(self.names),
            precision=pool.identity.precision,
            dim=pool.dim,
            in_flight=self.in_flight,
            queue_tokens=pool.pending_tokens,
            texts_per_s=texts_per_s,
            tokens_per_s=tokens_per_s,
            requests_per_s=requests_per_s,
            limit_ratio=self._limit_ratio(pool),
            latency=live.latency(),
            busy_workers=pool.busy_workers,
            workers=live.workers(pool),
            restarts=work.restarts,
            total_texts=work.texts,
            total_tokens=work.real_tokens,
            wants_key=self.options.key is not None,
            total_requests=live.requests,
            errors=live.errors(),
            texts=texts,
            tokens=tokens,
        )

    def _limit_ratio(self, pool: EmbeddingPool) -> float | None:
        """Hold what is computed against the most that engine and precision give here."""
        cores, made = machine.usable_cores(), pool.identity
        most = peak_flops.recall(cores, made.precision)
        if not most or not made.flops_per_token:
            return None
        done = self.live.computed_tokens_per_s(pool.workers) * made.flops_per_token
        if done > most:
            # Measured on a busy machine, or a slower clock: what was done can be done.
            peak_flops.beaten(cores, made.precision, done)
        return min(1.0, done / most)

    async def idle(self) -> None:
        """Wait until nothing is being embedded."""
        await self._idle.wait()

    def give_up(self) -> None:
        """Answer what is still being embedded with an error."""
        for awaited in list(self._awaited):
            if not awaited.done():
                awaited.set_exception(PoolClosed("the server's time to drain was over"))

    def close(self) -> None:
        """Stop watching the pool, which is its owner's to close."""
        if self._watch is not None:
            self._watch.cancel()

    async def _embedded(self, inputs: Inputs, gone: Callable[[], Awaitable[None]]) -> Embedded:
        with refusals.translated(), self._watched():
            submitted = self._submit(inputs)
        assert self._bridge is not None
        # No await between the two: a drain that begins sees every request that was submitted.
        awaited = self._bridge.awaited(submitted)
        self._awaited.add(awaited)
        self._idle.clear()
        try:
            with refusals.translated(), self._watched():
                return await _unless_gone(awaited, gone)
        finally:
            self._awaited.discard(awaited)
            if not self._awaited:
                self._idle.set()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notice that the pool is no more: it says so to everybody who asks it.

        One that has no workers for a while lives, and says so to the log once.
        """
        try:
            yield
        except PoolUnavailable as error:
            if not self._told_outage:
                self._told_outage = True
                _log.error("requests are refused: %s", error)
            raise
        except (PoolBusy, PoolClosed, TextTooLarge, TextFailed):
            raise
        except PoolError as error:
            if self.state is State.READY:
                self.state = State.FAILED
                if self._on_failure is not None:
                    self._on_failure(error)
            raise

    def _max_tokens(self) -> int:
        return self._pool.identity.max_tokens if self._pool is not None else 0

    def _submit(self, inputs: Inputs) -> Future[Embedded]:
        pool = self.pool
        inputs.refuse_too_many_tokens(pool.plan.costs, self.options.max_tokens)
        # Never wait here: this is the event loop.
        try:
            if inputs.token_rows:
                return pool.submit_tokens(inputs.token_rows, wait_s=0)
            return pool.submit_rows(inputs.texts, kind=inputs.kind, wait_s=0)
        except TextTooLarge as error:
            raise inputs.too_large_error(pool.max_text_bytes) from error


async def _unless_gone(awaited: Awaited, gone: Callable[[], Awaitable[None]]) -> Embedded:
    watchers: list[asyncio.Task[None]] = []

    async def watch() -> None:
        await gone()
        awaited.cancel()

    def begin() -> None:
        watchers.append(loop.create_task(watch()))

    loop = asyncio.get_running_loop()
    timer = loop.call_later(_WATCH_AFTER_S, begin)
    try:
        return await awaited
    except asyncio.CancelledError:
        if watchers and watchers[0].done():
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()

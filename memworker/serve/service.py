"""The pool as the routes see it: its state, its names, and work that can be given up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from enum import Enum
from typing import Any

from memworker import __version__
from memworker.errors import (
    MemworkerError,
    PoolBusy,
    PoolClosed,
    PoolError,
    PoolUnavailable,
    TextFailed,
    TextTooLarge,
)
from memworker.pool import (
    Awaited,
    Bridge,
    Embedded,
    EmbeddingPool,
    QueueEntry,
    Reranker,
    TextKind,
    Ticket,
    TokenCounter,
    machine,
    peak_flops,
)
from memworker.serve import refusals
from memworker.serve.access import AccessLog
from memworker.serve.asgi import AsgiScope, ClientGone
from memworker.serve.bodies import Model, ModelInfo, Token
from memworker.serve.connection import most_connections
from memworker.serve.inputs import Inputs, too_few_tokens
from memworker.serve.live import LiveReply, LiveWindow
from memworker.serve.metrics import Metrics
from memworker.serve.options import ServeOptions, check_key, read_key
from memworker.serve.refusals import Refusal

# A request is watched from its second look on.
_LOOK_S = 0.2
# What is the request's own fault, or passes: the pool is there.
_NO_END = (PoolBusy, PoolClosed, TextTooLarge, TextFailed)
# As text-embeddings-inference names them.
_POOLINGS = {"cls": "cls", "last": "last_token"}
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
        self._awaited: dict[Awaited, _ClientWatch] = {}
        self._look: asyncio.TimerHandle | None = None
        self._in_hand = _InHand(self)
        # Requests that are being embedded, or wait for that.
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.metrics = Metrics(lambda: self._pool, lambda: self.in_flight)
        self.live = LiveWindow(self.metrics)
        self._pool: EmbeddingPool | None = None
        self.reranker: Reranker | None = None
        self._bridge: Bridge | None = None
        self._watch: asyncio.Task[None] | None = None
        self._told_outage = False
        self._counter: TokenCounter | None = None
        self.key = None if options.key is None else options.key.encode()
        self.access_log = None if options.access_log is None else AccessLog(options.access_log)

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

    @property
    def normalizes(self) -> bool:
        """Whether the model's own vectors are of length one."""
        return self.pool.identity.normalized

    def info(self) -> ModelInfo:
        """Tell of the model and of what a request may be; Refusal before there is a pool."""
        pool, options = self.pool, self.options
        return ModelInfo(
            model_id=self.names[0],
            model_sha=None,
            model_dtype=pool.identity.precision,
            model_type={"embedding": {"pooling": _POOLINGS.get(pool.identity.pooling, "mean")}},
            max_concurrent_requests=most_connections(),
            max_input_length=self.max_tokens,
            max_batch_tokens=options.max_tokens,
            max_batch_requests=None,
            max_client_batch_size=options.max_inputs,
            auto_truncate=options.truncate,
            tokenization_workers=pool.workers,
            version=__version__,
            sha=None,
            docker_label=None,
        )

    async def tokens(self, texts: list[str], kind: TextKind, special: bool) -> list[list[Token]]:
        """Give each text's tokens as the model would see them; Refusal 400 where it has none.

        The tokenizer is loaded when it is first asked for, and works in a thread.
        """
        counter, prefix = await self._tokenizing(kind)
        texts = [prefix + text for text in texts]
        return await asyncio.to_thread(
            lambda: [
                [
                    Token(number, word, masked, *(place or (None, None)))
                    for number, word, masked, place in counter.tokens(text, special=special)
                ]
                for text in texts
            ]
        )

    async def _tokenizing(self, kind: TextKind) -> tuple[TokenCounter, str]:
        """Give the tokenizer, and what stands before a text of that kind."""
        made = self.pool.identity.tokenization
        if made is None:
            raise Refusal(400, "This model has no tokenizer.", code="no_tokenizer")
        if self._counter is None:
            self._counter = await asyncio.to_thread(TokenCounter, made)
        return self._counter, made.query_prefix if kind == "query" else made.prefix

    async def _cut(self, inputs: Inputs, most: int) -> Inputs:
        """Keep the first tokens of each input, special ones counted; Refusal 400 for too few."""
        inputs.refuse_too_many_tokens(self.pool.plan.costs, self.options.max_tokens)
        counter, prefix = await self._tokenizing(inputs.kind)
        if most <= counter.special:
            raise too_few_tokens(most, counter.special)
        if inputs.token_rows:
            room = most - counter.special
            rows = [row[:room] for row in inputs.token_rows]
            cut = sum(len(row) > room for row in inputs.token_rows)
        else:
            if max(len(text.encode()) for text in inputs.texts) > self.pool.max_text_bytes:
                raise inputs.too_large_error(self.pool.max_text_bytes)
            texts = [prefix + text for text in inputs.texts]
            rows, cut = await asyncio.to_thread(counter.first_ids, texts, most)
        if not cut:
            return inputs
        self.metrics.cut += cut
        return replace(inputs, texts=[], token_rows=rows)

    def answered(self, scope: AsgiScope, route: str, status: int, seconds: float) -> None:
        """Count a request, and write it down where that is wanted."""
        self.live.answered(route, status, seconds, scope.get(refusals.CODE))
        if self.access_log is not None:
            self.access_log.write(scope, route, status, seconds)

    async def embed(self, inputs: Inputs, gone: Callable[[], Awaitable[None]]) -> Embedded:
        """Embed, and check what came of it; `gone` returns when the client leaves.

        Raises Refusal, and ClientGone, with which the work was dropped.
        """
        if inputs.most_tokens is not None:
            inputs = await self._cut(inputs, inputs.most_tokens)
        embedded = await self._embedded(inputs, gone)
        inputs.refuse_unfit(embedded, self.max_tokens)
        self._told_outage = False
        self.metrics.embedded(len(embedded.tokens), sum(embedded.tokens.tolist()))
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

    def busy(self) -> None:
        """Say anew whether something is being embedded."""
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is being embedded, or waits for that."""
        await self._idle.wait()

    def give_up(self) -> None:
        """Answer what is still being embedded with an error."""
        for awaited in list(self._awaited):
            if not awaited.done():
                awaited.set_exception(PoolClosed("the server's time to drain was over"))

    def reload(self) -> None:
        """Read the key again, and begin the access log's file anew; raises UsageError."""
        if self.access_log is not None:
            self.access_log.reopen()
        if self.options.key_file is not None:
            key = read_key(self.options.key_file)
            check_key(key)
            self.key = key.encode()

    def close(self) -> None:
        """Stop watching the pool, which is its owner's to close."""
        for timer in (self._watch, self._look):
            if timer is not None:
                timer.cancel()

    async def _embedded(self, inputs: Inputs, gone: Callable[[], Awaitable[None]]) -> Embedded:
        try:
            entry = self._entry(inputs)
            ticket = entry.enter()
            # No await before: a drain that begins sees every request that was let in.
            with self.in_hand():
                if ticket is not None:
                    await self._turn(ticket, entry, gone)
                embedded: Embedded = await self.awaiting(entry.queue(), gone)
        except MemworkerError as error:
            self._notice(error)
            raise refusals.refused(error) from error
        return embedded

    async def _turn(
        self, ticket: Ticket, entry: QueueEntry, gone: Callable[[], Awaitable[None]]
    ) -> None:
        """Stand in line, unless that is longer than a caller has to wait; raises PoolBusy."""
        most, wait_s = self.options.max_wait_s, entry.wait_s
        try:
            if not most or (wait_s is not None and wait_s > most):
                raise entry.busy_error()
            async with asyncio.timeout(most):
                await self.awaiting(ticket.turn, gone)
        except BaseException as error:
            entry.admission.give_up(ticket)
            if isinstance(error, TimeoutError):
                raise entry.busy_error() from None
            raise

    async def awaiting(self, future: Future[Any], gone: Callable[[], Awaitable[None]]) -> Any:
        """Await what a pool gives; raises ClientGone, with which the work was dropped."""
        assert self._bridge is not None
        awaited = self._bridge.awaited(future)
        waiting = self._awaited[awaited] = _ClientWatch(gone)
        if self._look is None:
            self._look = self._bridge.loop.call_later(_LOOK_S, self._watch_clients)
        try:
            return await awaited
        except BaseException as error:
            future.cancel()
            if waiting.left and isinstance(error, asyncio.CancelledError):
                raise ClientGone from None
            raise
        finally:
            del self._awaited[awaited]
            if waiting.watcher is not None:
                waiting.watcher.cancel()

    def _watch_clients(self) -> None:
        """Begin to watch the clients of what was there at the last look already.

        Most requests are answered by then, and watching costs a task.
        """
        self._look = None
        for awaited, waiting in self._awaited.items():
            if waiting.seen and waiting.watcher is None:
                watch = waiting.watch(awaited)
                waiting.watcher = asyncio.get_running_loop().create_task(watch)
            waiting.seen = True
        if self._awaited and self._bridge is not None:
            self._look = self._bridge.loop.call_later(_LOOK_S, self._watch_clients)

    def in_hand(self) -> _InHand:
        """Count a request as one that a drain waits for."""
        return self._in_hand

    def _notice(self, error: MemworkerError) -> None:
        """Notice that the pool is no more: it says so to everybody who asks it.

        One that has no workers for a while lives, and says so to the log once.
        """
        if isinstance(error, PoolUnavailable):
            if not self._told_outage:
                self._told_outage = True
                _log.error("requests are refused: %s", error)
        elif isinstance(error, PoolError) and not isinstance(error, _NO_END):
            if self.state is State.READY:
                self.state = State.FAILED
                if self._on_failure is not None:
                    self._on_failure(error)

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that the model sees; 0 before there is a pool."""
        return self._pool.identity.max_tokens if self._pool is not None else 0

    def _entry(self, inputs: Inputs) -> QueueEntry:
        pool = self.pool
        inputs.refuse_too_many_tokens(pool.plan.costs, self.options.max_tokens)
        try:
            if inputs.token_rows:
                return pool.queue_token_entry(inputs.token_rows)
            return pool.queue_entry(inputs.texts, kind=inputs.kind)
        except TextTooLarge as error:
            raise inputs.too_large_error(pool.max_text_bytes) from error


class _InHand:
    """Counts a service's requests that a drain waits for; of no state, so that one will do."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def __enter__(self) -> None:
        self._service.in_flight += 1
        self._service.busy()

    def __exit__(self, *_: object) -> None:
        self._service.in_flight -= 1
        self._service.busy()


class _ClientWatch:
    """A request that is being embedded, and whether its client is still there."""

    __slots__ = ("_gone", "left", "seen", "watcher")

    def __init__(self, gone: Callable[[], Awaitable[None]]) -> None:
        self._gone = gone
        self.seen = self.left = False
        self.watcher: asyncio.Task[None] | None = None

    async def watch(self, awaited: Awaited) -> None:
        """Give the work up when the client leaves."""
        await self._gone()
        self.left = True
        awaited.cancel()

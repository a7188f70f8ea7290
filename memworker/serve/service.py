"""The pool as the routes see it: its state, its names, and work that can be given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from enum import Enum

from memworker.pool import Embedded, EmbeddingPool
from memworker.serve import refusals
from memworker.serve.bodies import Model
from memworker.serve.bridge import Awaited, Bridge
from memworker.serve.inputs import Inputs
from memworker.serve.options import ServeOptions
from memworker.serve.refusals import Refusal

# A request that is answered sooner is not watched: most are, and watching costs a task.
_WATCH_AFTER_S = 0.05


class State(Enum):
    """Life cycle of a server."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


class Service:
    """One pool served under one or more names; used on the event loop alone."""

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        self.state = State.STARTING
        self.names: tuple[str, ...] = options.names
        self.created = int(time.time())
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._pool: EmbeddingPool | None = None
        self._bridge: Bridge | None = None

    def open(self, pool: EmbeddingPool, *, names: tuple[str, ...] = ()) -> None:
        """Begin to serve a pool, under `names` where the options give none."""
        self._pool = pool
        self._bridge = Bridge(asyncio.get_running_loop())
        self.names = self.options.names or tuple(dict.fromkeys((pool.identity.name, *names)))
        if self.state is State.STARTING:
            self.state = State.READY

    @property
    def pool(self) -> EmbeddingPool:
        """The pool; Refusal 503 before it is ready and while the server drains."""
        if self.state is State.DRAINING:
            raise refusals.draining()
        if self._pool is None:
            raise refusals.starting()
        return self._pool

    def models(self) -> list[Model]:
        """Give what the model is served as."""
        return [Model(name, created=self.created) for name in self.names]

    def check_model(self, name: str) -> None:
        """Refuse a name that is not served, as OpenAI does."""
        if name not in self.names:
            raise Refusal(
                404,
                f"The model `{name}` does not exist here. Served: {', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )

    def dimensions(self, wanted: int | None) -> int:
        """Give how many numbers a vector shall have; Refusal 400 where the model cannot."""
        full = self.pool.dim
        if wanted is None or wanted == full:
            return full
        raise Refusal(
            400,
            f"This model gives {full} dimensions, and no others; {wanted} were asked for.",
            param="dimensions",
            code="invalid_dimensions",
        )

    async def embed(self, inputs: Inputs, gone: Callable[[], Awaitable[None]]) -> Embedded:
        """Embed; `gone` returns when the client leaves, which drops the work.

        Raises Refusal, and ClientGone.
        """
        with refusals.translated():
            submitted = self._submit(inputs)
        assert self._bridge is not None
        awaited = self._bridge.awaited(submitted)
        self._count(+1)
        try:
            with refusals.translated():
                return await _unless_gone(awaited, gone)
        finally:
            self._count(-1)

    async def idle(self) -> None:
        """Wait until nothing is being embedded."""
        await self._idle.wait()

    def _count(self, change: int) -> None:
        self.in_flight += change
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def _submit(self, inputs: Inputs) -> Future[Embedded]:
        # Never wait here: this is the event loop.
        if inputs.token_rows:
            return self.pool.submit_tokens(inputs.token_rows, wait_s=0)
        return self.pool.submit_rows(inputs.texts, kind=inputs.kind, wait_s=0)


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

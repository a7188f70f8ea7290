"""`AsyncEmbeddingPool`: the pool for coroutines, on any event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence, Sized
from concurrent.futures import Future
from typing import Any, Self

import pyarrow as pa

from memworker.errors import UsageError
from memworker.pool.admission import Ticket
from memworker.pool.bridge import Bridge
from memworker.pool.opening import Background
from memworker.pool.pool import DEFAULT_MODEL, EmbeddingPool, TextKind, batches_of
from memworker.pool.requests import Embedded, Floats
from memworker.pool.scheduler import QueueEntry

# Beyond this the conversion to Arrow would hold up the event loop for over a millisecond.
_ROWS_ON_THE_LOOP = 1024
_BATCHES_IN_FLIGHT = 3


class AsyncEmbeddingPool:
    """An `EmbeddingPool` whose waits are awaited.

    Takes the options of `EmbeddingPool`, makes and starts it in the background and is its
    owner; or takes a pool of the caller's as `pool`, and leaves it open. The
    coroutines of any number of event loops may share it, with threads too. Use it as
    an async context manager, or await `close`::

        async with AsyncEmbeddingPool() as pool:
            vectors = await pool.embed(["one text", "another"])

    What `EmbeddingPool` raises when it is made or started is raised by the first await.
    """

    def __init__(
        self, model: Any = DEFAULT_MODEL, *, pool: EmbeddingPool | None = None, **options: Any
    ) -> None:
        if pool is not None and (options or model != DEFAULT_MODEL):
            raise UsageError("give either a pool or the options to make one with, not both")
        self._owned = pool is None
        # A thread runs one event loop at a time.
        self._here = threading.local()
        self._opening = (
            Background(lambda: EmbeddingPool(model, **options).start())
            if pool is None
            else Background.done(pool)
        )

    async def embed(self, texts: Sequence[str], *, kind: TextKind = "passage") -> Floats:
        """Embed texts; float32[n, dim] in input order.

        Waits for its turn while too much is waiting already. Cancelling drops what
        has not begun. Raises as `EmbeddingPool.embed`.
        """
        embedded = await self.embed_rows(texts, kind=kind)
        embedded.raise_first()
        return embedded.vectors

    async def embed_rows(
        self, texts: Sequence[str] | pa.Array, *, kind: TextKind = "passage"
    ) -> Embedded:
        """Embed texts row by row: a bad text fails its own row only."""
        future = await self._submit(texts, kind)
        embedded: Embedded = await self._bridge().result(future)
        return embedded

    async def embed_batches(
        self, texts: Iterable[str], *, batch_size: int = 8192, kind: TextKind = "passage"
    ) -> AsyncIterator[tuple[list[str], Floats]]:
        """Stream any number of texts; yields (texts, float32[k, dim]) in input order."""
        flying: deque[tuple[list[str], asyncio.Task[Floats]]] = deque()
        try:
            for batch in batches_of(texts, batch_size):
                flying.append((batch, asyncio.ensure_future(self.embed(batch, kind=kind))))
                # The others are embedded while the caller works on this one.
                if len(flying) >= _BATCHES_IN_FLIGHT:
                    yield await _landed(flying)
            while flying:
                yield await _landed(flying)
        finally:
            for _, task in flying:
                task.cancel()

    async def pool(self) -> EmbeddingPool:
        """Give the pool underneath, once its workers are ready."""
        pool = await self._opening.wait()
        if not pool.started:
            await asyncio.to_thread(pool.start)
        return pool

    async def close(self) -> None:
        """End the workers of an owned pool; unfinished work gets PoolClosed."""
        if self._owned:
            try:
                pool = await self._opening.wait()
            except Exception:
                return  # it never opened; callers got that error
            await asyncio.to_thread(pool.close)

    async def __aenter__(self) -> Self:
        await self.pool()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _submit(self, texts: Sequence[str] | pa.Array, kind: TextKind) -> Future[Embedded]:
        pool = await self.pool()
        if isinstance(texts, Sized) and len(texts) > _ROWS_ON_THE_LOOP:
            entry = await asyncio.to_thread(pool.queue_entry, texts, kind=kind)
        else:
            entry = pool.queue_entry(texts, kind=kind)
        # Here on the loop: a thread's answer would be lost if this is cancelled meanwhile.
        ticket = entry.enter()
        if ticket is not None:
            await _turn(ticket, entry)
        return entry.queue()

    def _bridge(self) -> Bridge:
        """Give what carries results to the loop that runs here."""
        loop = asyncio.get_running_loop()
        bridge: Bridge | None = getattr(self._here, "bridge", None)
        if bridge is None or bridge.loop is not loop:
            bridge = self._here.bridge = Bridge(loop)
        return bridge


async def _landed(
    flying: deque[tuple[list[str], asyncio.Task[Floats]]],
) -> tuple[list[str], Floats]:
    # Only the caller holds what has landed, while the next one is waited for.
    batch, task = flying.popleft()
    try:
        return batch, await task
    finally:
        # It holds what it raises, whose traceback holds this frame.
        del task


async def _turn(ticket: Ticket, entry: QueueEntry) -> None:
    try:
        await asyncio.wrap_future(ticket.turn)
    except BaseException:
        # Also when the loop is closed and this coroutine is dropped.
        entry.admission.give_up(ticket)
        raise

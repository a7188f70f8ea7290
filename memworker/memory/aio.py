"""`AsyncMemory`: the same memories for coroutines, on any event loop."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from memworker.memory import drafts, reads
from memworker.memory.core import (
    DEFAULT_TABLE,
    EVERYTHING,
    Core,
    MemoryOptions,
    forked_error,
)
from memworker.memory.drafts import Batch, Content, Message, OnDuplicate
from memworker.memory.group import Sweep, adding, one_vector
from memworker.memory.memory import ALL_DELETED, DELETED, UPDATED, Results
from memworker.memory.reads import Mode, Question
from memworker.memory.scope import Scope
from memworker.memory.shapes import Record, added, deleted
from memworker.paths import DatabaseGiven, database_place
from memworker.pool import (
    DEFAULT_MODEL,
    AsyncEmbeddingPool,
    Background,
    EmbeddingPool,
    PrecisionGiven,
    Reranker,
)

T = TypeVar("T")

# LanceDB reads with its own threads; these only wait for them.
_READERS = 4
# Checking more items than this would hold up the event loop for over a millisecond.
_ITEMS_ON_THE_LOOP = 64


class AsyncMemory:
    """A `Memory` whose waits are awaited; see there for what each method does.

    It opens in the background: what `Memory` raises when it is made is raised by the
    first await. `pool` is an open EmbeddingPool or AsyncEmbeddingPool. Coroutines of
    any number of event loops may share it. Cancelling an add or an update drops it
    as long as it is not embedded; once its commit is queued it is carried out. Use
    it as an async context manager, or await `close`.
    """

    def __init__(
        self,
        db: DatabaseGiven,
        *,
        table: str = DEFAULT_TABLE,
        storage_options: Mapping[str, str] | None = None,
        pool: EmbeddingPool | AsyncEmbeddingPool | None = None,
        model: Any = DEFAULT_MODEL,
        precision: PrecisionGiven = "fp32",
        max_tokens: int | None = None,
        workers: int | None = None,
        durable: bool = False,
        dim: int | None = None,
    ) -> None:
        made = (model, precision, max_tokens, workers, durable, dim)
        # It is opened later, when the working folder may be another one.
        where = database_place(db, storage_options)
        self._stand_on(lambda: Core.made(MemoryOptions(where, table, _sync(pool), *made)))

    @classmethod
    def open(
        cls,
        db: DatabaseGiven,
        *,
        table: str = DEFAULT_TABLE,
        storage_options: Mapping[str, str] | None = None,
        model: Any = None,
        workers: int | None = None,
    ) -> Self:
        """Open memories that are there, as `Memory.open`, in the background."""
        memory = cls.__new__(cls)
        where = database_place(db, storage_options)
        options = MemoryOptions(where, table, model=model, workers=workers)
        memory._stand_on(lambda: Core.opened(options))
        return memory

    async def add(
        self,
        content: Content | Sequence[Message],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: datetime | str | None = None,
        on_duplicate: OnDuplicate = "skip",
    ) -> Results:
        """Add a memory, or one a message, as `Memory.add`."""
        terms = (await self._able()).terms(
            Scope.of(user_id, agent_id, run_id), expires_at, on_duplicate
        )
        batch = drafts.of_one(content, metadata, terms)
        return await self._add(batch, strict=True)

    async def add_batch(
        self,
        contents: Iterable[Content],
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        expires_at: datetime | str | None = None,
        on_duplicate: OnDuplicate = "skip",
    ) -> Results:
        """Add many memories at once, as `Memory.add_batch`."""
        terms = (await self._able()).terms(
            Scope.of(user_id, agent_id, run_id), expires_at, on_duplicate
        )
        many = drafts.listed(contents)
        batch = await self._run(len(many), lambda: drafts.of_many(many, metadata, terms))
        return await self._add(batch, strict=False)

    async def search(
        self,
        query: str,
        *,
        filters: Mapping[str, Any] | None = None,
        limit: int = 10,
        threshold: float | None = None,
        mode: Mode = "vector",
        group: bool = False,
        context: int = 0,
        recency_half_life: timedelta | float | None = None,
        rerank: Reranker | None = None,
    ) -> Results:
        """Find memories, best first, as `Memory.search`."""
        core = await self._core()
        asked = Question(
            query, filters, limit, threshold, mode, group, context, recency_half_life, rerank
        ).checked()
        vector = None
        if mode != "text":
            await self._able()
            vector = reads.query_vector(await self._pool(core).embed_rows([query], kind="query"))
            # It may have been closed meanwhile, and the readers with it.
            core.guard()
        found = await self._read(lambda: reads.search(core.table, vector, asked.found_first))
        if rerank is None or not found["results"]:
            return found
        scored = await AsyncEmbeddingPool(pool=rerank.pool).embed_rows(
            reads.to_rerank(asked, found)
        )
        return reads.reranked(found, scored, asked)

    async def get(self, memory_id: str) -> Record | None:
        """Return one memory, or None when there is none of this id."""
        core = await self._core()
        return await self._read(lambda: reads.get(core.table, memory_id))

    async def get_all(
        self, *, filters: Mapping[str, Any] | None = None, limit: int | None = 100
    ) -> Results:
        """Return the memories that meet the filters, newest first; `limit` None means all."""
        core = await self._core()
        return await self._read(lambda: reads.get_all(core.table, filters, limit))

    async def update(
        self,
        memory_id: str,
        content: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        merge: bool = False,
    ) -> dict[str, str]:
        """Give a memory another text, other metadata, or both, as `Memory.update`."""
        core = await (self._core() if content is None else self._able())
        update = core.updating(memory_id, content, metadata, merge)
        async with self._in_flight(core, 1):
            if update.text is not None:
                embedded = await self._pool(core).embed_rows([update.text])
                update = replace(update, vector=one_vector(embedded))
            await asyncio.wrap_future(core.write(update))
        return dict(UPDATED)

    async def delete(self, memory_id: str, *, erase: bool = False) -> dict[str, str]:
        """Delete a memory, or erase it with its history, as `Memory.delete`."""
        core = await self._core()
        await asyncio.wrap_future(core.delete(memory_id, erase=erase))
        return dict(DELETED)

    async def delete_batch(self, memory_ids: Iterable[str], *, erase: bool = False) -> Results:
        """Delete many memories at once, as `Memory.delete_batch`."""
        asked = (await self._core()).delete_batch(memory_ids, erase=erase)
        futures = (asyncio.wrap_future(future) for _, future in asked)
        await asyncio.gather(*futures, return_exceptions=True)
        return deleted([(one, future.exception()) for one, future in asked])

    async def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        erase: bool = False,
    ) -> dict[str, Any]:
        """Delete all memories that carry these ids, as `Memory.delete_all`."""
        core = await self._core()
        scope = Scope.of(user_id, agent_id, run_id)
        rows = await asyncio.wrap_future(core.write(Sweep(scope.named(), erase)))
        return ALL_DELETED | {"deleted": rows}

    async def history(self, memory_id: str) -> list[Record]:
        """Return what became of a memory, oldest first, as `Memory.history`."""
        core = await self._core()
        return await self._read(lambda: reads.events(core.table, memory_id))

    async def count(self, filters: Mapping[str, Any] | None = None) -> int:
        """Return how many memories there are, of everybody unless filters say otherwise."""
        core = await self._core()
        return await self._read(lambda: reads.count(core.table, filters))

    async def reset(self) -> None:
        """Erase every memory of the table, and all history."""
        core = await self._core()
        await asyncio.wrap_future(core.write(Sweep(EVERYTHING, erase=True)))

    async def close(self) -> None:
        """Let what was accepted be committed and end; a pool that was given is left open."""
        if os.getpid() != self._pid:
            return
        try:
            core = await self._opening.wait()
        except Exception:
            core = None  # it never opened; callers got that error
        if core is not None:
            await asyncio.to_thread(core.close)
        self._readers.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        await self._core()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _stand_on(self, opened: Callable[[], Core]) -> None:
        self._pid = os.getpid()
        self._readers = ThreadPoolExecutor(_READERS, "memworker-read")
        self._opening = Background(lambda: self._finalized(opened()))

    def _finalized(self, core: Core) -> Core:
        weakref.finalize(self, Core.abandon, core)
        return core

    async def _core(self) -> Core:
        if os.getpid() != self._pid:
            raise forked_error(self._pid)
        core = await self._opening.wait()
        core.guard()
        return core

    async def _able(self) -> Core:
        """Give the core once it has its pool, whose model may have to be fetched."""
        core = await self._core()
        if not core.has_pool:
            await self._read(lambda: core.pool)
        return core

    def _pool(self, core: Core) -> AsyncEmbeddingPool:
        return AsyncEmbeddingPool(pool=core.pool)

    async def _add(self, batch: Batch, *, strict: bool) -> Results:
        if not batch.drafts:
            return added(batch, [])
        core, rows = await self._core(), len(batch.drafts)
        async with self._in_flight(core, rows):
            embedded = await self._pool(core).embed_rows(batch.texts)
            left, operation = await self._run(rows, lambda: adding(batch, embedded))
            if strict:
                left.raise_first()
            outcomes = await asyncio.wrap_future(core.write(operation))
        return await self._run(rows, lambda: added(left, outcomes))

    @asynccontextmanager
    async def _in_flight(self, core: Core, rows: int) -> AsyncIterator[None]:
        ticket = core.enter(rows)
        if ticket is not None:
            try:
                await asyncio.wrap_future(ticket.turn)
            except BaseException:
                core.give_up(ticket)
                raise
        try:
            yield
        finally:
            core.leave(rows)

    async def _run(self, items: int, work: Callable[[], T]) -> T:
        """Run what takes longer the more items there are, on the loop if they are few."""
        return work() if items <= _ITEMS_ON_THE_LOOP else await self._read(work)

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)


def _sync(pool: EmbeddingPool | AsyncEmbeddingPool | None) -> EmbeddingPool | None:
    if isinstance(pool, AsyncEmbeddingPool):
        # This thread has no loop, so it runs one to wait on. The workers are not waited for.
        return asyncio.run(pool._opening.wait())
    return pool

"""`Memory`: memories of agents in a LanceDB table, for threads."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Self

from memworker.memory import drafts, reads
from memworker.memory.core import (
    DEFAULT_TABLE,
    EVERYTHING,
    Core,
    MemoryOptions,
)
from memworker.memory.drafts import Batch, Content, Message, OnDuplicate
from memworker.memory.group import Sweep, adding, one_vector
from memworker.memory.reads import Mode, Question
from memworker.memory.scope import Scope
from memworker.memory.shapes import Record, added, deleted
from memworker.paths import DatabaseGiven, database_place
from memworker.pool import (
    DEFAULT_MODEL,
    Embedded,
    EmbeddingPool,
    PrecisionGiven,
    Reranker,
    TextKind,
)

Results = dict[str, list[Record]]

UPDATED = {"message": "Memory updated successfully!"}
DELETED = {"message": "Memory deleted successfully!"}
ALL_DELETED = {"message": "Memories deleted successfully!"}


class Memory:
    """Memories in one LanceDB table: what Mem0 does with `infer=False`, in batches.

    `db` is a directory or, with LanceDB's `storage_options`, an address in object storage
    (``s3://…``); `table` is made if it is not there. `pool` is an open
    EmbeddingPool, which is left open at the end; without one, Memory makes its own
    with `model`, `precision`, `max_tokens` and `workers`, whose workers start with the
    first text to be embedded: list, get, delete and the like need none. With the precision
    "auto" a new table gets the fastest that is near enough to fp32 (see `Auto`), and one
    that is there keeps its own. `durable` makes
    the table durable, for good: each commit, by any program, is forced to the disk
    before it is acknowledged. Any number of threads may
    share a Memory: what they add meanwhile is embedded and committed together, and
    each returns after its commit. Several processes may each have a Memory of one
    table. Use it as a context manager, or call `close`.

    Raises TableMismatch when the table holds vectors of another model, ModelError,
    StoreUnwritable, what EmbeddingPool raises when it is made. Whatever embeds raises
    WorkerStartFailed when no worker can be had; the next call tries again. Every
    method raises PoolClosed after `close`, and PoolForked in a child of os.fork().
    """

    def __init__(
        self,
        db: DatabaseGiven,
        *,
        table: str = DEFAULT_TABLE,
        storage_options: Mapping[str, str] | None = None,
        pool: EmbeddingPool | None = None,
        model: Any = DEFAULT_MODEL,
        precision: PrecisionGiven = "fp32",
        max_tokens: int | None = None,
        workers: int | None = None,
        durable: bool = False,
        dim: int | None = None,
    ) -> None:
        made = (model, precision, max_tokens, workers, durable, dim)
        where = database_place(db, storage_options)
        self._stand_on(Core.made(MemoryOptions(where, table, pool, *made)))

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
        """Open memories that are there, whatever model their vectors are of.

        That model is looked for when the first text is to be embedded, so nothing else needs
        it; `model` is its directory where it is in no catalogue. Raises TableNotFound, and
        when it embeds ModelError, TableMismatch for another model's directory.
        """
        memory = cls.__new__(cls)
        where = database_place(db, storage_options)
        options = MemoryOptions(where, table, model=model, workers=workers)
        memory._stand_on(Core.opened(options))
        return memory

    def add(
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
        """Add a memory, or one a message; returns ``{"results": [{id, memory, event, …}]}``.

        Messages are dicts of role and content, a text or a list of parts, of which those
        of the type text count. Messages of the role system and messages without any
        text are left out; role and name (as actor_id) go into the metadata. When the same
        text is there already in the same scope, `on_duplicate` says what becomes of it:
        ``skip`` returns the one there (event NONE), ``update`` gives it the metadata
        and expiry of this call (event UPDATE; what is not given stays), ``allow`` adds
        another. All messages are written in one commit, or none.

        Raises ScopeMissing without any id, UsageError for a blank text or metadata that
        JSON cannot say, TextTooLarge, TextFailed.
        """
        terms = self._core.terms(Scope.of(user_id, agent_id, run_id), expires_at, on_duplicate)
        batch = drafts.of_one(content, metadata, terms)
        return self._add(batch, strict=True)

    def add_batch(
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
        """Add many memories in one embedding pass and one commit; results in their order.

        `metadata` is one for all or a list with one each. An item that cannot be
        stored gives ``{"error": …, "index": i}`` in its place; the others are stored.
        So there is a result for each, for a message that `add` leaves out too.
        """
        terms = self._core.terms(Scope.of(user_id, agent_id, run_id), expires_at, on_duplicate)
        batch = drafts.of_many(contents, metadata, terms)
        return self._add(batch, strict=False)

    def search(
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
        """Find memories; returns ``{"results": [{id, memory, score, …}]}``, best first.

        `filters` must bind user_id, agent_id or run_id (see store/filters.py for all they
        can say). `threshold` leaves out lower scores: the cosine (-1 to 1) in mode
        ``vector``, BM25 (0 and up) in mode ``text``, 0 to 1 in mode ``hybrid``. In a table of
        chunks (see `ingest`) `group` gives each text once, by its best chunk. `context` gives
        each the memories `before` and `after` it, that many of the same scope by time, which
        in mode ``hybrid`` count for its score too. `recency_half_life`, a timedelta or days,
        prefers what is recent a little. `rerank` has a Reranker score the best 50, or `limit`
        if that is more; its scores, 0 to 1, order them, and are what `threshold` is for. Raises
        ScopeMissing, FilterError, UsageError for a blank query.
        """
        self._core.guard()
        asked = Question(
            query, filters, limit, threshold, mode, group, context, recency_half_life, rerank
        ).checked()
        vector = None if mode == "text" else reads.query_vector(self._embed([query], "query"))
        found = reads.search(self._core.table, vector, asked.found_first)
        if rerank is None or not found["results"]:
            return found
        scored = rerank.pool.embed_rows(reads.to_rerank(asked, found))
        return reads.reranked(found, scored, asked)

    def get(self, memory_id: str) -> Record | None:
        """Return one memory, or None when there is none of this id."""
        self._core.guard()
        return reads.get(self._core.table, memory_id)

    def get_all(
        self, *, filters: Mapping[str, Any] | None = None, limit: int | None = 100
    ) -> Results:
        """Return the memories that meet the filters, newest first; `limit` None means all.

        Raises ScopeMissing when the filters bind no scope id.
        """
        self._core.guard()
        return reads.get_all(self._core.table, filters, limit)

    def update(
        self,
        memory_id: str,
        content: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        merge: bool = False,
    ) -> dict[str, str]:
        """Give a memory another text, other metadata, or both; what is None stays, and its id.

        The metadata are replaced; with `merge` their fields join those there are, and replace
        those of the same names. Without `content` nothing is embedded. The version before is
        kept in its history. Raises MemoryNotFound, UsageError.
        """
        update = self._core.updating(memory_id, content, metadata, merge)
        with self._core.in_flight(1):
            if update.text is not None:
                update = replace(update, vector=one_vector(self._embed([update.text])))
            self._core.write(update).result()
        return dict(UPDATED)

    def delete(self, memory_id: str, *, erase: bool = False) -> dict[str, str]:
        """Delete a memory; its history stays, unless `erase`, which removes all of it for good.

        Raises MemoryNotFound.
        """
        self._core.guard()
        self._core.delete(memory_id, erase=erase).result()
        return dict(DELETED)

    def delete_batch(self, memory_ids: Iterable[str], *, erase: bool = False) -> Results:
        """Delete many memories at once, as `delete`; a result for each, in their order.

        It is ``{"id": …, "event": "DELETE"}``, or ``{"error": …, "index": i}`` for what is
        not there: the others are deleted.
        """
        self._core.guard()
        asked = self._core.delete_batch(memory_ids, erase=erase)
        return deleted([(one, future.exception()) for one, future in asked])

    def delete_all(
        self,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        erase: bool = False,
    ) -> dict[str, Any]:
        """Delete all memories that carry these ids; with `erase`, their history too.

        The reply says how many rows were `deleted`. Raises ScopeMissing without any id.
        """
        self._core.guard()
        scope = Scope.of(user_id, agent_id, run_id)
        rows = self._core.write(Sweep(scope.named(), erase)).result()
        return ALL_DELETED | {"deleted": rows}

    def history(self, memory_id: str) -> list[Record]:
        """Return what became of a memory, oldest first; nothing when it never was.

        Each is ``{id, memory_id, old_memory, new_memory, event, created_at, updated_at,
        is_deleted}``, event being ADD, UPDATE or DELETE; role and actor_id too where it
        was a message.
        """
        self._core.guard()
        return reads.events(self._core.table, memory_id)

    def count(self, filters: Mapping[str, Any] | None = None) -> int:
        """Return how many memories there are, of everybody unless filters say otherwise."""
        self._core.guard()
        return reads.count(self._core.table, filters)

    def reset(self) -> None:
        """Erase every memory of the table, and all history."""
        self._core.guard()
        self._core.write(Sweep(EVERYTHING, erase=True)).result()

    def close(self) -> None:
        """Let what was accepted be committed and end; a pool that was given is left open."""
        self._core.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stand_on(self, core: Core) -> None:
        self._core = core
        self._finalizer = weakref.finalize(self, Core.abandon, core)

    def _add(self, batch: Batch, *, strict: bool) -> Results:
        if not batch.drafts:
            return added(batch, [])
        with self._core.in_flight(len(batch.drafts)):
            batch, operation = adding(batch, self._embed(batch.texts))
            if strict:
                batch.raise_first()
            return added(batch, self._core.write(operation).result())

    def _embed(self, texts: list[str], kind: TextKind = "passage") -> Embedded:
        return self._core.pool.embed_rows(texts, kind=kind)

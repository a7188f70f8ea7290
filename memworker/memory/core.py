"""What `Memory` and `AsyncMemory` share: table, pool and writer, opened and closed together."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from memworker.errors import (
    PoolClosed,
    PoolForked,
    TableNotFound,
    UnknownModel,
    UsageError,
)
from memworker.memory.drafts import (
    OnDuplicate,
    Terms,
    checked_text,
    listed,
    metadata_json,
    moment,
    policy,
)
from memworker.memory.group import (
    Alone,
    Delete,
    EraseOne,
    Operation,
    Update,
)
from memworker.memory.reads import checked_id
from memworker.memory.scope import Scope
from memworker.memory.upkeep import BackgroundUpkeep
from memworker.memory.writer import CLOSED, GroupWriter
from memworker.paths import DatabaseGiven
from memworker.pool import (
    DEFAULT_MODEL,
    Admission,
    EmbeddingPool,
    LatePool,
    PoolOptions,
    PoolUse,
    PrecisionGiven,
    Ticket,
    borrowed_or_own,
    is_auto,
    refuse_absent,
)
from memworker.store import Table, VectorSpace

DEFAULT_TABLE = "memories"
# Rows between their admission and their commit: a few megabytes of vectors.
PENDING_ROWS = 16_384
EVERYTHING: Mapping[str, Any] = {"id": {"gte": ""}}
"""The filter that every row meets, for the store refuses an empty one."""
# What a forgotten Memory may still take at the interpreter's end, to finish a commit.
_LAST_COMMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How a Memory is opened; see `Memory`."""

    db: DatabaseGiven
    table: str = DEFAULT_TABLE
    pool: EmbeddingPool | None = None
    model: Any = DEFAULT_MODEL
    precision: PrecisionGiven = "fp32"
    max_tokens: int | None = None
    workers: int | None = None
    durable: bool = False
    dim: int | None = None


class Core:
    """A table, a pool and a writer. May be shared by threads and coroutines, not by processes.

    The pool's workers start when the first text is to be embedded: what needs no vector needs
    no worker.
    """

    def __init__(self, table: Table, use: PoolUse | LatePool) -> None:
        self._pid = os.getpid()
        self.table = table
        self._use = use
        self._admission = Admission(PENDING_ROWS)
        self._upkeep = BackgroundUpkeep(self.table)
        self._writer = GroupWriter(self.table, self._upkeep.committed)
        self._closing = threading.Lock()
        self._closed = self._ended = False
        self._idle = threading.Condition()
        self._in_flight = 0

    @classmethod
    def made(cls, options: MemoryOptions) -> Core:
        """Open a table, made if need be, for vectors of the model of the options."""
        use = _pool_use(options)
        # A table of another model is refused here, before any worker starts.
        space = VectorSpace.of(use.pool.identity)
        table = Table.open_or_create(options.db, options.table, space, durable=options.durable)
        return cls(table, use)

    @classmethod
    def opened(cls, options: MemoryOptions) -> Core:
        """Open a table that is there; its own model is looked for when the first text comes."""
        table = Table.open(options.db, options.table)
        return cls(table, LatePool(lambda: pool_like(table, options.model, options.workers)))

    @property
    def pool(self) -> EmbeddingPool:
        """The pool, made now if need be. Raises ModelError, TableMismatch, PoolClosed."""
        return self._use.pool

    @property
    def has_pool(self) -> bool:
        """Whether the pool is there; if so, no caller waits for its model."""
        return isinstance(self._use, PoolUse) or self._use.made

    def guard(self) -> None:
        """Raise PoolForked in a child of os.fork(), PoolClosed after close()."""
        # First, for after a fork no lock can be relied on.
        if os.getpid() != self._pid:
            raise forked_error(self._pid)
        if self._closed:
            raise PoolClosed(CLOSED)

    def enter(self, rows: int) -> Ticket | None:
        """Ask for room for `rows`: None is admission, a ticket a place in line. See `leave`."""
        self.guard()
        with self._idle:
            # Asked again under the lock that `close` takes: it waits for all that were counted.
            if self._closed:
                raise PoolClosed(CLOSED)
            self._in_flight += 1
        try:
            return self._admission.enter(rows)
        except BaseException:
            self._left()
            raise

    @contextmanager
    def in_flight(self, rows: int) -> Iterator[None]:
        """Have `rows` in flight, blocking until it is their turn."""
        ticket = self.enter(rows)
        if ticket is not None:
            try:
                ticket.turn.result()
            except BaseException:
                self.give_up(ticket)
                raise
        try:
            yield
        finally:
            self.leave(rows)

    def terms(
        self, scope: Scope, expires_at: datetime | str | None, on_duplicate: OnDuplicate
    ) -> Terms:
        """Check what holds for every item of a call, and return it."""
        self.guard()
        there = policy(on_duplicate)
        return Terms(scope, moment(expires_at), there, self.pool.max_text_bytes)

    def updating(self, memory_id: Any, content: Any, metadata: Any, merge: bool) -> Update:
        """Check an update, which has its vector still to come where it has a text.

        One of metadata alone asks for no pool.
        """
        self.guard()
        checked_id(memory_id)
        if content is None and metadata is None:
            raise UsageError("update() changes nothing: give content, metadata or both")
        if merge and metadata is None:
            raise UsageError("merge=True merges metadata into those there are; give metadata")
        text = None if content is None else checked_text(content, self.pool.max_text_bytes)
        return Update(memory_id, metadata_json(metadata), merge, text)

    def give_up(self, ticket: Ticket) -> None:
        """Give up a ticket whose turn has not come, and leave."""
        self._admission.give_up(ticket)
        self._left()

    def leave(self, rows: int) -> None:
        """Note that what was entered is done or failed, which makes room for others."""
        self._admission.leave(rows)
        self._left()

    def write(self, operation: Operation | Alone) -> Future[Any]:
        """Queue an operation for the next commit.

        What is in flight may do so while everything is being closed; whatever else
        comes must ask `guard` first.
        """
        return self._writer.submit(operation)

    def delete(self, memory_id: str, *, erase: bool) -> Future[Any]:
        """Queue the deletion of a memory. Raises UsageError for what is no id."""
        checked_id(memory_id)
        return self.write(EraseOne(memory_id) if erase else Delete(memory_id))

    def delete_batch(
        self, memory_ids: Iterable[str], *, erase: bool
    ) -> list[tuple[str, Future[Any]]]:
        """Queue the deletions of many memories, each with its id. Raises UsageError for one id."""
        ids = listed(memory_ids, "ids", "delete")
        return [(one, self._deleting(one, erase)) for one in ids]

    def _deleting(self, memory_id: str, erase: bool) -> Future[Any]:
        try:
            return self.delete(memory_id, erase=erase)
        except UsageError as flaw:
            refused: Future[Any] = Future()
            refused.set_exception(flaw)
            return refused

    def close(self) -> None:
        """Let what was accepted be committed, then end everything. Safe to call twice."""
        if os.getpid() != self._pid:
            return
        with self._closing:
            # In this order: none enters, those in line are refused, those in flight write, and
            # only then is the writer drained; the pool goes last, for these may be embedding.
            with self._idle:
                self._closed = True
            self._admission.close(PoolClosed(CLOSED))
            with self._idle:
                self._idle.wait_for(lambda: not self._in_flight)
            self._end(drain=True)

    def abandon(self) -> None:
        """End without draining: only the commit under way is awaited. For a forgotten Memory."""
        if os.getpid() != self._pid or self._ended:
            return
        self._closed = True
        self._end(drain=False, timeout_s=_LAST_COMMIT_S)

    def _end(self, *, drain: bool, timeout_s: float | None = None) -> None:
        self._writer.close(drain=drain, timeout_s=timeout_s)
        self._upkeep.close(timeout_s)
        self._use.close()
        self._ended = True

    def _left(self) -> None:
        with self._idle:
            self._in_flight -= 1
            self._idle.notify_all()


def forked_error(owner: int) -> PoolForked:
    """Say that this process is a child of the owner's."""
    return PoolForked(
        f"this Memory belongs to process {owner}; after os.fork() make a new one in process"
        f" {os.getpid()}"
    )


def _pool_use(options: MemoryOptions) -> PoolUse:
    given = options.pool
    if given is not None and not isinstance(given, EmbeddingPool):
        raise UsageError(f"pool must be an open EmbeddingPool, not {given!r:.80}")
    pools = PoolOptions(
        options.model,
        options.precision,
        workers=options.workers,
        max_tokens=options.max_tokens,
        dim=options.dim,
    )
    if given is None and is_auto(options.precision):
        # A table keeps its precision; only for a new one is there anything to choose.
        with suppress(TableNotFound):
            there = Table.open(options.db, options.table).space
            pools = pools.for_table(there.model, there.precision)
    return borrowed_or_own(given, pools)


def _made(options: PoolOptions) -> EmbeddingPool:
    try:
        return options.make()
    except UsageError:
        # Another model, with fewer numbers a vector: all that differs is told by the caller.
        return replace(options, dim=None).make()


def pool_like(table: Table, model: Any = None, workers: int | None = None) -> EmbeddingPool:
    """Make a pool that embeds as a table's vectors were; `model` is their model's directory.

    Raises ModelError, TableMismatch for a directory with another model.
    """
    space = table.space
    options = PoolOptions(
        model or space.model,
        space.precision,
        workers,
        max_tokens=space.max_tokens or None,
        dim=space.dim,
    )
    try:
        refuse_absent(options.model, space.model, space.precision)
        pool = _made(options)
    except UnknownModel as error:
        raise UnknownModel(
            f"table {table.name!r} was made with the model {space.model!r}, which is not in the"
            " catalogue; give its directory as the model (--model DIR)"
        ) from error
    space.must_equal(VectorSpace.of(pool.identity, space.distance), table.name)
    return pool

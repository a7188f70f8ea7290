"""A job that embeds windows and has a committer write them, on a table that may fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from memworker.errors import PoolError, StoreError
from memworker.ingestion import committer as committing
from memworker.ingestion.committer import Committer
from memworker.ingestion.records import row_batch
from memworker.ingestion.rejects import Refusals
from memworker.ingestion.report import Counts
from memworker.ingestion.reuse import WindowVectors
from memworker.ingestion.windows import Sieve, Window
from memworker.pool.requests import Request
from memworker.pool.rows import text_rows
from memworker.pool.scheduler import Scheduler
from memworker.store import OnConflict
from memworker.store.commit import Appended
from tests.sim import texts
from tests.sim.callers import Tally, check, started
from tests.sim.outside import SimSystem
from tests.sim.workers import Weather
from tests.sim.world import Actor, Life, Violation, World

committing.COMMIT_ROWS = 12
_IN_FLIGHT = 3


class Broken(StoreError):
    """What the table raises."""


@dataclass
class SimTable:
    """Takes commits, or fails before one or after it."""

    world: World
    fails: float
    rows: list[tuple[str, str, tuple[float, ...]]] = field(default_factory=list)
    whole: int = 0
    version: int = 0

    def append(self, batch: pa.Table, *, on_conflict: str) -> Appended:
        fate = self.world.random.random()
        if fate < self.fails:
            raise Broken("nothing was written")
        vectors = batch["vector"].combine_chunks().flatten().to_numpy().reshape(-1, texts.DIM)
        ids, given = batch["id"].to_pylist(), batch["text"].to_pylist()
        self.rows += zip(ids, given, map(tuple, vectors.tolist()), strict=True)
        if fate < 2 * self.fails:
            raise Broken("written, and nobody can tell")
        self.whole = len(self.rows)
        self.version += 1
        return Appended(len(ids), 0, (), 0, self.version)


@dataclass
class Acknowledged:
    """What the journal was told, which is what others are told."""

    table: SimTable
    position: int = 0
    rows: int = 0

    def committed(self, table: SimTable, position: int) -> None:
        if position <= self.position:
            raise Violation(f"position {position} was acknowledged after {self.position}")
        self.position, self.rows = position, table.whole


class _Rejects(list):
    def add(self, rejects: list[Any]) -> None:
        self.extend(rejects)


class Job:
    """Windows in order, a few in flight; what is embedded is committed in that order."""

    def __init__(
        self,
        world: World,
        scheduler: Scheduler,
        system: SimSystem,
        weather: Weather,
        tally: Tally,
        then: Callable[[], None],
    ) -> None:
        self._world = world
        self._scheduler = scheduler
        self._system = system
        self._weather = weather
        self._tally = tally
        self._table = SimTable(world, fails=world.random.choice((0.0, 0.0, 0.1, 0.5)))
        self._told = Acknowledged(self._table)
        self._rejects = _Rejects()
        self._counts = Counts()
        self._guilt = world.random.choice((0.0, 0.0, 0.1))
        self._windows = [self._window(number) for number in range(world.random.randrange(1, 6))]
        self._put: list[tuple[list[str], WindowVectors]] = []
        self.actor = Actor(world, self._life(), then)

    def _window(self, number: int) -> Window:
        draw = self._world.random
        rows = draw.randrange(1, 9)
        first = 100 * number
        given = [texts.drawn(draw, f"job.{first + row}", self._guilt) for row in range(rows)]
        places = np.arange(first, first + rows)
        keys = pa.array([f"id-{place}" for place in places.tolist()])
        batch = row_batch(places + 1, pa.array(given), keys)
        batch = batch.append_column("ordinal", pa.array(places)).append_column("key", keys)
        return Window("in", batch)

    def _life(self) -> Life:
        yield from started(self._scheduler)
        sieve = Sieve(None, Refusals(self._counts, self._rejects), OnConflict.REJECT)  # type: ignore[arg-type]
        committer = Committer(lambda: self._table, sieve, self._told, self._system)  # type: ignore[arg-type,return-value]
        end = "committed"
        try:
            yield from self._stream(committer)
        except PoolError as error:
            end = f"job: {type(error).__name__}"
        except Broken:
            end = "job: not committed"
        # A queue that is full is waited for here: there is no thread that could be blocked.
        while committer._items.full():
            yield 0.01
        try:
            committer.finish()
        except Broken:
            end = "job: not committed"
        self._check(end)
        self._tally.add(end)

    def _stream(self, committer: Committer) -> Life:
        flying: deque[tuple[Window, Request]] = deque()
        coming = deque(self._windows)
        try:
            while coming or flying:
                while coming and len(flying) < _IN_FLIGHT:
                    window = coming.popleft()
                    request = Request(text_rows(window.texts), texts.DIM)
                    yield from self._submit(request)
                    flying.append((window, request))
                window, request = flying.popleft()
                request.future.add_done_callback(self._actor_wakes)
                while not request.future.done():
                    yield None
                embedded = request.future.result(0)
                given = window.texts.to_pylist()
                check(given, embedded, self._weather)
                while committer._items.full():
                    yield 0.01
                outcome = WindowVectors(embedded.vectors, embedded.failures)
                committer.put(window, outcome)
                committer._thread.wake()
                self._put.append((given, outcome))
        finally:
            for _, request in flying:
                request.future.cancel()

    def _submit(self, request: Request) -> Life:
        entry = self._scheduler.prepare(request)
        ticket = self._scheduler.enter(entry)
        if ticket is not None:
            ticket.turn.add_done_callback(self._actor_wakes)
            while not ticket.turn.done():
                yield None
            ticket.turn.result()
        self._scheduler.queue(entry)

    def _actor_wakes(self, _: object) -> None:
        self.actor.wake()

    def _check(self, end: str) -> None:
        """Each window once, in order; nothing acknowledged that failed."""
        expected = [
            (text, texts.answer(text.encode())[0])
            for given, outcome in self._put
            for row, text in enumerate(given)
            if row not in outcome.failures
        ]
        there = [(text, vector) for _, text, vector in self._table.rows]
        if there != expected[: len(there)]:
            raise Violation(f"the table holds {there} where {expected} was put")
        if len({row for row, _, _ in self._table.rows}) != len(there):
            raise Violation("a row was committed twice")
        if self._told.rows > self._table.whole or self._counts.written != self._told.rows:
            raise Violation(f"{self._told.rows} rows are acknowledged, {self._table.whole} whole")
        if end == "committed" and len(there) != len(expected):
            raise Violation(f"{len(there)} of {len(expected)} rows were committed")
        refused = sum(len(outcome.failures) for _, outcome in self._put)
        if end == "committed" and len(self._rejects) != refused:
            raise Violation(f"{len(self._rejects)} of {refused} failures were reported")

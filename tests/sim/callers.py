"""Those who ask the pool for vectors, each as its own actor, and what they must get."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

from memworker.errors import PoolBusy, PoolClosed, PoolError, PoolUnavailable, WorkerStartFailed
from memworker.pool.arena import Form, RowStatus
from memworker.pool.requests import Embedded, Request
from memworker.pool.rows import text_rows
from memworker.pool.scheduler import Scheduler
from tests.sim import texts
from tests.sim.workers import Weather
from tests.sim.world import Actor, Life, Violation, World


@dataclass
class Tally:
    """How the requests of a schedule ended."""

    ends: dict[str, int] = field(default_factory=dict)

    def add(self, end: str) -> None:
        self.ends[end] = self.ends.get(end, 0) + 1


class Caller:
    """Asks once, or again when that is done; waits for its turn and its answer, or gives up."""

    def __init__(
        self,
        world: World,
        scheduler: Scheduler,
        weather: Weather,
        tally: Tally,
        name: str,
        then: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._world = world
        self._random = world.random
        self._scheduler = scheduler
        self._weather = weather
        self._tally = tally
        self._name = name
        self._end_all = end
        self._guilt = world.random.choice((0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.5, 1.0))
        self.more: list[Actor] = []
        self.actor = Actor(world, self._life(), then)

    def _life(self) -> Life:
        draw = self._random
        yield draw.choice((0.0, 0.0, draw.uniform(0, 5), draw.uniform(0, 120)))
        yield from started(self._scheduler)
        for number in range(draw.choice((1, 1, 2, 4))):
            yield from self._ask(f"{self._name}.{number}.")
            yield draw.choice((0.0, 0.0, draw.uniform(0, 1), draw.uniform(0, 40)))

    def _ask(self, name: str) -> Life:
        draw = self._random
        rows = draw.choice((0, 1, 1, 1, 2, 3, 7, draw.randrange(1, 40)))
        given = [texts.drawn(draw, f"{name}{row}", self._guilt) for row in range(rows)]
        form = draw.choice((Form.PASSAGE, Form.PASSAGE, Form.QUERY, Form.TOKENS))
        request = Request(text_rows(given), texts.DIM, form)
        try:
            entry = self._scheduler.prepare(request)
            ticket = self._scheduler.enter(entry)
            if ticket is not None:
                ticket.turn.add_done_callback(self._actor_wakes)
                yield from self._wait(ticket.turn, self._patience())
                if not ticket.turn.done() or draw.random() < 0.05:
                    entry.admission.give_up(ticket)
                    self._tally.add(self._told(self._scheduler.busy_error(entry)))
                    return
                ticket.turn.result()
            if draw.random() < 0.15:
                # Its thread may not run for long; meanwhile the pool may end.
                yield draw.choice((self._world.latency(), draw.uniform(0, 20)))
            self._scheduler.queue(entry)
            if draw.random() < 0.02:
                self._end_all()
        except (PoolClosed, WorkerStartFailed) as error:
            self._tally.add(self._told(error))
            return
        yield from self._await(request, given)

    def _await(self, request: Request, given: list[str]) -> Life:
        future = request.future
        future.add_done_callback(self._actor_wakes)
        if self._random.random() < 0.1:
            future.add_done_callback(self._ask_at_once)
        yield from self._wait(future, self._patience())
        if not future.done() and self._random.random() < 0.7:
            future.cancel()
        while not future.done():
            yield None
        self._end(request, given)

    def _end(self, request: Request, given: list[str]) -> None:
        # What is there now must be there for ever, whoever completes it again.
        try:
            embedded = request.future.result(0)
        except CancelledError:
            self._tally.add("cancelled")
        except PoolError as error:
            self._tally.add(self._told(error))
        else:
            check(given, embedded, self._weather)
            self._tally.add("failures" if embedded.failures else "vectors")

    def _ask_at_once(self, _: object) -> None:
        """Ask from a callback, on whatever thread that comes; nobody can wait there."""
        name = f"{self._name}.callback{self._random.random()}"
        given = [texts.drawn(self._random, name, 0.0)]
        request = Request(text_rows(given), texts.DIM)
        try:
            entry = self._scheduler.prepare(request)
            ticket = self._scheduler.enter(entry)
            if ticket is not None:
                entry.admission.give_up(ticket)
                return
            self._scheduler.queue(entry)
        except (PoolClosed, WorkerStartFailed):
            return
        self.more.append(Actor(self._world, self._look_often(request, given)))

    def _look_often(self, request: Request, given: list[str]) -> Life:
        wait = 0.05
        while not request.future.done():
            yield wait
            # Not so seldom that an answer would be taken for none in the end.
            wait = min(1.5 * wait, 60.0)
        self._end(request, given)

    def _patience(self) -> float:
        draw = self._random
        return draw.choice((0.0, draw.uniform(0, 2), 60.0, 4e4, 4e4, 4e4))

    def _wait(self, future: object, seconds: float) -> Life:
        """Wait for a future, or for so long."""
        self._world.after(seconds, self.actor.wake)
        until = self._world.now + seconds
        while not future.done() and self._world.now < until:  # type: ignore[attr-defined]
            yield None

    def _actor_wakes(self, _: object) -> None:
        self.actor.wake()

    def _told(self, error: PoolError) -> str:
        """Say which error it was, if it may be one."""
        if isinstance(error, PoolUnavailable):
            if error.retry_after_s <= 0 or self._weather.ended < 3:
                raise Violation(f"told without a reason that no worker can be had: {error}")
        elif isinstance(error, PoolBusy):
            if error.retry_after_s <= 0:
                raise Violation("told to come again at once")
        elif isinstance(error, PoolClosed):
            if not self._scheduler._closing:
                raise Violation(f"told that the pool is closed, which it is not: {error}")
        elif not isinstance(error, WorkerStartFailed):
            raise Violation(f"an error that nobody may be told: {error!r}")
        return type(error).__name__


def started(scheduler: Scheduler) -> Life:
    """Wait until the pool's constructor would have come back."""
    wait = 0.1
    while not scheduler._started.is_set():
        yield wait
        wait *= 1.5


def check(given: list[str], embedded: Embedded, weather: Weather) -> None:
    """Hold a result against the texts: each its own vector, or a failure that is its own."""
    for row, text in enumerate(given):
        raw = text.encode()
        vector, status = texts.answer(raw)
        if row in embedded.failures:
            if status != RowStatus.FAILED:
                _check_blame(raw, embedded.failures[row], weather)
            continue
        if status == RowStatus.FAILED or raw[:2] in (texts.KILLS, texts.HANGS):
            raise Violation(f"{text!r} cannot have a vector")
        got = tuple(embedded.vectors[row].tolist())
        if got != vector or embedded.tokens[row] != max(1, len(raw)):
            raise Violation(f"{text!r} got {got} and {embedded.tokens[row]} tokens")
        if embedded.truncated[row] != (status == RowStatus.TRUNCATED):
            raise Violation(f"{text!r} has the wrong mark of truncation")


def _check_blame(raw: bytes, reason: str, weather: Weather) -> None:
    """A text may be set aside where workers really ended with it in hand, twice with it alone."""
    if weather.ends[raw] < 3 or weather.alone[raw] < 2:
        raise Violation(
            f"{raw!r} was set aside, with {weather.ends[raw]} ends and {weather.alone[raw]}"
            f" alone: {reason}"
        )

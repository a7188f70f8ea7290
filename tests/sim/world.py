"""The system as a seed has it: a clock that moves when somebody waits, and events upon it.

Everything runs on one thread. The pool's own loop is the main program; whatever else
there is (callers, workers, a committer) are actors, and they act while the pool's loop
waits, or at any other moment at which it asks the system for something: there another
thread or process could have come in between. An actor is a generator that yields the
seconds until it goes on, or None until somebody wakes it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from memworker.pool.scheduler import Scheduler

Life = Generator[float | None, None, None]

# Hours of virtual time after which whoever still waits, waits for ever.
_FOR_EVER_S = 24 * 3600.0
_MOST_EVENTS = 200_000
_MICROSECOND = 1e-6


_OVER = float("nan")


class Violation(BaseException):
    """Something that must hold did not; no code of ours shall catch it."""


class Actor:
    """Whoever acts beside the pool's loop; `then` is called when its life is over."""

    def __init__(self, world: World, life: Life, then: Callable[[], None] | None = None) -> None:
        self._world = world
        self._life = life
        self._then = then
        self._parked = False
        self.over = False
        world.actors.append(self)
        world.after(0.0, self._go_on)

    def wake(self, *_: object) -> None:
        """Let an actor that waits go on; a future may call this, wherever it is completed."""
        if self._parked and not self.over:
            self._parked = False
            self._world.after(self._world.latency(), self._go_on)

    def end(self) -> None:
        """Let it never act again."""
        self.over = True

    def _go_on(self) -> None:
        if self.over:
            return
        wait = next(self._life, _OVER)
        if wait is None:
            self._parked = True
        elif wait is not _OVER:
            self._world.after(wait, self._go_on)
        else:
            self.over = True
            if self._then is not None:
                self._then()


@dataclass(frozen=True, slots=True)
class _Key:
    data: Any


class World:
    """The clock, and who acts when."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._draw = self.random.random
        self.now = 1000.0
        self.events = 0
        self.actors: list[Actor] = []
        self.scheduler: Scheduler = _NOBODY
        # Whether something may have become ready since somebody looked.
        self.stirred = True
        self.notes: list[str] | None = None
        # Processes that were killed, and write before they die.
        self.haunts: list[Callable[[], None]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._acting = False
        # How often somebody comes in between, and how often the pool's process is stopped.
        self._interrupts = self.random.choice((0.0, 0.05, 0.3))
        self._stops = self.random.choice((0.0, 0.0, 0.003))

    # ── time ──

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._number), act))

    def latency(self) -> float:
        """Give a moment, as it takes until somebody who was woken runs."""
        return self._draw() * 0.002

    def note(self, what: str) -> None:
        """Tell what happens, where a run is replayed."""
        if self.notes is not None:
            self.notes.append(f"{self.now:12.6f} {what}")

    def pass_until(self, done: Callable[[], bool], until: float | None) -> bool:
        """Let others act until `done`, or until a time; gives `done()`."""
        events = self._events
        while not done():
            if not events or (until is not None and events[0][0] > until):
                if until is None:
                    raise Violation("nobody acts any more, and somebody waits")
                self.now = max(self.now, until)
                return False
            self._one_event()
        return True

    def breathe(self) -> None:
        """Let time pass in the midst of the pool's work, and perhaps let somebody in."""
        self.now += _MICROSECOND
        if self._acting or not self._interrupts or self._draw() >= self._interrupts:
            return
        while self._events and self._events[0][0] <= self.now + 0.001:
            self._one_event()

    def _one_event(self) -> None:
        due, _, act = heapq.heappop(self._events)
        if due > self.now:
            self.now = due
            if due > 1000.0 + _FOR_EVER_S:
                raise Violation(f"no end after {_FOR_EVER_S / 3600:.0f} hours")
        self._count()
        # On another thread than the pool's, as far as the pool can tell.
        scheduler, acting = self.scheduler, self._acting
        before = scheduler._thread
        scheduler._thread, self._acting = _ELSEWHERE, True
        try:
            act()
        except Exception as error:
            raise Violation(f"somebody who acts failed: {error!r}") from error
        finally:
            scheduler._thread, self._acting = before, acting

    def _count(self) -> None:
        self.events += 1
        if self.events > _MOST_EVENTS:
            raise Violation(f"{_MOST_EVENTS} events and no end")

    # ── waiting ──

    def select(self, waiting: list[tuple[Any, Any]], timeout: float | None) -> list[Any]:
        """Wait for something that is ready, as a selector does."""
        self._count()
        until = None if timeout is None else self.now + timeout
        self.stirred = True

        def ready() -> bool:
            if self.stirred:
                for thing, _ in waiting:
                    if thing.ready():
                        return True
                self.stirred = False
            return False

        self.pass_until(ready, until)
        self.now += self.latency() / 10
        if self._stops and self._draw() < self._stops:
            self.note("the pool's process is stopped for a while")
            self.now += self.random.choice((0.5, 5.0, 100.0))
        keys = [(_Key(data), 1) for thing, data in waiting if thing.ready()]
        self.random.shuffle(keys)
        return keys


class _Elsewhere:
    """A thread that is not the one that runs; nobody can wait for its end here."""

    def is_alive(self) -> bool:
        return False


_ELSEWHERE: Any = _Elsewhere()


class _Nobody:
    """In place of the scheduler, before there is one."""

    _thread: Any = None


_NOBODY: Any = _Nobody()

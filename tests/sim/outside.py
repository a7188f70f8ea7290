"""The simulation's side of the door that `memworker.pool.outside` is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from memworker.pool.arena import Region
from tests.sim.workers import SimWorker, Weather
from tests.sim.world import Actor, Life, World


class SimSystem:
    """`Outside`, as `World` has it."""

    def __init__(self, world: World, weather: Weather) -> None:
        self._world = world
        self._weather = weather
        self.workers: list[SimWorker] = []
        self.threads: list[SimThread] = []

    def monotonic(self) -> float:
        world = self._world
        world.breathe()
        return world.now

    def selector(self) -> SimSelector:
        return SimSelector(self._world)

    def alarm(self) -> SimAlarm:
        return SimAlarm(self._world)

    def thread(self, run: Callable[[], None], name: str) -> Any:
        if name == "memworker-pool":
            return threading.current_thread()
        thread = SimThread(self._world, run)
        self.threads.append(thread)
        return thread

    def start_worker(self, number: int, region: Region, loader: Any) -> SimWorker:
        self._world.breathe()
        if self._weather.no_processes():
            self._weather.ended += 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        worker = SimWorker(self._world, self._weather, number, region)
        self.workers.append(worker)
        return worker

    def resident_bytes(self, pid: int) -> int:
        return next(worker.resident for worker in self.workers if worker.pid == pid)

    def stopped(self, pid: int) -> bool:
        return False

    def cpu_s(self, pid: int) -> float | None:
        return None


class SimSelector:
    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[tuple[Any, Any]] = []

    def register(self, fileobj: Any, events: int, data: Any) -> None:
        for thing, _ in self._waiting:
            assert thing is not fileobj
        self._waiting.append((fileobj, data))

    def unregister(self, fileobj: Any) -> None:
        left = [pair for pair in self._waiting if pair[0] is not fileobj]
        if len(left) == len(self._waiting):
            raise KeyError(fileobj)
        self._waiting = left

    def select(self, timeout: float | None) -> list[Any]:
        return self._world.select(self._waiting, timeout)

    def close(self) -> None:
        self._waiting = []


class SimAlarm:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rung = False

    def ready(self) -> bool:
        return self._rung

    def ring(self) -> None:
        self._rung = self._world.stirred = True

    def clear(self) -> None:
        # Somebody may ring just before.
        self._world.breathe()
        self._rung = False

    def close(self) -> None:
        self._rung = False


class SimThread:
    """A committer's thread, as far as waiting goes: its turns are taken by an actor."""

    def __init__(self, world: World, run: Callable[[], None]) -> None:
        self._world = world
        self._committer: Any = run.__self__  # type: ignore[attr-defined]
        self._actor: Actor | None = None

    def start(self) -> None:
        self._actor = Actor(self._world, self._turns())

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.over

    def join(self, timeout: float | None = None) -> None:
        self.wake()
        self._world.pass_until(lambda: not self.is_alive(), None)

    def wake(self) -> None:
        """Have it look whether something has come."""
        assert self._actor is not None
        self._actor.wake()

    def _turns(self) -> Life:
        committer, going = self._committer, True
        while going:
            patience = committer._patience()
            if not committer._items.empty() or patience == 0.0:
                going = committer._turn()
                yield self._world.latency()
            else:
                yield patience

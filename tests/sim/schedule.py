"""One schedule: everything that a seed decides, run to its end and looked at."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from memworker.errors import WorkerStartFailed
from memworker.pool import plan, requests
from memworker.pool.arena import SlotShape
from memworker.pool.scheduler import Scheduler
from memworker.pool.sizing import PoolPlan
from memworker.pool.supervisor import WatchLimits
from tests.sim import texts
from tests.sim.callers import Caller, Tally
from tests.sim.jobs import Job
from tests.sim.outside import SimSystem
from tests.sim.workers import Weather
from tests.sim.world import Actor, Life, Violation, World

_BULK = SlotShape(rows=8, dim=texts.DIM, text_bytes=400)
_URGENT = SlotShape(rows=3, dim=texts.DIM, text_bytes=96)
# A text costs enough for the pool to learn from how fast its workers are.
_COSTS = plan.Costs(
    max_tokens=2000, shard_tokens=1200, batch_tokens=600, bytes_per_token=0.1, row_tokens=60.0
)
_WATCH_S = 20.0
# Three lives that hang while they start, and the patience after the first of them.
_TOLD_S = 900.0


class _Loader:
    dim = texts.DIM

    def __call__(self) -> Any:
        raise AssertionError("no worker of a simulation loads anything")


@dataclass
class Outcome:
    """What came of one schedule."""

    seed: int
    ends: dict[str, int]
    workers: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def run(seed: int, *, replay: bool = False) -> Outcome:
    """Run the schedule of a seed; raises Violation, or whatever broke."""
    # Ids are counted through a process, and a replay has to find the same.
    requests._shard_ids = itertools.count(1)
    world = World(seed)
    world.notes = [] if replay else None
    draw = world.random
    weather = Weather.drawn(world)
    system = SimSystem(world, weather)
    workers = draw.choice((1, 1, 2, 3))
    pool_plan = PoolPlan(
        loader=_Loader(),  # type: ignore[arg-type]
        costs=_COSTS,
        shapes=(_BULK, _BULK, _URGENT),
        workers=workers,
        windows_in_flight=3,
        memory_bytes=0,
        pending_tokens=draw.choice((900, 3000, 12_000)),
    )
    watch_limits = WatchLimits(stall_s=draw.choice((0.3, 5.0, 30.0)), growth_bytes=100 << 20)
    scheduler = Scheduler(pool_plan, watch_limits, system)
    world.scheduler = scheduler
    tally = Tally()
    closing = Closing(world, scheduler)
    callers = [
        Caller(world, scheduler, weather, tally, f"c{number}", closing.one_less, closing.now)
        for number in range(draw.choice((1, 2, 3, 4, 8)))
    ]
    asking = [caller.actor for caller in callers]
    watch = Actor(world, _watch(scheduler))
    if draw.random() < 0.3:
        asking.append(Job(world, scheduler, system, weather, tally, closing.one_less).actor)
    closing.left = len(asking)
    try:
        scheduler._run()
        _settle(
            world,
            [*asking, *(more for caller in callers for more in caller.more), closing.actor, watch],
        )
        _look(world, scheduler, system, weather)
    except BaseException as error:
        error.add_note(f"seed {seed}: {tally.ends}")
        if world.notes:
            error.add_note("\n".join(world.notes[-200:]))
        raise
    return Outcome(seed, tally.ends, len(system.workers), world.now - 1000.0, world.notes or [])


def _watch(scheduler: Scheduler) -> Life:
    """Look now and then whether somebody waits, with no worker at all, and is not told."""
    waited_s = 0.0
    while not scheduler._closing:
        yield _WATCH_S
        bare = bool(scheduler._requests) and not scheduler._supervisor.working
        waited_s = waited_s + _WATCH_S if bare else 0.0
        if waited_s > _TOLD_S:
            raise Violation(f"nobody is told that there was no worker for {waited_s:.0f} s")


class Closing:
    """Closes the pool when everybody is served, or in the midst of it."""

    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self._world = world
        self._scheduler = scheduler
        self.left = 0
        self.actor = Actor(world, self._life())

    def one_less(self) -> None:
        """Note that somebody is served."""
        self.left -= 1
        if not self.left:
            self.actor.wake()

    def now(self) -> None:
        """Close in the same moment in which somebody has asked for something."""
        self._world.note("the pool is closed at once")
        self._scheduler.close()

    def _life(self) -> Life:
        draw = self._world.random
        early = draw.choice((None, None, None, draw.uniform(0, 100)))
        if early is not None:
            self._world.after(early, self.actor.wake)
        yield None
        self._world.note("the pool is closed")
        self._scheduler.close()


def _settle(world: World, asking: list[Actor]) -> None:
    """Let callers, who are not the pool's, come to their ends: what they wait for is done."""
    world.pass_until(lambda: all(actor.over for actor in asking), world.now + 600.0)


def _look(world: World, scheduler: Scheduler, system: SimSystem, weather: Weather) -> None:
    """Hold the end against what must be so."""
    failure = scheduler._failure
    if failure is not None:
        started = scheduler._supervisor._restarts.was_ready
        if started or not isinstance(failure, WorkerStartFailed):
            raise Violation(f"the pool ended: {failure!r}") from failure
    for admission in scheduler._admissions:
        if admission.pending or admission.waiting:
            raise Violation(f"{admission.pending} tokens and {admission.waiting} callers are left")
    waiting = [actor for actor in world.actors if not actor.over]
    lost = [worker for worker in system.workers if not (worker.released or worker.undying)]
    if lost:
        raise Violation(f"{len(lost)} processes were never released")
    workers = {worker._actor for worker in system.workers}
    if any(actor not in workers for actor in waiting):
        raise Violation("somebody waits for ever")

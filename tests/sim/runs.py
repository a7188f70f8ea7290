"""Many schedules, in several processes, added up."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context

from tests.sim import schedule

# As many are run before anything is said, and before garbage is looked for.
BATCH = 200


@dataclass
class Result:
    """What came of many schedules."""

    schedules: int = 0
    workers: int = 0
    hours: float = 0.0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, other: Result) -> None:
        self.schedules += other.schedules
        self.workers += other.workers
        self.hours += other.hours
        self.ends.update(other.ends)
        self.broken |= other.broken


def run(seeds: list[int]) -> Result:
    """Run some schedules; what broke is told by its seed."""
    result = Result()
    gc.disable()
    for seed in seeds:
        try:
            outcome = schedule.run(seed)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            result.broken[seed] = f"{type(error).__name__}: {error}"
        else:
            result.workers += outcome.workers
            result.hours += outcome.seconds / 3600
            result.ends.update(outcome.ends)
        result.schedules += 1
    gc.enable()
    gc.collect()
    return result


def parts(batches: Iterator[list[int]], jobs: int) -> Iterator[Result]:
    """Run the batches, in so many processes, and yield what came of each."""
    if jobs == 1:
        yield from map(run, batches)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        # A few in hand for each: a million futures would be made for nothing.
        flying = [processes.submit(run, batch) for batch in islice(batches, 2 * jobs)]
        while flying:
            yield flying.pop(0).result()
            flying += [processes.submit(run, batch) for batch in islice(batches, 1)]

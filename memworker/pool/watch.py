"""What wakes the thread that looks after the workers: their pipes, their ends, and new work."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from memworker.pool.handle import WorkerHandle
from memworker.pool.outside import Outside

OfWorker = Callable[[WorkerHandle], None]


@dataclass(frozen=True, slots=True, eq=False)
class Wake:
    """What there is to do now; `ended`: a process has."""

    act: Callable[[], None]
    ended: bool = False


class Watch:
    """Waits for whatever comes first. A worker whose pipe has ended can still be seen to end."""

    def __init__(self, outside: Outside) -> None:
        self._selector = outside.selector()
        self._cut_off: set[int] = set()

    def add(self, readable: Any, act: Callable[[], None]) -> None:
        """Watch what can be read."""
        self._selector.register(readable, selectors.EVENT_READ, Wake(act))

    def add_worker(self, handle: WorkerHandle, *, said: OfWorker, ended: OfWorker) -> None:
        """Watch a worker's pipe and its process."""
        self.add(handle.child.channel, partial(said, handle))
        wake = Wake(partial(ended, handle), ended=True)
        self._selector.register(handle.child.sentinel, selectors.EVENT_READ, wake)

    def cut_off(self, handle: WorkerHandle) -> bool:
        """Hear no more from a worker's pipe; tell whether it was heard until now."""
        if handle.number in self._cut_off:
            return False
        self._cut_off.add(handle.number)
        self._selector.unregister(handle.child.channel)
        return True

    def remove(self, handle: WorkerHandle) -> None:
        """Watch a worker no more."""
        self.cut_off(handle)
        self._cut_off.discard(handle.number)
        self._selector.unregister(handle.child.sentinel)

    def wait(self, patience_s: float | None) -> list[Wake]:
        """Wait until there is something to do, for so long at most."""
        return [key.data for key, _ in self._selector.select(patience_s)]

    def close(self) -> None:
        """Watch nothing any more."""
        self._selector.close()

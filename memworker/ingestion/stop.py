"""A request to a running job to end soon: what is in flight is finished and committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memworker.pool import PoolUse

GRACE_S = 10.0


class Stop:
    """Ends a job gently when it is `set`: it reads no more, embeds what it has begun, commits.

    What is not embedded within `grace_s` seconds after that is left for the
    next run. `set` may be called from any thread and from a signal handler.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._is_set = False
        self._cut_short = False
        # Simple queues, for their put() alone is safe within a signal handler.
        self._listeners: list[SimpleQueue[Any]] = []

    def set(self) -> None:
        """Ask the job to end."""
        self._is_set = True
        for listener in tuple(self._listeners):
            listener.put(None)

    @property
    def is_set(self) -> bool:
        return self._is_set

    @property
    def heard(self) -> bool:
        """Whether a job is listening at this moment."""
        return bool(self._listeners)

    @property
    def cut_short(self) -> bool:
        """Whether a job left something undone because of this."""
        return self._cut_short

    def acknowledge(self) -> bool:
        """Tell a job whether to end now, and note that it then leaves something undone."""
        self._cut_short = self._cut_short or self._is_set
        return self._is_set

    @contextmanager
    def wakes(self, listener: SimpleQueue[Any]) -> Iterator[None]:
        """Put None into `listener` when `set` is called, or at once when it was called before."""
        self._listeners.append(listener)
        try:
            if self._is_set:
                listener.put(None)
            yield
        finally:
            self._listeners.remove(listener)


@contextmanager
def closed_after_grace(use: PoolUse, stop: Stop) -> Iterator[None]:
    """Close an own pool `grace_s` after `stop.set()`; unfinished work then raises PoolClosed."""
    wakeups: SimpleQueue[str | None] = SimpleQueue()
    done = threading.Event()

    def watch() -> None:
        if wakeups.get() is None and not done.wait(stop.grace_s):
            use.close()

    watcher = threading.Thread(target=watch, name="memworker-grace", daemon=True)
    watcher.start()
    try:
        with stop.wakes(wakeups):
            yield
    finally:
        done.set()
        wakeups.put("done")
        watcher.join()

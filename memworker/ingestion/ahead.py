"""Reads ahead on a thread, so that reading and embedding overlap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

from memworker.ingestion.report import Counts
from memworker.ingestion.stop import Stop

T = TypeVar("T")


@contextmanager
def ahead(source: Iterator[T], stop: Stop, depth: int = 1) -> Iterator[Iterator[T]]:
    """Iterate over `source` on a daemon thread, `depth` items in advance.

    What the source raises is raised by the iterator. The iterator ends when
    `stop` is set, also while the source waits for input. Leaving the context
    stops the thread at its next item; one that waits for standard input is
    left to it.
    """
    reader = _Reader(source, depth)
    try:
        with stop.wakes(reader.items):
            yield reader.taken(stop)
    finally:
        reader.stop()


class _Reader(Generic[T]):
    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        # (True, item), (False, what the source raised or None), or None to wake the consumer.
        self.items: SimpleQueue[tuple[bool, T | BaseException | None] | None] = SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._stopped = False
        threading.Thread(target=self._read, name="memworker-read-ahead", daemon=True).start()

    def _read(self) -> None:
        try:
            for item in self._source:
                self._room.acquire()
                if self._stopped:
                    return
                self.items.put((True, item))
            self.items.put((False, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self.items.put((False, error))

    def taken(self, stop: Stop) -> Iterator[T]:
        while True:
            got = self.items.get()
            if got is None:
                if stop.acknowledge():
                    return
                continue
            more, item = got
            if more:
                self._room.release()
                del got
                yield item  # type: ignore[misc]
                # Not held while the next one is waited for.
                del item
            elif isinstance(item, BaseException):
                try:
                    raise item
                finally:
                    # Its traceback holds this frame.
                    del item, got
            else:
                return

    def stop(self) -> None:
        self._stopped = True
        self._room.release()


def timed_reads(source: Iterator[T], counts: Counts) -> Iterator[T]:
    """Add up the seconds that `source` takes for its items."""
    while True:
        started = time.perf_counter()
        item = next(source, None)
        counts.add(read_s=time.perf_counter() - started)
        if item is None:
            return
        yield item

"""Reads ahead on a thread of its own, so that reading and embedding overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


@contextmanager
def ahead(source: Iterator[T], depth: int = 1) -> Iterator[Iterator[T]]:
    """Iterate over `source` on a daemon thread, `depth` items in advance.

    What the source raises is raised by the iterator. Leaving the context stops
    the thread at its next item; one that waits for standard input is left to it.
    """
    reader = _Reader(source, depth)
    try:
        yield reader.items()
    finally:
        reader.stop()


class _Reader(Generic[T]):
    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        self._items: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
        self._stopped = False
        threading.Thread(target=self._read, name="memworker-read-ahead", daemon=True).start()

    def _read(self) -> None:
        try:
            for item in self._source:
                self._items.put((True, item))
                if self._stopped:
                    return
            self._items.put((False, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._items.put((False, error))

    def items(self) -> Iterator[T]:
        while True:
            more, item = self._items.get()
            if more:
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return

    def stop(self) -> None:
        self._stopped = True
        try:
            # Room for the item that the thread may be waiting to hand over.
            while True:
                self._items.get_nowait()
        except queue.Empty:
            pass

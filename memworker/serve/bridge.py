"""The pool's futures, awaited on an event loop with few wake-ups."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

Awaited = asyncio.Future[Any]


class Bridge:
    """Carries results from the pool's thread to a loop: what ends together, wakes it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: deque[tuple[Awaited, Future[Any]]] = deque()
        self._called = False

    def awaited(self, future: Future[Any]) -> Awaited:
        """Give a future of the loop for one of the pool; ending it first cancels that."""
        awaited = self._loop.create_future()
        awaited.add_done_callback(lambda _: future.cancel())
        future.add_done_callback(partial(self._on_end, awaited))
        return awaited

    def _on_end(self, awaited: Awaited, future: Future[Any]) -> None:
        self._ended.append((awaited, future))
        if not self._called:
            self._called = True
            # A loop that is closed already has no waiting request.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        # Before the queue is read: an item added later schedules another call.
        self._called = False
        while self._ended:
            awaited, future = self._ended.popleft()
            if awaited.done():
                continue
            if future.cancelled():
                awaited.cancel()
            elif (error := future.exception()) is not None:
                awaited.set_exception(error)
            else:
                awaited.set_result(future.result())

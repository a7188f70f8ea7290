"""The pool's futures, awaited on an event loop with few wake-ups."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

Awaited = asyncio.Future[Any]


class _Ending(threading.local):
    """Of a thread that ends several futures: the bridges to wake when it has."""

    bridges: dict[Bridge, None] | None = None


_ending = _Ending()


@contextmanager
def ending_together() -> Iterator[None]:
    """Wake each loop once for all futures that end in this block, when it is left.

    Waking a loop releases the interpreter: it would come for the first one at once, and have
    to be woken for the next.
    """
    bridges = _ending.bridges = {}
    try:
        yield
    finally:
        _ending.bridges = None
        for bridge in bridges:
            bridge.wake()


class Bridge:
    """Carries results from the pool's thread to a loop: what ends together, wakes it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ended: deque[tuple[Awaited, Future[Any]]] = deque()
        self._called = False

    async def result(self, future: Future[Any]) -> Any:
        """Await a future of the pool's, which is cancelled where that is given up."""
        try:
            return await self.awaited(future)
        except BaseException:
            # Also when the loop is closed and this coroutine is dropped.
            future.cancel()
            raise

    def awaited(self, future: Future[Any]) -> Awaited:
        """Give a future of the loop for one of the pool's.

        Who gives it up cancels the pool's: a callback that did so would cost every caller
        another turn of the loop.
        """
        awaited = self.loop.create_future()
        future.add_done_callback(partial(self._on_end, awaited))
        return awaited

    def _on_end(self, awaited: Awaited, future: Future[Any]) -> None:
        self._ended.append((awaited, future))
        bridges = _ending.bridges
        if bridges is None:
            self.wake()
        else:
            bridges[self] = None

    def wake(self) -> None:
        """Have the loop take what has ended."""
        if not self._called:
            self._called = True
            # A loop that is closed already has no waiting request.
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._hand_over)

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

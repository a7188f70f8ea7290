"""Calls of LanceDB: each on a thread of its own, writes not interrupted, and none for ever.

Where the system refuses LanceDB a thread in the middle of a call, that waits for ever; so may
one on a disk that does not answer. Then the caller gets `Stalled`. Bounded is not the time that a
call takes, but for how long nothing moves: counted in looks, so that a process that was stopped
for a day, or a machine that slept, has not waited for longer than it ran.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

LOOK_S = 5.0
LOOKS = 60
"""So many looks, `LOOK_S` apart, at which nothing has moved, and a call counts as stuck."""

_IDLE_S = 5.0
# How the names of LanceDB's threads begin: of those that read and write, and those that compute.
_LANCE_THREADS = b"lance"

T = TypeVar("T")
Moved = Callable[[], object]
"""What looks otherwise as long as a call is getting on."""


class Stalled(Exception):
    """A call has not come back, and nothing has moved for long: a write may still come through."""

    def __init__(self) -> None:
        super().__init__(f"nothing has moved for {LOOKS * LOOK_S:g} s")


def run(write: Callable[[], Any], moved: Moved, left: Callable[[], None]) -> Any:
    """Run a write to its end, also when a KeyboardInterrupt comes meanwhile, which is raised then.

    LanceDB goes on writing when its caller was interrupted. A second interrupt is raised at once,
    and `Stalled`: `left` is called before, for the write may still be under way.
    """
    task = _Task(write)
    _helpers(os.getpid()).give(task)
    interrupt: BaseException | None = None
    while True:
        try:
            await_end(task.ended.wait, moved)
            break
        except BaseException as error:
            # A second interrupt means: do not wait.
            if interrupt is not None or isinstance(error, Stalled):
                left()
                raise
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return task.result()


def read(look: Callable[[], T]) -> T:
    """Run a read. Raises Stalled when LanceDB's threads do nothing for long, and an interrupt.

    The change of threads costs some 30 µs of processor time, where a search takes milliseconds.
    """
    task = _Task(look)
    try:
        _helpers(os.getpid()).give(task)
    except RuntimeError:
        return look()  # no thread can be had: LanceDB has its own since it was asked first
    await_end(task.ended.wait, work_of_lance)
    result: T = task.result()
    return result


def beside(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Do two things at the same time; return, or raise, when both have ended.

    If both fail it is the first's error that is raised. An interrupt waits for the first,
    and a second interrupt for nothing.
    """
    task = _Task(first)
    try:
        _helpers(os.getpid()).give(task)
    except RuntimeError:
        task.run()  # no thread can be had: one after the other
        task.ended.set()
    try:
        second()
    except Exception:
        _await(task)
        task.result()
        raise
    except BaseException:
        _await(task)
        raise
    _await(task)
    task.result()


def _await(task: _Task) -> None:
    try:
        task.ended.wait()
    except BaseException:
        task.ended.wait()
        raise


def await_end(ended: Callable[[float], bool], moved: Moved) -> None:
    """Wait until `ended(timeout_s)`. Raises Stalled when nothing has `moved` for long."""
    # Nearly all writes have ended by then, and need no look at files.
    if ended(LOOK_S):
        return
    seen, quiet = moved(), 0
    while not ended(LOOK_S):
        now = moved()
        quiet, seen = (quiet + 1 if now == seen else 0), now
        if quiet >= LOOKS:
            raise Stalled


def files_below(*folders: Path) -> Moved:
    """Return a function that lists names, sizes and times of all files below some folders."""

    def look() -> dict[str, tuple[int, int]]:
        found = {}
        for top in folders:
            for folder, _, names in os.walk(top):
                for name in names:
                    with suppress(OSError):
                        seen = os.stat(os.path.join(folder, name))
                        found[f"{folder}/{name}"] = (seen.st_size, seen.st_mtime_ns)
        return found

    return look


def work_of(pid: int) -> Moved:
    """Return a function that reads a process's processor time; without /proc it never moves."""

    def look() -> list[bytes]:
        with suppress(OSError):
            # After the name, which may hold spaces: user and system time.
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[11:13]
        return []

    return look


def work_of_lance() -> list[bytes]:
    """Read the processor time of this process's LanceDB threads; without /proc it never moves."""
    found = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):
                stat = Path(f"/proc/self/task/{thread}/stat").read_bytes()
                name, _, facts = stat.partition(b"(")[2].rpartition(b")")
                if name.startswith(_LANCE_THREADS):
                    found += facts.split()[11:13]
    return found


class _Task:
    """A call, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call: Callable[[], Any] | None = call
        self._done: list[Any] = []
        self._failed: list[BaseException] = []
        self.ended = threading.Event()

    def run(self) -> None:
        assert self._call is not None
        try:
            self._done.append(self._call())
        except BaseException as error:  # raised again by `result`
            self._failed.append(error)
        self._call = None

    def result(self) -> Any:
        if self._failed:
            # Not held here any more, for its traceback holds this frame.
            raise self._failed.pop()
        return self._done.pop()


class _Helpers:
    """Threads that wait for the next call a moment, for starting one takes some 100 µs."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._idle: list[SimpleQueue[_Task]] = []

    def give(self, task: _Task) -> None:
        with self._mutex:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            # A daemon: a call that is stuck must not keep the process from ending.
            threading.Thread(
                target=self._serve, args=(inbox,), name="memworker-lance", daemon=True
            ).start()
        inbox.put(task)

    def _serve(self, inbox: SimpleQueue[_Task]) -> None:
        while True:
            try:
                task = inbox.get(timeout=_IDLE_S)
            except Empty:
                with self._mutex:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                continue  # taken at this moment: its task comes
            task.run()
            with self._mutex:
                self._idle.append(inbox)
            task.ended.set()
            # What it returned is the caller's alone.
            del task


@lru_cache(maxsize=1)
def _helpers(_pid: int) -> _Helpers:
    # By pid: a forked child has none of its parent's threads.
    return _Helpers()

"""Worker processes: start, hand out shards, watch, replace, retry, split, quarantine.

::

    STARTING ──Ready──► READY ──Stop──► (gone)
       │                  │
    BootFailed          dies ──► its shards go back: the one it was working on is
       │                         blamed, twice and it is split, a lone text that
     fatal                       killed three workers fails by itself
                          └────► a fresh worker takes its place and its slots

Everything here runs on one thread, the scheduler's; one selector watches all
pipes, all process sentinels and the wake-up.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from multiprocess import Pipe

from memworker.errors import WorkerStartFailed
from memworker.pool import messages, spawn, worker
from memworker.pool.arena import Region, Slot, SlotShape, SlotState

_BOOT_DEATHS_ALLOWED = 3
_BLAMES_BEFORE_SPLIT = 2
_BLAMES_BEFORE_QUARANTINE = 3
_STOP_PATIENCE_S = 2.0


class Shard(Protocol):
    """What the supervisor must know of a piece of work."""

    id: int
    urgent: bool
    query: bool
    blames: int

    @property
    def rows(self) -> int: ...
    @property
    def cost(self) -> float: ...
    @property
    def abandoned(self) -> bool: ...
    def fill(self, slot: Slot) -> None: ...
    def split(self) -> list[Any]: ...


class WorkerState(Enum):
    """Life cycle of a worker process."""

    STARTING = auto()
    READY = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker process and what it has been given."""

    number: int
    region: Region
    process: Any
    pipe: Any
    state: WorkerState = WorkerState.STARTING
    slots: dict[int, Shard] = field(default_factory=dict)
    load_s: float = 0.0
    shards_done: int = 0

    @property
    def outstanding(self) -> float:
        """Tokens given to this worker and not yet answered."""
        return sum(shard.cost for shard in self.slots.values())

    def free_slot(self, *, urgent: bool) -> int | None:
        candidates = range(worker.URGENT_SLOT, len(self.region.slots)) if urgent else range(2)
        return next((slot for slot in candidates if slot not in self.slots), None)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Where the supervisor reports: called on its own thread, before a slot is free again."""

    done: Callable[[Shard, Slot, messages.Done], None]
    failed: Callable[[Shard, str], None]


class Supervisor:
    """Owns the workers, their pipes and their shared memory."""

    def __init__(
        self,
        loader: worker.Loader,
        shapes: tuple[SlotShape, ...],
        *,
        workers: int,
        outcomes: Outcomes,
    ) -> None:
        self._loader = loader
        self._shapes = shapes
        self._outcomes = outcomes
        self._count = workers
        self._selector = selectors.DefaultSelector()
        self._boot_deaths = 0
        self.workers: list[WorkerHandle] = []
        self.returned: deque[Shard] = deque()
        self.restarts = 0

    # ── life ──

    def start(self) -> None:
        """Start all workers; they report ready later, through `poll`."""
        for number in range(self._count):
            self.workers.append(self._start_worker(number, Region(self._shapes)))

    @property
    def ready(self) -> bool:
        return all(handle.state is WorkerState.READY for handle in self.workers)

    def watch(self, readable: Any, notify: Callable[[], None]) -> None:
        """Call `notify` from `poll` whenever `readable` has something to read."""
        self._selector.register(readable, selectors.EVENT_READ, notify)

    def close(self, *, graceful: bool) -> None:
        """Stop the workers: by word, then by signal; release pipes and memory."""
        alive = [handle for handle in self.workers if handle.state is not WorkerState.GONE]
        for handle in alive:
            if graceful and handle.state is WorkerState.READY:
                _send(handle, messages.Stop())
            else:
                handle.process.terminate()
        deadline = time.monotonic() + _STOP_PATIENCE_S
        for handle in alive:
            handle.process.join(max(0.0, deadline - time.monotonic()))
            if handle.process.is_alive():
                handle.process.terminate()
                handle.process.join(_STOP_PATIENCE_S / 4)
            self._bury(handle)
            handle.region.close()
        self._selector.close()

    # ── work ──

    def offer(self, shard: Shard) -> bool:
        """Give a shard to the least busy worker with a free slot; False when there is none."""
        ready = [handle for handle in self.workers if handle.state is WorkerState.READY]
        for handle in sorted(ready, key=lambda handle: handle.outstanding):
            index = handle.free_slot(urgent=shard.urgent)
            if index is not None:
                self._dispatch(handle, index, shard)
                return True
        return False

    def _dispatch(self, handle: WorkerHandle, index: int, shard: Shard) -> None:
        slot = handle.region.slots[index]
        shard.fill(slot)
        handle.slots[index] = shard
        order = messages.Encode(shard.id, index, slot.generation, shard.query)
        # A failed send means the worker is dead: its sentinel returns the shard.
        _send(handle, order)

    def poll(self, timeout: float | None) -> None:
        """Wait for news and act on it."""
        woken = self._selector.select(timeout)
        # Read the pipe before the sentinel: a worker may finish and then die.
        woken.sort(key=lambda event: isinstance(event[0].data, _Death))
        for key, _ in woken:
            key.data()

    # ── news from workers ──

    def _read(self, handle: WorkerHandle) -> None:
        if handle.state is WorkerState.GONE:
            return
        try:
            while handle.pipe.poll(0):
                self._receive(handle, messages.decode_for_parent(handle.pipe.recv_bytes()))
        except (EOFError, OSError):
            self._replace(handle)

    def _receive(self, handle: WorkerHandle, message: messages.ToParent) -> None:
        match message:
            case messages.Ready():
                handle.state, handle.load_s = WorkerState.READY, message.load_s
                self._boot_deaths = 0
            case messages.BootFailed():
                raise WorkerStartFailed(
                    f"worker {handle.number} (pid {handle.process.pid}) could not start:"
                    f" {message.error}"
                )
            case messages.Done():
                self._finish(handle, message)

    def _finish(self, handle: WorkerHandle, done: messages.Done) -> None:
        shard, slot = handle.slots.get(done.slot), handle.region.slots[done.slot]
        if shard is None or shard.id != done.shard or slot.generation != done.generation:
            return
        self._outcomes.done(shard, slot, done)
        slot.state = SlotState.FREE
        del handle.slots[done.slot]
        handle.shards_done += 1

    # ── death ──

    def _replace(self, handle: WorkerHandle) -> None:
        """Bury a dead worker, take its shards back, start another in its place."""
        was_starting = handle.state is WorkerState.STARTING
        begun = {
            index
            for index in handle.slots
            if handle.region.slots[index].state in (SlotState.BEGUN, SlotState.WRITTEN)
        }
        self._bury(handle)
        if was_starting:
            self._boot_deaths += 1
            if self._boot_deaths >= _BOOT_DEATHS_ALLOWED:
                raise WorkerStartFailed(
                    f"{self._boot_deaths} workers in a row died while starting, the last"
                    f" {_cause(handle)}. Check the memory limit, or run with fewer workers."
                )
        for index, shard in sorted(handle.slots.items(), reverse=True):
            self._take_back(shard, handle, blamed=index in begun)
        handle.slots.clear()
        self.restarts += 1
        self.workers[handle.number] = self._start_worker(handle.number, handle.region)

    def _take_back(self, shard: Shard, handle: WorkerHandle, *, blamed: bool) -> None:
        if shard.abandoned:
            return
        shard.blames += blamed
        if shard.rows > 1 and shard.blames >= _BLAMES_BEFORE_SPLIT:
            self.returned.extendleft(reversed(shard.split()))
        elif shard.blames >= _BLAMES_BEFORE_QUARANTINE:
            self._outcomes.failed(
                shard, f"the text ended {shard.blames} workers, the last {_cause(handle)}"
            )
        else:
            self.returned.appendleft(shard)

    def _bury(self, handle: WorkerHandle) -> None:
        if handle.state is WorkerState.GONE:
            return
        handle.state = WorkerState.GONE
        self._selector.unregister(handle.pipe)
        self._selector.unregister(handle.process.sentinel)
        handle.process.kill()
        handle.process.join()
        handle.pipe.close()

    def _start_worker(self, number: int, region: Region) -> WorkerHandle:
        ours, theirs = Pipe(duplex=True)
        try:
            process = spawn.start(
                worker.main, (theirs, region, self._loader), name=f"memworker-{number}"
            )
        except OSError as error:
            ours.close()
            raise WorkerStartFailed(
                f"worker {number} could not be started: {error.strerror or error}."
                " Check the limits on processes and open files (ulimit -u, ulimit -n)."
            ) from error
        finally:
            theirs.close()
        handle = WorkerHandle(number, region, process, ours)
        read = _News(self, handle)
        self._selector.register(ours, selectors.EVENT_READ, read)
        self._selector.register(process.sentinel, selectors.EVENT_READ, _Death(self, handle))
        return handle


@dataclass(frozen=True, slots=True, eq=False)
class _News:
    supervisor: Supervisor
    handle: WorkerHandle

    def __call__(self) -> None:
        self.supervisor._read(self.handle)


@dataclass(frozen=True, slots=True, eq=False)
class _Death:
    supervisor: Supervisor
    handle: WorkerHandle

    def __call__(self) -> None:
        if self.handle.state is not WorkerState.GONE:
            self.supervisor._read(self.handle)
        if self.handle.state is not WorkerState.GONE:
            self.supervisor._replace(self.handle)


def _send(handle: WorkerHandle, message: messages.ToWorker) -> bool:
    try:
        handle.pipe.send_bytes(messages.encode(message))
    except OSError:
        return False
    return True


def _cause(handle: WorkerHandle) -> str:
    """Say how a buried worker ended, for people."""
    code = handle.process.exitcode
    who = f"worker {handle.number} (pid {handle.process.pid})"
    if code is None or code >= 0:
        return f"{who} exiting with code {code}"
    name = signal.Signals(-code).name
    hint = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"{who} killed by {name}{hint}"

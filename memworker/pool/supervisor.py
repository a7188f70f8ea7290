"""Worker processes: start, hand out shards, watch, replace, retry, split, quarantine.

::

    STARTING ──Ready──► READY ──memory has grown──► RETIRING ──last answer──► (replaced)
       │                  │                            │
    BootFailed          dies, or gives no sign of life within its deadline and is killed
       │                  │
     fatal                ├──► its shards go back: the one it was working on is blamed;
                          │    twice and it is split; a lone text that ended three fails alone
                          └──► a fresh worker takes its place and its slots; where workers
                               die without having done anything, later and later

Everything here runs on one thread, the scheduler's; one selector watches all
pipes, all process sentinels and the wake-up.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from multiprocess import Pipe

from memworker.errors import WorkerCrashed, WorkerStartFailed
from memworker.pool import messages, spawn, worker
from memworker.pool.arena import Region, Slot, SlotShape
from memworker.pool.handle import BOOT_PATIENCE_S, Shard, WorkerHandle, WorkerState

_BOOT_DEATHS_ALLOWED = 3
_BLAMES_BEFORE_SPLIT = 2
_BLAMES_BEFORE_QUARANTINE = 3
_IDLE_DEATHS_AT_ONCE = 2
_IDLE_DEATHS_ALLOWED = 10
_STOP_PATIENCE_S = 2.0
_OVERSLEPT_S = 0.2
_HALF_MESSAGE_S = 2
# Before anything is measured: slower than any model on any processor in use.
_SLOWEST_TOKENS_PER_S = 50.0
_TELLING_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Where the supervisor reports: called on its own thread, before a slot is free again."""

    done: Callable[[Shard, Slot, messages.Done], None]
    failed: Callable[[Shard, str], None]


@dataclass(frozen=True, slots=True)
class Care:
    """How workers are looked after.

    `stall_s`: seconds without a sign of life, beyond the estimated work, after
    which a worker is taken for hung. `growth_bytes`: a worker whose resident
    memory has grown by this much since its first shards is replaced.
    """

    stall_s: float
    growth_bytes: int


class Supervisor:
    """Owns the workers, their pipes and their shared memory."""

    def __init__(
        self,
        loader: worker.Loader,
        shapes: tuple[SlotShape, ...],
        *,
        workers: int,
        outcomes: Outcomes,
        care: Care,
    ) -> None:
        self._loader = loader
        self._shapes = shapes
        self._outcomes = outcomes
        self._care = care
        self._count = workers
        self._selector = selectors.DefaultSelector()
        self._boot_deaths = 0
        self._idle_deaths = 0
        self._tokens_per_s = _SLOWEST_TOKENS_PER_S
        self._to_start: list[tuple[float, int, Region]] = []
        self.workers: list[WorkerHandle] = []
        self.returned: deque[Shard] = deque()
        self.restarts = 0

    # ── life ──

    def start(self) -> None:
        """Start all workers; they report ready later, through `poll`."""
        for number in range(self._count):
            region = Region(self._shapes)
            try:
                self.workers.append(self._start_worker(number, region))
            except OSError:
                region.close()
                raise

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
            if graceful and handle.state is not WorkerState.STARTING:
                handle.send(messages.Stop())
            else:
                handle.process.terminate()
        deadline = time.monotonic() + _STOP_PATIENCE_S
        for handle in alive:
            handle.process.join(max(0.0, deadline - time.monotonic()))
            if handle.process.is_alive():
                handle.process.terminate()
                handle.process.join(_STOP_PATIENCE_S / 4)
            self._bury(handle)
        for handle in self.workers:
            handle.slots.clear()
            handle.region.close()
        self.returned.clear()
        self._selector.close()

    # ── work ──

    def offer(self, shard: Shard, *, idle_only: bool = False) -> bool:
        """Give a shard to the least busy worker with a free slot; False when there is none."""
        takers = self._takers(urgent=shard.urgent, idle_only=idle_only)
        if not takers:
            return False
        taker = min(takers, key=lambda handle: handle.outstanding)
        index = taker.free_slot(urgent=shard.urgent)
        assert index is not None
        taker.give(index, shard)
        return True

    def has_room(self, *, urgent: bool, idle_only: bool) -> bool:
        """Tell whether some worker could be given a shard now.

        With `idle_only` it must be one that has no bulk work at all.
        """
        return bool(self._takers(urgent=urgent, idle_only=idle_only))

    def _takers(self, *, urgent: bool, idle_only: bool) -> list[WorkerHandle]:
        return [
            handle
            for handle in self.workers
            if handle.state is WorkerState.READY
            and (handle.idle or not idle_only)
            and handle.free_slot(urgent=urgent) is not None
        ]

    def offer_returned(self) -> bool:
        """Give out the first shard that came back from a dead worker; False when it must wait."""
        while self.returned and self.returned[0].abandoned:
            self.returned.popleft()
        if not self.returned or not self.offer(self.returned[0]):
            return False
        self.returned.popleft()
        return True

    def poll(self) -> None:
        """Wait for news, a deadline or the time of a restart, and act on it."""
        patience, began = self._patience(), time.monotonic()
        woken = self._selector.select(patience)
        if patience is not None and time.monotonic() - began > patience + _OVERSLEPT_S:
            self._forgive()
        # Read the pipe before the sentinel: a worker may finish and then die.
        woken.sort(key=lambda event: isinstance(event[0].data, _Death))
        for key, _ in woken:
            key.data()
        self._restart_due()
        self._end_hung()

    def _forgive(self) -> None:
        """Count deadlines from now: this process was stopped, and so the workers were."""
        for handle in self.workers:
            handle.last_sign = time.monotonic()

    def _patience(self) -> float | None:
        deadlines = [self._deadline(handle) for handle in self.workers]
        times = [due for due in deadlines if due is not None]
        times += [due for due, _, _ in self._to_start]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _deadline(self, handle: WorkerHandle) -> float | None:
        if handle.state is WorkerState.GONE:
            return None
        return handle.deadline(self._care.stall_s, self._tokens_per_s)

    # ── news from workers ──

    def _read(self, handle: WorkerHandle) -> None:
        try:
            while handle.state is not WorkerState.GONE and handle.pipe.poll(0):
                self._receive(handle, messages.decode_for_parent(handle.pipe.recv_bytes()))
        except (EOFError, OSError):
            self._replace(handle)
        except msgspec.MsgspecError as error:
            handle.ended_by = f"was ended, for it sent what is no message ({error})"
            self._replace(handle)

    def _receive(self, handle: WorkerHandle, message: messages.ToParent) -> None:
        match message:
            case messages.Ready():
                handle.state = WorkerState.READY
                self._boot_deaths = 0
            case messages.BootFailed():
                raise WorkerStartFailed(
                    f"worker {handle.number} (pid {handle.pid}) could not start: {message.error}"
                )
            case messages.Done():
                self._finish(handle, message)

    def _finish(self, handle: WorkerHandle, done: messages.Done) -> None:
        shard = handle.answered(done)
        if shard is None:
            return
        self._idle_deaths = 0
        self._learn_speed(shard, handle)
        self._outcomes.done(shard, handle.region.slots[done.slot], done)
        handle.release(done.slot)
        if handle.state is WorkerState.READY and handle.has_grown(self._care.growth_bytes):
            handle.state = WorkerState.RETIRING
        if handle.state is WorkerState.RETIRING and not handle.slots:
            handle.ended_by = "was replaced, for its memory had grown"
            self._replace(handle)

    def _learn_speed(self, shard: Shard, handle: WorkerHandle) -> None:
        # The slowest shard seen sets the deadline, so that a slow machine is no fault.
        if shard.cost < _TELLING_TOKENS:
            return  # all latency
        speed = shard.cost / max(time.monotonic() - handle.last_sign, 1e-3)
        speed = max(speed, _SLOWEST_TOKENS_PER_S)
        first = self._tokens_per_s == _SLOWEST_TOKENS_PER_S
        self._tokens_per_s = speed if first else min(self._tokens_per_s, speed)

    # ── death ──

    def _end_hung(self) -> None:
        now = time.monotonic()
        for handle in list(self.workers):
            due = self._deadline(handle)
            if due is None or due > now:
                continue
            silent_s = now - handle.last_sign
            handle.ended_by = f"was ended, for it gave no sign of life for {silent_s:.0f} s"
            self._replace(handle)

    def _replace(self, handle: WorkerHandle) -> None:
        """Bury a worker, take its shards back, start another in its place."""
        was_starting = handle.state is WorkerState.STARTING
        begun = handle.begun()
        self._bury(handle)
        if was_starting:
            self._count_boot_death(handle)
        elif not handle.shards_done and not begun:
            self._count_idle_death(handle)
        for index, shard in sorted(handle.slots.items(), reverse=True):
            self._take_back(shard, handle, blamed=index in begun)
        handle.slots.clear()
        self.restarts += 1
        due = time.monotonic() + self._back_off_s()
        self._to_start.append((due, handle.number, handle.region))
        self._restart_due()

    def _count_boot_death(self, handle: WorkerHandle) -> None:
        self._boot_deaths += 1
        if self._boot_deaths >= _BOOT_DEATHS_ALLOWED:
            raise WorkerStartFailed(
                f"{self._boot_deaths} workers in a row ended while starting (within"
                f" {BOOT_PATIENCE_S:.0f} s); the last, {handle.epitaph()}. Check the memory limit,"
                " or run with fewer workers."
            )

    def _count_idle_death(self, handle: WorkerHandle) -> None:
        self._idle_deaths += 1
        if self._idle_deaths >= _IDLE_DEATHS_ALLOWED:
            raise WorkerCrashed(
                f"{self._idle_deaths} workers ended one after the other without having done"
                f" anything; the last, {handle.epitaph()}. Something on this machine ends them:"
                " look at its memory and its log."
            )

    def _back_off_s(self) -> float:
        beyond = self._idle_deaths - _IDLE_DEATHS_AT_ONCE
        return 0.0 if beyond < 0 else min(0.05 * 2.0**beyond, 5.0)

    def _restart_due(self) -> None:
        now = time.monotonic()
        waiting, self._to_start = self._to_start, []
        for due, number, region in waiting:
            if due > now:
                self._to_start.append((due, number, region))
            else:
                self.workers[number] = self._start_worker(number, region)

    def _take_back(self, shard: Shard, handle: WorkerHandle, *, blamed: bool) -> None:
        if shard.abandoned:
            return
        shard.blames += blamed
        # Half a shard needs less memory, so what ran out of it is halved at once.
        too_much = blamed and handle.killed and not handle.ended_by
        if shard.rows > 1 and (too_much or shard.blames >= _BLAMES_BEFORE_SPLIT):
            self.returned.extendleft(reversed(shard.split()))
        elif shard.blames >= _BLAMES_BEFORE_QUARANTINE:
            reason = f"the text ended {shard.blames} workers; the last, {handle.epitaph()}"
            self._outcomes.failed(shard, reason)
        else:
            self.returned.appendleft(shard)

    def _bury(self, handle: WorkerHandle) -> None:
        if handle.state is WorkerState.GONE:
            return
        handle.state = WorkerState.GONE
        self._selector.unregister(handle.pipe)
        self._selector.unregister(handle.process.sentinel)
        handle.end()

    def _start_worker(self, number: int, region: Region) -> WorkerHandle:
        ours, theirs = Pipe(duplex=True)
        _bound_reads(ours)
        try:
            process = spawn.start(
                worker.main, (theirs, region, self._loader), name=f"memworker-{number}"
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        handle = WorkerHandle(number, region, process, ours)
        self._selector.register(ours, selectors.EVENT_READ, _News(self, handle))
        self._selector.register(process.sentinel, selectors.EVENT_READ, _Death(self, handle))
        return handle


def _bound_reads(pipe: Any) -> None:
    """Let a read of half a message end after `_HALF_MESSAGE_S`, as an OSError."""
    timeout = struct.pack("ll", _HALF_MESSAGE_S, 0)
    with socket.socket(fileno=os.dup(pipe.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)


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
        self.supervisor._read(self.handle)
        if self.handle.state is not WorkerState.GONE:
            self.supervisor._replace(self.handle)

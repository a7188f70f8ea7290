"""Worker processes: start, hand out shards, watch, replace, retry, split, quarantine.

::

    STARTING ──Ready──► READY ──memory has grown──► RETIRING ──last answer──► (replaced)
       │                  │                            │
    BootFailed          dies, or is killed: it gave no sign of life within its deadline,
       │                  │                 or said what cannot be
     fatal                ├──► its shards go back: the one it was working on is blamed and tried
                          │    alone; twice and it is split; a lone text that ended three fails
                          └──► a fresh worker takes its place and its slots; where workers
                               die without having done anything, later and later

Everything here runs on one thread, the scheduler's; one selector watches all
pipes, all process sentinels and the wake-up.
"""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memworker.errors import WorkerCrashed, WorkerStartFailed
from memworker.pool import blame, messages, worker
from memworker.pool.arena import Region, SlotShape
from memworker.pool.blame import Verdict
from memworker.pool.handle import BOOT_PATIENCE_S, Shard, WorkerHandle, WorkerState
from memworker.pool.incoming import Incoming, Nonsense, Result, longest_message
from memworker.pool.outside import Outside

_BOOT_DEATHS_ALLOWED = 3
_IDLE_DEATHS_AT_ONCE = 2
_IDLE_DEATHS_ALLOWED = 10
_STOP_PATIENCE_S = 2.0
_OVERSLEPT_S = 0.2
# Before anything is measured: slower than any model on any processor in use.
_SLOWEST_TOKENS_PER_S = 50.0
_TELLING_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Where the supervisor reports: called on its own thread, before a slot is free again."""

    done: Callable[[Shard, Result], None]
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
        outside: Outside,
    ) -> None:
        self._loader = loader
        self._shapes = shapes
        self._outcomes = outcomes
        self._care = care
        self._count = workers
        self._outside = outside
        self._longest_message = longest_message(shapes)
        self._selector = outside.selector()
        self._boot_deaths = 0
        self._idle_deaths = 0
        self._tokens_per_s = _SLOWEST_TOKENS_PER_S
        self._to_start: list[tuple[float, int, Region]] = []
        self._mute: set[int] = set()
        self._reserved: WorkerHandle | None = None
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
        alive = [handle for handle in self.workers if not handle.gone]
        for handle in alive:
            if graceful and handle.state is not WorkerState.STARTING:
                handle.stop()
            else:
                handle.child.terminate()
        deadline = self._outside.monotonic() + _STOP_PATIENCE_S
        for handle in alive:
            if not handle.child.ended(max(0.0, deadline - self._outside.monotonic())):
                handle.child.terminate()
                handle.child.ended(_STOP_PATIENCE_S / 4)
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
        self._give(min(takers, key=_outstanding), shard)
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
            and handle is not self._reserved
            and (handle.idle or not idle_only)
            and handle.free_slot(urgent=urgent) is not None
            and not handle.tries
        ]

    def offer_returned(self) -> bool:
        """Give out the first shard that came back from a dead worker; False when it must wait."""
        self._reserved = None
        while self.returned and self.returned[0].abandoned:
            self.returned.popleft()
        if not self.returned:
            return False
        # Taken off first: giving it may end a worker, whose shards come back here.
        shard = self.returned.popleft()
        if self._try_alone(shard) if shard.blames else self.offer(shard):
            return True
        self.returned.appendleft(shard)
        return False

    def _try_alone(self, shard: Shard) -> bool:
        """Give a shard that has ended workers to one that has nothing else, and gets nothing."""
        ready = [handle for handle in self.workers if handle.state is WorkerState.READY]
        if not ready:
            return False
        taker = min(ready, key=_outstanding)
        if taker.slots:
            # Work that keeps coming would keep it from ever having nothing.
            self._reserved = taker
            return False
        self._give(taker, shard)
        return True

    def _give(self, taker: WorkerHandle, shard: Shard) -> None:
        index = taker.free_slot(urgent=shard.urgent)
        assert index is not None
        try:
            taker.give(index, shard)
        except Nonsense as nonsense:
            self._dismiss(taker, nonsense)

    def poll(self) -> None:
        """Wait for news, a deadline or the time of a restart, and act on it."""
        patience, began = self._patience(), self._outside.monotonic()
        woken = self._selector.select(patience)
        if patience is not None and self._outside.monotonic() - began > patience + _OVERSLEPT_S:
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
            handle.forgive()

    def _patience(self) -> float | None:
        deadlines = [self._deadline(handle) for handle in self.workers]
        times = [due for due in deadlines if due is not None]
        times += [due for due, _, _ in self._to_start]
        return max(0.0, min(times) - self._outside.monotonic()) if times else None

    def _deadline(self, handle: WorkerHandle) -> float | None:
        if handle.gone:
            return None
        return handle.deadline(self._care.stall_s, self._tokens_per_s)

    # ── news from workers ──

    def _read(self, handle: WorkerHandle) -> None:
        if handle.gone:
            return  # it was woken for, and ended by what came before
        try:
            for message in handle.heard():
                self._receive(handle, message)
                if handle.gone:
                    return
        except Nonsense as nonsense:
            self._dismiss(handle, nonsense)
        except (EOFError, OSError):
            self._cut_off(handle)

    def _receive(self, handle: WorkerHandle, message: messages.ToParent) -> None:
        starting = handle.state is WorkerState.STARTING
        match message:
            case messages.Ready() if starting:
                if message.dim != self._loader.dim:
                    raise Nonsense(
                        f"gives {message.dim} dimensions where {self._loader.dim} were said"
                    )
                handle.state = WorkerState.READY
                self._boot_deaths = 0
            case messages.BootFailed() if starting:
                raise WorkerStartFailed(
                    f"worker {handle.number} (pid {handle.pid}) could not start: {message.error}"
                )
            case messages.Done():
                self._finish(handle, message)
            case _:
                raise Nonsense(f"sent {type(message).__name__} out of turn")

    def _finish(self, handle: WorkerHandle, done: messages.Done) -> None:
        given, result = handle.answered(done)
        self._idle_deaths = 0
        self._learn_speed(given.shard, handle)
        self._outcomes.done(given.shard, result)
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
        speed = shard.cost / max(self._outside.monotonic() - handle.last_sign, 1e-3)
        speed = max(speed, _SLOWEST_TOKENS_PER_S)
        first = self._tokens_per_s == _SLOWEST_TOKENS_PER_S
        self._tokens_per_s = speed if first else min(self._tokens_per_s, speed)

    # ── death ──

    def _end_hung(self) -> None:
        now = self._outside.monotonic()
        for handle in list(self.workers):
            due = self._deadline(handle)
            if due is None or due > now:
                continue
            handle.ended_by = f"was ended, for it {handle.silence()}"
            self._replace(handle)

    def _dismiss(self, handle: WorkerHandle, nonsense: Nonsense) -> None:
        """End a worker that is not to be believed, and forget how fast it made itself out."""
        handle.ended_by = f"was ended, for it {nonsense}"
        self._tokens_per_s = _SLOWEST_TOKENS_PER_S
        self._replace(handle)

    def _cut_off(self, handle: WorkerHandle) -> None:
        """Hear no more from a worker whose pipe has ended; its death follows, or its deadline."""
        if handle.number not in self._mute:
            self._mute.add(handle.number)
            self._selector.unregister(handle.child.channel)
            handle.cut_off()

    def _replace(self, handle: WorkerHandle) -> None:
        """Bury a worker, take its shards back, start another in its place."""
        was_starting = handle.state is WorkerState.STARTING
        self._bury(handle)
        at_work = bool(handle.begun())
        if was_starting:
            self._count_boot_death(handle)
        elif not handle.shards_done and not at_work:
            self._count_idle_death(handle)
        slots = blame.blamed(handle)
        for index, given in sorted(handle.slots.items(), reverse=True):
            self._take_back(given.shard, handle, blamed=index in slots)
        handle.slots.clear()
        self.restarts += 1
        due = self._outside.monotonic() + self._back_off_s()
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
        now = self._outside.monotonic()
        waiting, self._to_start = self._to_start, []
        for due, number, region in waiting:
            if due > now:
                self._to_start.append((due, number, region))
            else:
                self.workers[number] = self._start_worker(number, region)

    def _take_back(self, shard: Shard, handle: WorkerHandle, *, blamed: bool) -> None:
        if shard.abandoned:
            return
        out_of_memory = handle.killed and not handle.ended_by
        match blame.verdict(shard, blamed=blamed, out_of_memory=out_of_memory):
            case Verdict.AGAIN:
                self.returned.appendleft(shard)
            case Verdict.SPLIT:
                self.returned.extendleft(reversed(shard.split()))
            case Verdict.QUARANTINE:
                reason = f"the text ended {shard.blames} workers; the last, {handle.epitaph()}"
                self._outcomes.failed(shard, reason)

    def _bury(self, handle: WorkerHandle) -> None:
        if handle.gone:
            return
        handle.state = WorkerState.GONE
        if handle.number not in self._mute:
            self._selector.unregister(handle.child.channel)
        self._mute.discard(handle.number)
        self._selector.unregister(handle.child.sentinel)
        handle.end()

    def _start_worker(self, number: int, region: Region) -> WorkerHandle:
        child = self._outside.start_worker(number, region, self._loader)
        incoming = Incoming(self._longest_message)
        handle = WorkerHandle(number, region, child, incoming, self._outside)
        self._selector.register(child.channel, selectors.EVENT_READ, _News(self, handle))
        self._selector.register(child.sentinel, selectors.EVENT_READ, _Death(self, handle))
        return handle


def _outstanding(handle: WorkerHandle) -> float:
    return handle.outstanding


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
        if not self.handle.gone:
            self.supervisor._replace(self.handle)

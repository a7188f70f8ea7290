"""Worker processes: start, hand out shards, watch, replace, retry, split, quarantine.

::

    STARTING ──Ready──► READY ──memory has grown──► RETIRING ──last answer──► (replaced)
       │                  │                            │
       │                  dies, or is killed: it gave no sign of life within its deadline,
       │                  │                   or said what cannot be
       │                  ├──► its shards go back: the one it was working on is blamed and tried
       │                  │    alone; twice and it is split; a lone text that ended three fails
       └──dies, fails──► a fresh worker takes its place and its memory; where they end
                          before they have done anything, later and later

A worker that fails at the pool's first start by its own account ends the pool, and so do
several that die then. Later nothing does: callers are told, and the pool goes on trying.

Everything here runs on one thread, the scheduler's; one selector watches all
pipes, all process sentinels and the wake-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memworker.diagnosis import told
from memworker.errors import MemworkerError, PoolUnavailable, WorkerStartFailed
from memworker.pool import blame, messages, worker
from memworker.pool.arena import Region, SlotShape
from memworker.pool.blame import Verdict
from memworker.pool.handle import Shard, WorkerHandle, WorkerState
from memworker.pool.incoming import Incoming, Nonsense, Result, longest_message
from memworker.pool.outside import Outside
from memworker.pool.pace import Pace
from memworker.pool.restarts import LASTS_S, Restarts
from memworker.pool.watch import Watch

_STOP_PATIENCE_S = 2.0
_OVERSLEPT_S = 0.2
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Where the supervisor reports: called on its own thread, before a slot is free again."""

    done: Callable[[Shard, Result], None]
    failed: Callable[[Shard, str], None]


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How workers are looked after.

    `stall_s`: seconds without a sign of life, beyond the estimated work, after
    which a worker is taken for hung; and without any worker, after which callers are
    told so. `growth_bytes`: a worker whose resident memory has grown by this much
    since its first shards is replaced.
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
        watch_limits: WatchLimits,
        outside: Outside,
    ) -> None:
        self._loader = loader
        self._shapes = shapes
        self._outcomes = outcomes
        self._watch_limits = watch_limits
        self._outside = outside
        self._longest_message = longest_message(shapes)
        self._watch = Watch(outside)
        self._pace = Pace()
        self.count = workers
        self._restarts = Restarts(workers, watch_limits.stall_s)
        self._regions: dict[int, Region] = {}
        self._undead: list[WorkerHandle] = []
        self._reserved: WorkerHandle | None = None
        self._looked_at = 0.0
        self.workers: list[WorkerHandle] = []
        self.returned: deque[Shard] = deque()
        self.restarts = 0

    # ── life ──

    def start(self) -> None:
        """Start all workers; they report ready later, through `poll`."""
        for number in range(self.count):
            self.workers.append(self._start_worker(number))
        self._looked_at = self._outside.monotonic()

    @property
    def ready(self) -> bool:
        return all(handle.state is WorkerState.READY for handle in self.workers)

    def watch(self, readable: Any, notify: Callable[[], None]) -> None:
        """Call `notify` from `poll` whenever `readable` has something to read."""
        self._watch.add(readable, notify)

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
            self._retire(handle)
        for handle in self.workers:
            handle.slots.clear()
        for region in self._regions.values():
            region.close()
        for handle in self._undead:
            handle.end()
            handle.region.close()
        self.returned.clear()
        self._watch.close()

    # ── work ──

    def offer(self, shard: Shard, *, idle_only: bool = False, light_only: bool = False) -> bool:
        """Give a shard to the least busy worker with a free slot; False when there is none."""
        takers = self._takers(urgent=shard.urgent, idle_only=idle_only, light_only=light_only)
        if not takers:
            return False
        self._give(min(takers, key=_outstanding), shard)
        return True

    def has_room(self, *, urgent: bool, idle_only: bool, light_only: bool = False) -> bool:
        """Tell whether some worker could be given a shard now.

        With `idle_only` it must be one that has nothing but questions, with `light_only` one
        without work of a large request.
        """
        return bool(self._takers(urgent=urgent, idle_only=idle_only, light_only=light_only))

    @property
    def any_light(self) -> bool:
        """Whether some worker is at no large request's work, and will have room soon."""
        return any(handle.light and self._works(handle) for handle in self.workers)

    @property
    def all_at_small_work(self) -> bool:
        """Whether every worker that takes work is at small requests'; False without any."""
        taking = [handle for handle in self.workers if self._works(handle)]
        return bool(taking) and all(handle.light and not handle.idle for handle in taking)

    def _takers(self, *, urgent: bool, idle_only: bool, light_only: bool) -> list[WorkerHandle]:
        return [
            handle
            for handle in self.workers
            if self._works(handle)
            and (handle.idle or not idle_only)
            and (handle.light or not light_only)
            and handle.free_slot(urgent=urgent) is not None
        ]

    def _works(self, handle: WorkerHandle) -> bool:
        return (
            handle.state is WorkerState.READY and handle is not self._reserved and not handle.tries
        )

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
        """Wait for a message, a deadline or the time of a restart, and act on it."""
        self._excuse()
        patience, began = self._patience(), self._outside.monotonic()
        woken = self._watch.wait(patience)
        self._looked_at = self._outside.monotonic()
        if patience is not None and self._looked_at - began > patience + _OVERSLEPT_S:
            self._restart_deadlines()
        # Read the pipe before the sentinel: a worker may finish and then die.
        woken.sort(key=lambda wake: wake.ended)
        for wake in woken:
            wake.act()
        self._restart_due()
        self._end_hung()

    def _restart_deadlines(self) -> None:
        """Count deadlines from now: this process was stopped, and so the workers were."""
        for handle in self.workers:
            handle.restart_deadlines()

    def _excuse(self) -> float:
        """Hold against no worker that this thread was long at something else, or stopped at it."""
        now = self._outside.monotonic()
        away, self._looked_at = now - self._looked_at, now
        if away > _OVERSLEPT_S:
            for handle in self.workers:
                handle.excuse(away)
        return now

    def _patience(self) -> float | None:
        now = self._outside.monotonic()
        times = [due for handle in self.workers if (due := self._deadline(handle)) is not None]
        if not self._restarts.quiet:
            times += self._restarts.times(now, self.working)
        # By waits that are short, a stop that ends where a deadline does is noticed too.
        return min(max(0.0, min(times) - now), _LOOK_S) if times else None

    def _deadline(self, handle: WorkerHandle) -> float | None:
        if handle.gone:
            return None
        return handle.deadline(self._watch_limits.stall_s, self._pace.tokens_per_s)

    # ── messages from workers ──

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
                self._welcome(handle, message)
            case messages.BootFailed() if starting:
                handle.ended_by = f"could not start: {message.error}"
                if not self._restarts.was_ready:
                    raise WorkerStartFailed(handle.exit_reason())
                self._replace(handle)
            case messages.Done():
                self._finish(handle, message)
            case _:
                raise Nonsense(f"sent {type(message).__name__} out of turn")

    def _welcome(self, handle: WorkerHandle, ready: messages.Ready) -> None:
        if ready.dim != self._loader.dim:
            said = f"gives {ready.dim} dimensions where its loader says {self._loader.dim}"
            if not self._restarts.was_ready:
                raise WorkerStartFailed(f"worker {handle.number} (pid {handle.pid}) {said}")
            raise Nonsense(said)
        handle.welcome()
        if self.ready:
            self._restarts.all_ready()

    def _finish(self, handle: WorkerHandle, done: messages.Done) -> None:
        given, result = handle.answered(done)
        self._restarts.answered(handle.number)
        self._pace.learn(given.shard.cost, self._outside.monotonic() - handle.last_sign)
        if (computed := handle.computed_s()) is not None:
            self._pace.learn_computing(given.shard.cost, computed)
        self._outcomes.done(given.shard, result)
        handle.release(done.slot)
        if handle.state is WorkerState.READY and handle.has_grown(self._watch_limits.growth_bytes):
            handle.state = WorkerState.RETIRING
        if handle.state is WorkerState.RETIRING and not handle.slots:
            handle.ended_by = "was replaced, for its memory had grown"
            self._replace(handle)

    # ── death ──

    def _end_hung(self) -> None:
        now = self._excuse()
        for handle in list(self.workers):
            due = self._deadline(handle)
            if due is not None and due <= now:
                handle.ended_by = f"was ended, for it {handle.silence()}"
                self._replace(handle)
            elif due is not None and handle.stopped():
                handle.ended_by = "was ended, for a signal had stopped it"
                self._replace(handle)
            elif due is not None and (took := handle.spins(self._watch_limits.stall_s, self._pace)):
                handle.ended_by = f"was ended, for it computed for {took:.0f} s without a step"
                self._replace(handle)

    def _dismiss(self, handle: WorkerHandle, nonsense: Nonsense) -> None:
        """End a worker that is not to be believed, and forget how fast it made itself out."""
        handle.ended_by = f"was ended, for it {nonsense}"
        self._pace.forget()
        self._replace(handle)

    def _cut_off(self, handle: WorkerHandle) -> None:
        """Hear no more from a worker whose pipe has ended; its death follows, or its deadline."""
        if self._watch.cut_off(handle):
            handle.cut_off()

    def _end(self, handle: WorkerHandle) -> None:
        self._read(handle)
        if not handle.gone:
            self._replace(handle)

    def _replace(self, handle: WorkerHandle) -> None:
        """Retire a worker, take its shards back, see to it that another takes its place."""
        did_nothing = not handle.shards_done and not handle.lasted(LASTS_S)
        self._retire(handle)
        now = self._outside.monotonic()
        if did_nothing and not handle.begun():
            self._restarts.failed(handle.number, now, handle.exit_reason())
        slots = blame.blamed(handle)
        for index, given in sorted(handle.slots.items(), reverse=True):
            self._take_back(given.shard, handle, blamed=index in slots)
        handle.slots.clear()
        self.restarts += 1
        self._restarts.schedule(handle.number, now)

    def _restart_due(self) -> None:
        now = self._outside.monotonic()
        for number in self._restarts.take_due(now):
            try:
                self.workers[number] = self._start_worker(number)
            except (OSError, MemworkerError) as error:
                how = f"worker {number} could not be started: {told(error)}"
                self._restarts.failed(number, now, how)
                self._restarts.schedule(number, now)

    # ── without workers ──

    @property
    def working(self) -> int:
        """How many workers can answer."""
        able = (WorkerState.READY, WorkerState.RETIRING)
        return sum(handle.state in able for handle in self.workers)

    def outage(self) -> PoolUnavailable | None:
        """Say why waiting for workers is in vain; None while it is not."""
        if self._restarts.quiet:
            return None
        return self._restarts.outage(
            self._outside.monotonic(),
            working=self.working,
            at_work=any(handle.slots for handle in self.workers),
        )

    @property
    def in_doubt(self) -> bool:
        """Whether texts were set aside and nothing has been answered since."""
        return self._restarts.in_doubt

    # ── what becomes of the work ──

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
                self._restarts.set_aside(handle.exit_reason())
                reason = f"the text ended {shard.blames} workers; the last, {handle.exit_reason()}"
                self._outcomes.failed(shard, reason)

    def _retire(self, handle: WorkerHandle) -> None:
        if handle.gone:
            return
        handle.state = WorkerState.GONE
        self._watch.remove(handle)
        if not handle.end():
            # It cannot die yet, as in the midst of a disk's failing: what it may still write to
            # belongs to no other from now on.
            self._undead.append(handle)
            del self._regions[handle.number]

    def _start_worker(self, number: int) -> WorkerHandle:
        region = self._regions.get(number) or Region(self._shapes)
        self._regions[number] = region
        child = self._outside.start_worker(number, region, self._loader)
        incoming = Incoming(self._longest_message)
        handle = WorkerHandle(number, region, child, incoming, self._outside)
        self._watch.add_worker(handle, said=self._read, ended=self._end)
        return handle


def _outstanding(handle: WorkerHandle) -> float:
    return handle.outstanding

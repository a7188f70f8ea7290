"""Requests: admitted from any thread, dispatched and completed on the pool's own thread."""

from __future__ import annotations

import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

from memworker.diagnosis import refused_by_system, told
from memworker.errors import (
    MemworkerError,
    PoolBusy,
    PoolClosed,
    PoolError,
    WorkerCrashed,
    WorkerStartFailed,
    again,
    detached,
)
from memworker.pool import plan
from memworker.pool.admission import Admission, Ticket
from memworker.pool.arena import Form
from memworker.pool.bridge import ending_together
from memworker.pool.handle import Shard
from memworker.pool.incoming import Result
from memworker.pool.lanes import Lanes
from memworker.pool.meter import Meter, WorkTotals
from memworker.pool.outside import Alarm, Outside, System
from memworker.pool.requests import Embedded, Request, WorkShard
from memworker.pool.sizing import PoolPlan
from memworker.pool.supervisor import Outcomes, Supervisor, WatchLimits

_SHORTEST_RETRY_S = 0.05
_UNKNOWN_RETRY_S = 1.0
# How much of what was known of the speed a new shard leaves: some dozens count.
_FADES = 0.97
CLOSED = "the pool is closed; make a new EmbeddingPool"


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A request on its way in, for those who must not block: planned, and nothing asked for yet.

    Until `enter` it may be forgotten. A ticket's turn can be waited for in any manner.
    """

    scheduler: Scheduler
    request: Request
    shards: list[WorkShard]
    cost: int
    admission: Admission

    def enter(self) -> Ticket | None:
        """See `Scheduler.enter`."""
        return self.scheduler.enter(self)

    @property
    def wait_s(self) -> float | None:
        """Seconds, about, until there is room for it; None where no speed is known yet."""
        return self.scheduler.wait_s(self)

    def busy_error(self) -> PoolBusy:
        """Say that there was no room for it, and when there will be."""
        return self.scheduler.busy_error(self)

    def queue(self) -> Future[Embedded]:
        """Embed what was admitted."""
        self.scheduler.queue(self)
        return self.request.future


class Scheduler:
    """Feeds the workers from a queue of shards; owns the one thread that does so."""

    def __init__(
        self, pool_plan: PoolPlan, watch_limits: WatchLimits, outside: Outside | None = None
    ) -> None:
        outside = System() if outside is None else outside
        self.meter = Meter()
        self._lately_tokens, self._lately_s = 0.0, 0.0
        self.workers = pool_plan.workers
        self._costs = pool_plan.costs
        bulk, urgent = pool_plan.shapes[0], pool_plan.shapes[-1]
        self._limits = plan.SlotLimits(bulk.rows, bulk.text_bytes)
        self._urgent_limits = plan.SlotLimits(urgent.rows, urgent.text_bytes)
        self._supervisor = Supervisor(
            pool_plan.loader,
            pool_plan.shapes,
            workers=pool_plan.workers,
            outcomes=Outcomes(done=self._shard_done, failed=self._shard_failed),
            watch_limits=watch_limits,
            outside=outside,
        )
        self._lanes = Lanes(
            self._costs, self._limits, self._urgent_limits, self._supervisor, self.meter
        )
        # A small request is cut to session runs, so that a question waits for one at most.
        self._small_costs = replace(pool_plan.costs, shard_tokens=pool_plan.costs.batch_tokens)
        # Bounds of their own, so that neither a question nor a small request stands in line
        # behind bulk work.
        self._bulk_admission = Admission(pool_plan.pending_tokens)
        self._small_admission = Admission(pool_plan.pending_tokens)
        self._query_admission = Admission(pool_plan.pending_tokens)
        self._inbox: deque[QueueEntry] = deque()
        # What was admitted and is neither done nor given up.
        self._requests: dict[Request, QueueEntry] = {}
        self._touched: list[Request] = []
        self._alarm: Alarm | None = outside.alarm()
        self._woken = False
        # Of what is in the inbox, and how much of it makes the pool's thread look.
        self._inbox_tokens, self._enough_tokens = 0, 0.0
        self._inbox_lock = threading.Lock()
        self._started = threading.Event()
        self._closing = False
        self._failure: PoolError | None = None
        self._thread = outside.thread(self._run, "memworker-pool")

    # ── callers' side ──

    def start(self) -> None:
        """Start workers and wait until every one has its session open.

        Raises PoolClosed where it is closed meanwhile.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None or self._closing:
            self._thread.join()
            raise self._failure or PoolClosed(CLOSED)

    def submit(self, request: Request, wait_s: float | None = None) -> None:
        """Queue a request, waiting for room; its future completes on the pool's thread.

        Raises PoolBusy when there is no room for it within `wait_s` seconds.
        """
        entry = self.prepare(request)
        ticket = self.enter(entry)
        if ticket is not None:
            self._wait_turn(ticket, entry, wait_s)
        self.queue(entry)

    def prepare(self, request: Request) -> QueueEntry:
        """Cut a request into shards, which takes longer the larger it is."""
        self._refuse_if_closed()
        if request.form is Form.QUERY:
            # Slots for questions are small: one with a longer text goes the way of all others.
            urgent = request.rows.longest <= self._urgent_limits.text_bytes
            limits = self._urgent_limits if urgent else self._limits
            shards = request.cut(self._costs, limits, workers=self.workers, urgent=urgent)
            return self._entry(request, shards, self._query_admission)
        if self._is_small(request):
            shards = request.cut(
                self._small_costs,
                self._urgent_limits,
                workers=self.workers,
                urgent=False,
                small=True,
            )
            return self._entry(request, shards, self._small_admission)
        shards = request.cut(self._costs, self._limits, workers=self.workers, urgent=False)
        return self._entry(request, shards, self._bulk_admission)

    def _is_small(self, request: Request) -> bool:
        """Tell whether a request may pass bulk work: it fits questions' slots, and is soon done."""
        return (
            request.rows.longest <= self._urgent_limits.text_bytes
            and len(request.byte_lengths) <= self._lanes.small_tokens
            and request.estimate(self._costs) <= self._lanes.small_tokens
        )

    def _entry(self, request: Request, shards: list[WorkShard], admission: Admission) -> QueueEntry:
        # Whole numbers: sums of floats would not come back to zero.
        cost = math.ceil(sum(shard.cost for shard in shards))
        return QueueEntry(self, request, shards, cost, admission)

    def enter(self, entry: QueueEntry) -> Ticket | None:
        """Ask for admission: given at once (None), or when the ticket's turn has come.

        Then the entry must be queued, or the ticket be given up.
        """
        self._refuse_if_closed()
        if threading.current_thread() is self._thread:
            # A callback of some future: waiting here would stop what it waits for.
            entry.admission.force(entry.cost)
            return None
        return entry.admission.enter(entry.cost)

    def queue(self, entry: QueueEntry) -> None:
        """Queue what was admitted."""
        entry.request.future.when_given_up(partial(self._given_up, entry))
        with self._inbox_lock:
            if self._failure is None and not self._closing:
                self._inbox.append(entry)
                self._heed(entry)
                return
        entry.request.future.cancel()
        self._refuse_if_closed()

    @property
    def pending_tokens(self) -> int:
        """Estimated tokens admitted and not yet done."""
        return sum(admission.pending for admission in self._admissions)

    @property
    def _admissions(self) -> tuple[Admission, ...]:
        return self._bulk_admission, self._small_admission, self._query_admission

    def _wait_turn(self, ticket: Ticket, entry: QueueEntry, wait_s: float | None) -> None:
        try:
            ticket.turn.result(wait_s)
        except BaseException as error:
            # Any exception, a signal handler's too: else the turn would never be taken.
            entry.admission.give_up(ticket)
            if isinstance(error, TimeoutError) and wait_s is not None:
                raise self.busy_error(entry) from None
            raise

    def wait_s(self, entry: QueueEntry) -> float | None:
        """Reckon how long it takes until an entry has room, those in line before it included."""
        admission, speed = entry.admission, self._tokens_per_s
        too_much = max(0, admission.backlog + entry.cost - admission.limit)
        return too_much / speed if speed else None

    def busy_error(self, entry: QueueEntry) -> PoolBusy:
        """Give the refusal of an entry, with the time that the work before it takes."""
        admission, wait_s = entry.admission, self.wait_s(entry)
        retry_s = _UNKNOWN_RETRY_S if wait_s is None else max(wait_s, _SHORTEST_RETRY_S)
        return PoolBusy(
            f"about {admission.backlog:,} tokens are waiting and {entry.cost:,} more would pass"
            f" the bound of {admission.limit:,}. Try again in {retry_s:.2g} s, or make the pool"
            " with a larger max_pending_tokens.",
            retry_s,
        )

    @property
    def _tokens_per_s(self) -> float:
        """Estimated tokens that the workers do a second, of late."""
        if not self._lately_s:
            return 0.0
        return self._lately_tokens / self._lately_s * max(1, self._supervisor.working)

    def close(self) -> None:
        """Stop admission, drop what has not begun, end the workers. Safe to call twice."""
        with self._inbox_lock:
            self._closing = True
            self._wake()
        self._close_admission(PoolClosed(CLOSED))
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def work(self) -> WorkTotals:
        """Totals since the pool began."""
        return replace(self.meter.work, restarts=self._supervisor.restarts)

    def busy_workers(self) -> int:
        """Count workers that hold a shard."""
        return sum(bool(handle.slots) for handle in self._supervisor.workers)

    def ready_workers(self) -> int:
        """Count workers that are ready for work or at it."""
        return self._supervisor.working

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live, in order of their numbers."""
        return [handle.pid for handle in self._supervisor.workers if not handle.gone]

    def _refuse_if_closed(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure
        if self._closing:
            raise PoolClosed(CLOSED)

    def _close_admission(self, error: PoolError) -> None:
        for admission in self._admissions:
            admission.close(error)

    def _wake(self) -> None:
        """Wake the pool's thread; called with the admission lock, under which the alarm closes."""
        if self._alarm is not None and not self._woken:
            self._woken = True
            self._alarm.ring()

    def _heed(self, entry: QueueEntry) -> None:
        """Wake the pool's thread for a new entry, unless it could not go before a worker answers.

        Called with the admission lock.
        """
        self._inbox_tokens += entry.cost
        if self._inbox_tokens >= self._enough_tokens or not self._lanes.is_patient(entry.shards):
            self._wake()

    def _look_once_more(self) -> None:
        """See how much must come before anything can go, and whether that came meanwhile."""
        # Said before the inbox is looked at: who comes later goes by it.
        self._enough_tokens = self._lanes.enough_tokens()
        if self._inbox:
            with self._inbox_lock:
                if self._inbox_tokens >= self._enough_tokens:
                    self._wake()

    # ── the pool's thread ──

    def _run(self) -> None:
        try:
            self._supervisor.watch(self._alarm, self._clear_alarm)
            if not self._closing:
                self._supervisor.start()
            while not self._closing:
                self._step()
        except MemworkerError as error:
            self._failure = error if isinstance(error, PoolError) else PoolError(str(error))
            detached(error)
        except OSError as error:
            self._failure = WorkerStartFailed(
                f"a worker could not be started: {told(error)}. {self.workers} workers need about"
                " 5 open files and 1 process each."
            )
        except Exception as error:
            words = told(error) if refused_by_system(error) else repr(error)
            self._failure = WorkerCrashed(f"the pool's thread failed: {words}")
        finally:
            self._end()

    def _step(self) -> None:
        self._supervisor.poll()
        if self._supervisor.ready:
            self._started.set()
        self._admit()
        outage = self._supervisor.outage()
        if outage is not None:
            self._fail_all(outage)
        self._lanes.dispatch()
        self._finish()
        self._look_once_more()

    def _finish(self) -> None:
        """Complete the requests that have all their rows.

        After the dispatch: completing wakes their callers, who compete with this
        thread, and meanwhile a worker would have nothing to do.
        """
        touched, self._touched = self._touched, []
        ended = [request for request in touched if request.ended()]
        if not ended:
            return
        # First, and at once for all: who has its answer finds the room that it took free.
        self._release(ended)
        with ending_together():
            for request in ended:
                request.finish()

    def _release(self, ended: list[Request]) -> None:
        """Forget requests that were claimed, and give back their room."""
        room: dict[Admission, int] = {}
        for request in ended:
            entry = self._requests.pop(request)
            room[entry.admission] = room.get(entry.admission, 0) + entry.cost
        for admission, cost in room.items():
            admission.leave(cost)

    def _given_up(self, entry: QueueEntry) -> None:
        """Forget a request that was cancelled, on whatever thread, and give back its room."""
        self._requests.pop(entry.request, None)
        entry.admission.leave(entry.cost)

    def _admit(self) -> None:
        # Before the inbox is emptied: what comes meanwhile counts, and may be counted twice.
        self._inbox_tokens = 0
        while self._inbox:
            entry = self._inbox.popleft()
            self._register(entry)
            for shard in entry.shards:
                self._lanes.add(shard)
            if not entry.shards:
                self._touched.append(entry.request)
            # What is done is not kept until all are.
            entry.shards.clear()

    def _register(self, entry: QueueEntry) -> None:
        self._requests[entry.request] = entry
        # Cancelled before it was there to be forgotten.
        if entry.request.abandoned:
            self._requests.pop(entry.request, None)

    def _fail_all(self, error: PoolError) -> None:
        failed = [request for request in list(self._requests) if request.future.claim()]
        self._release(failed)
        with ending_together():
            for request in failed:
                request.future.set_exception(again(error))

    def _clear_alarm(self) -> None:
        assert self._alarm is not None
        self._alarm.clear()
        # After the clearing, or one that rang in between would be cleared and yet be counted on;
        # before the inbox is looked at, where a caller that rang no bell has put its request.
        self._woken = False

    def _shard_done(self, shard: Shard, result: Result) -> None:
        self.meter.add(
            texts=shard.rows,
            truncated=result.truncated,
            failed=result.failed,
            real_tokens=result.real_tokens,
            padded_tokens=result.padded_tokens,
            tokenize_s=result.tokenize_s,
            encode_s=result.encode_s,
            shards=1,
        )
        worked_s = result.tokenize_s + result.encode_s
        self._lately_tokens = self._lately_tokens * _FADES + shard.cost
        self._lately_s = self._lately_s * _FADES + worked_s
        shard.collect(result)
        self._touched += shard.requests

    def _shard_failed(self, shard: Shard, reason: str) -> None:
        self.meter.add(texts=shard.rows, failed=shard.rows)
        shard.fail(reason)
        self._touched += shard.requests

    def _end(self) -> None:
        self._finish()
        error = self._failure or PoolClosed("the pool was closed before this work was done")
        with self._inbox_lock:
            self._closing = True
            for entry in self._inbox:
                self._register(entry)
        self._close_admission(error)
        self._fail_all(error)
        # A pool that is closed may be kept for long; what was asked of it may be large.
        self._inbox.clear()
        self._touched.clear()
        self._lanes.clear()
        self._requests.clear()
        self._supervisor.close(graceful=self._failure is None)
        self._started.set()
        with self._inbox_lock:
            if self._alarm is not None:
                self._alarm.close()
            self._alarm = None

"""Whose work goes next: questions, then small requests within a share, then bulk.

::

    questions ─────────────────────────────────────────────► slots of their own
    small ──── some worker is at no bulk work ─────────────► slots, as they come
         └──── all are: within their share ────────────────► questions' slots, between session runs
    bulk ──────────────────────────────────────────────────► slots; what goes adds to that share

A small request that stood behind bulk work would take as long as that. So it passes, and
pays for it from a credit that only bulk work fills, with a share of what goes: however many
small ones come, bulk work keeps the rest of the workers' time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import islice

from memworker.pool import plan
from memworker.pool.meter import Meter
from memworker.pool.requests import LOOK_AHEAD, WorkShard, gather
from memworker.pool.supervisor import Supervisor

# Of bulk work that goes, so much may be small work that passes it: a seventh of all.
_SHARE = 1 / 6
# Session runs that a small request may be, and that may pass at once after a quiet time.
_SMALL_RUNS = 4


class Lanes:
    """Three queues of shards, and the credit of the one in the middle."""

    def __init__(
        self,
        costs: plan.Costs,
        limits: plan.SlotLimits,
        urgent_limits: plan.SlotLimits,
        supervisor: Supervisor,
        meter: Meter,
    ) -> None:
        self._limits = limits
        self._urgent_limits = urgent_limits
        self._supervisor = supervisor
        self._meter = meter
        # What one session run takes best: more would make the first caller wait for the last.
        self._gather_tokens = float(costs.batch_tokens)
        # Where enough is waiting for all workers: a shard costs a worker as much as some 15 tokens,
        # whatever is in it, and a larger choice fills its runs better.
        self._most_together = 2 * self._gather_tokens
        self._run_tokens = costs.run_tokens
        self.small_tokens = _SMALL_RUNS * self._gather_tokens
        self._credit = self.small_tokens
        self._urgent: deque[WorkShard] = deque()
        self._small: deque[WorkShard] = deque()
        self._bulk: deque[WorkShard] = deque()

    def add(self, shard: WorkShard) -> None:
        """Queue a shard behind those of its kind."""
        queue = self._urgent if shard.urgent else self._small if shard.small else self._bulk
        queue.append(shard)

    def clear(self) -> None:
        """Drop everything."""
        for queue in (self._urgent, self._small, self._bulk):
            queue.clear()

    def dispatch(self) -> None:
        """Give the workers what they have room for."""
        if self._supervisor.in_doubt:
            # Texts and nothing but texts that end their workers: see whether others go.
            self._dispatch_urgent()
            self._dispatch_others()
        while self._supervisor.offer_returned():
            pass
        # Questions have slots of their own: work that a dead worker left does not hold them up.
        self._dispatch_urgent()
        if not self._supervisor.returned:
            self._dispatch_others()

    def is_patient(self, shards: Sequence[WorkShard]) -> bool:
        """Whether a request is a part of a session run, and may wait for others to fill it."""
        return len(shards) == 1 and shards[0].small and shards[0].cost < self._gather_tokens

    def enough_tokens(self) -> float:
        """Tell how many tokens of patient requests must come before any of them could go.

        Where all workers are at such work, a new one waits until one is done or until there is
        a choice: the pool's thread need not be woken for it. Else 0.
        """
        workers = self._supervisor
        if self._urgent or self._bulk or workers.returned or not workers.all_at_small_work:
            return 0.0
        if not workers.has_room(urgent=False, idle_only=False, light_only=True):
            return math.inf
        return 2 * self._most_together - self._waiting(self._small)

    def _dispatch_urgent(self) -> None:
        while self._dispatch_one(self._urgent, urgent=True):
            pass

    def _dispatch_others(self) -> None:
        while True:
            while self._dispatch_small():
                pass
            tokens = self._dispatch_one(self._bulk)
            if not tokens:
                return
            self._credit = min(self._credit + _SHARE * tokens, self.small_tokens)

    def _dispatch_small(self) -> bool:
        if not _drop_abandoned(self._small):
            return False
        # Where no worker is without bulk work, it is done between two session runs of that.
        between = not self._supervisor.any_light
        passes = between or bool(_drop_abandoned(self._bulk))
        if passes and self._credit <= 0:
            return False
        tokens = self._dispatch_one(self._small, urgent=between, light_only=not between)
        if tokens and passes:
            self._credit -= tokens + self._run_tokens
        return bool(tokens)

    def _dispatch_one(
        self, queue: deque[WorkShard], *, urgent: bool = False, light_only: bool = False
    ) -> float:
        """Give a worker a queue's first shard, with small ones that go well with it.

        `urgent` says which kind of slot it takes. Gives its tokens, 0 where none can go now.
        """
        if not _drop_abandoned(queue):
            return 0.0
        waiting = 0.0 if urgent else self._waiting(queue)
        idle_only = not urgent and self._may_wait(queue, waiting)
        # Asked first, for most wake-ups find every worker busy, and gathering takes a while.
        if not self._supervisor.has_room(urgent=urgent, idle_only=idle_only, light_only=light_only):
            return 0.0
        limits = self._urgent_limits if urgent else self._limits
        shard, left = gather(queue, limits, self._together(queue, waiting, urgent=urgent))
        shard.urgent = urgent
        if not self._supervisor.offer(shard, idle_only=idle_only, light_only=light_only):
            return 0.0
        self._meter.dispatched()
        for _ in range(len(left) + shard.gathered):
            queue.popleft()
        queue.extendleft(reversed(left))
        return max(shard.cost, 1.0)

    def _together(self, queue: deque[WorkShard], waiting: float, *, urgent: bool) -> float:
        """Give how many tokens a shard of small ones may have together.

        Of what is waiting no worker takes more than its share, and what passes bulk work is one
        session run.
        """
        if urgent or queue is not self._small:
            return self._gather_tokens
        share = waiting / self._supervisor.count
        return max(self._gather_tokens, min(share, self._most_together))

    def _may_wait(self, queue: deque[WorkShard], waiting: float) -> bool:
        """Tell whether small work should rather wait for an idle worker than behind a busy one.

        What comes meanwhile may go better with it. Once two shards' worth is
        waiting there is choice enough, and a busy worker gets its next one early.
        """
        return queue[0].cost < self._gather_tokens and waiting < 2 * self._most_together

    def _waiting(self, queue: deque[WorkShard]) -> float:
        """Count a queue's tokens, as far as it matters how many they are."""
        waiting, most = 0.0, self._most_together * max(2, self._supervisor.count)
        for shard in islice(queue, LOOK_AHEAD):
            waiting += shard.cost
            if waiting >= most:
                break
        return waiting


def _drop_abandoned(queue: deque[WorkShard]) -> deque[WorkShard]:
    while queue and queue[0].abandoned:
        queue.popleft()
    return queue

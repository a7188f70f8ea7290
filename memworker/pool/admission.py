"""Admission: how much work may wait at once; beyond that, callers wait their turn.

::

    enter(cost) ──room, and none waits──►  admitted ──leave(cost)──► room for the next
         └────────── else ──► in line, first come first served ──┘

The bound is in estimated tokens, so that a thousand short texts and ten long ones
are the same. A request larger than the whole bound is admitted when nothing else is.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from memworker.errors import PoolError, again


@dataclass(slots=True, eq=False)
class Ticket:
    """A place in the line; `turn` completes when the work may go in."""

    cost: int
    turn: Future[None] = field(default_factory=Future)


class Admission:
    """Bounds the estimated tokens that are admitted and not yet done."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._pending = 0
        self._line: deque[Ticket] = deque()
        self._line_cost = 0
        self._closed: PoolError | None = None
        self._mutex = threading.Lock()

    @property
    def pending(self) -> int:
        """Estimated tokens admitted and not yet done."""
        return self._pending

    @property
    def backlog(self) -> int:
        """Estimated tokens admitted and not yet done, and of those who stand in line."""
        return self._pending + self._line_cost

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""
        return len(self._line)

    def enter(self, cost: int) -> Ticket | None:
        """Go in where there is room (None), else take a place in the line."""
        with self._mutex:
            if self._closed is not None:
                raise again(self._closed)
            if not self._line and self._fits(cost):
                self._pending += cost
                return None
            ticket = Ticket(cost)
            self._line.append(ticket)
            self._line_cost += cost
            return ticket

    def force(self, cost: int) -> None:
        """Go in past the line and the bound: for those whom waiting would block for ever."""
        with self._mutex:
            self._pending += cost

    def leave(self, cost: int) -> None:
        """Say that work is done, failed or given up, and let in whose turn it is."""
        with self._mutex:
            self._pending = max(0, self._pending - cost)
            self._let_in()

    def give_up(self, ticket: Ticket) -> None:
        """Leave the line, or, where the turn came meanwhile, what was admitted."""
        if ticket.turn.cancel():
            with self._mutex:
                if ticket in self._line:
                    self._line.remove(ticket)
                    self._line_cost -= ticket.cost
                self._let_in()
        elif ticket.turn.exception() is None:
            self.leave(ticket.cost)

    def close(self, error: PoolError) -> None:
        """Refuse every caller in line, and every later one, with `error`."""
        with self._mutex:
            self._closed = error
            refused, self._line = self._line, deque()
            self._line_cost = 0
        for ticket in refused:
            if ticket.turn.set_running_or_notify_cancel():
                ticket.turn.set_exception(again(error))

    def _let_in(self) -> None:
        while self._line and (self._line[0].turn.cancelled() or self._fits(self._line[0].cost)):
            ticket = self._line.popleft()
            self._line_cost -= ticket.cost
            self._admit(ticket)

    def _fits(self, cost: int) -> bool:
        return not self._pending or self._pending + cost <= self.limit

    def _admit(self, ticket: Ticket) -> None:
        # A cancelled ticket must not count; once running it cannot be cancelled any more.
        if ticket.turn.set_running_or_notify_cancel():
            self._pending += ticket.cost
            ticket.turn.set_result(None)

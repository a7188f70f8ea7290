"""One worker process as the parent sees it: its state, its slots, its signs of life.

What decides about other people's work is known here and not read from the worker:
which shard a slot holds, how many rows, since when, and in which order they were given.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from memworker.pool import messages, worker
from memworker.pool.arena import Form, Region, Slot
from memworker.pool.incoming import Incoming, Nonsense, Result, checked
from memworker.pool.outside import Child, Outside
from memworker.pool.pace import Pace

if TYPE_CHECKING:
    from memworker.pool.requests import Request

_BOOT_PATIENCE_S = 120.0
_HALF_MESSAGE_S = 2.0
_READ_BYTES = 1 << 16
_END_S = 2.0
_BASELINE_SHARDS = 8
_LOOK_EVERY_S = 0.1
# A worker that says nothing for so long is looked at; one that is stopped gets as long again.
_SILENT_S = 1.0
_STATE_EVERY_S = 0.25
# Of what a worker that only waits is allowed, so much processor time beside that of its work.
_SPIN_SHARE = 0.15


class Shard(Protocol):
    """A piece of work: what the supervisor must know of it, and what takes its outcome.

    `blames` counts workers that ended while they were at it, `doubts` those that
    ended when it was next.
    """

    id: int
    urgent: bool
    small: bool
    form: Form
    blames: int
    doubts: int

    @property
    def rows(self) -> int: ...
    @property
    def cost(self) -> float: ...
    @property
    def abandoned(self) -> bool: ...
    @property
    def requests(self) -> list[Request]: ...
    def fill(self, slot: Slot) -> None: ...
    def collect(self, got: Result) -> None: ...
    def fail(self, reason: str) -> None: ...
    def split(self) -> Sequence[Shard]: ...


class WorkerState(Enum):
    """Life cycle of a worker process."""

    STARTING = auto()
    READY = auto()
    RETIRING = auto()
    GONE = auto()


@dataclass(frozen=True, slots=True)
class AssignedShard:
    """A shard in a worker's slot."""

    shard: Shard
    rows: int
    generation: int
    since: float
    size: int = 0


class WorkerHandle:
    """One worker process and what it has been given."""

    def __init__(
        self, number: int, region: Region, child: Child, incoming: Incoming, outside: Outside
    ) -> None:
        self.number = number
        self.region = region
        self.child = child
        self.state = WorkerState.STARTING
        # In the order of their giving, which is the order of the work on each kind.
        self.slots: dict[int, AssignedShard] = {}
        self.shards_done = 0
        self.pid = child.pid
        self.exit_code: int | None = None
        self.ended_by = ""
        self.last_sign = outside.monotonic()
        # Of the time since then, what cannot be held against it.
        self._excused_s = 0.0
        self._ready_at: float | None = None
        self._incoming = incoming
        self._outside = outside
        self._generation = 0
        # Slots whose order never reached the worker: nothing it does is their shards' doing.
        self._unsent: set[int] = set()
        self._cut_off_at: float | None = None
        self._baseline_bytes = 0
        self._look_again = 0.0
        self._state_again = 0.0
        self._stopped_since: float | None = None
        # Its processor time at its last sign of life, and at its last step within a shard.
        self._cpu_at_sign: float | None = None
        self._steps: list[int] = []
        self._cpu_at_step: float | None = None
        self._computing_again = 0.0

    @property
    def gone(self) -> bool:
        """Whether it was buried."""
        return self.state is WorkerState.GONE

    # ── work ──

    @property
    def idle(self) -> bool:
        """Whether it has no work but questions."""
        return not any(index < worker.URGENT_SLOT for index in self.slots)

    @property
    def light(self) -> bool:
        """Whether it has no bulk work of a large request."""
        return all(
            given.shard.small for index, given in self.slots.items() if index < worker.URGENT_SLOT
        )

    @property
    def tries(self) -> bool:
        """Whether it is alone with a shard that has ended workers."""
        return any(given.shard.blames for given in self.slots.values())

    @property
    def outstanding(self) -> float:
        """Tokens given to this worker and not yet answered."""
        return sum(given.shard.cost for given in self.slots.values())

    def free_slot(self, *, urgent: bool) -> int | None:
        """Give the index of a free slot of that kind, if there is one."""
        if urgent:
            candidates = range(worker.URGENT_SLOT, len(self.region.slots))
        else:
            candidates = range(worker.URGENT_SLOT)
        return next((slot for slot in candidates if slot not in self.slots), None)

    def give(self, index: int, shard: Shard) -> None:
        """Fill a slot and tell the worker; Nonsense where it reads nothing.

        A worker that is dead already is found so later.
        """
        shard.fill(self.region.slots[index])
        now = self._outside.monotonic()
        if not self.slots:
            self._give_sign(now)
        self._generation += 1
        size = int(self.region.slots[index].offsets[shard.rows])
        self.slots[index] = AssignedShard(shard, shard.rows, self._generation, now, size)
        self._unsent.add(index)
        order = messages.Encode(shard.id, index, self._generation, shard.rows, int(shard.form))
        if self._send(order):
            self._unsent.discard(index)

    def stop(self) -> None:
        """Ask the worker to leave."""
        try:
            self._send(messages.Shutdown())
        except Nonsense:
            pass  # it reads nothing; the caller's wait has a timeout

    def answered(self, done: messages.Done) -> tuple[AssignedShard, Result]:
        """Give the shard that a message is about and what came of it; raises Nonsense."""
        given = self.slots.get(done.slot)
        if given is None:
            raise Nonsense(f"answered for slot {done.slot}, which held nothing")
        if (given.shard.id, given.generation) != (done.shard, done.generation):
            raise Nonsense(
                f"answered for shard {done.shard}, turn {done.generation}, in slot {done.slot},"
                f" which held shard {given.shard.id}, turn {given.generation}"
            )
        taken_s = self._outside.monotonic() - given.since
        return given, checked(done, self.region.slots[done.slot], given.rows, taken_s)

    def release(self, index: int) -> None:
        """Free a slot whose result was taken."""
        del self.slots[index]
        self.shards_done += 1
        self._give_sign(self._outside.monotonic())

    def _give_sign(self, now: float) -> None:
        self.last_sign, self._excused_s = now, 0.0
        self._cpu_at_sign, self._steps = self._outside.cpu_s(self.pid), []

    def computed_s(self) -> float | None:
        """Give its processor time since its last sign of life; None where it is not known."""
        now = self._outside.cpu_s(self.pid)
        return None if now is None or self._cpu_at_sign is None else now - self._cpu_at_sign

    # ── what it says ──

    def heard(self) -> Iterator[messages.ToParent]:
        """Yield what has come from the worker; raises EOFError, OSError, Nonsense."""
        try:
            while data := self.child.channel.read(_READ_BYTES):
                yield from self._incoming.feed(data)
        except BlockingIOError:
            if not self._incoming.half:
                self._cut_off_at = None
            elif self._cut_off_at is None:
                self._cut_off_at = self._outside.monotonic()
            return
        raise EOFError

    def cut_off(self) -> None:
        """Note that nothing more will come from it."""
        self._cut_off_at = self._outside.monotonic()

    def _send(self, message: messages.ToWorker) -> bool:
        """Tell the worker; False where it has closed its pipe, Nonsense where it reads nothing."""
        try:
            self.child.channel.write(messages.framed(message))
        except BlockingIOError:
            raise Nonsense("left its orders unread") from None
        except OSError:
            return False  # a broken pipe means a death, which the sentinel tells
        return True

    # ── life ──

    def deadline(self, stall_s: float, tokens_per_s: float) -> float | None:
        """Give the monotonic time by which a sign of life is due; None when none is.

        A shard may take its estimated work at a tenth of the speed seen, and
        `stall_s` on top. What follows the first half of a message, or the last one,
        is due soon.
        """
        due = self._work_deadline(stall_s, tokens_per_s)
        if self._cut_off_at is None:
            return due
        soon = self._cut_off_at + _HALF_MESSAGE_S
        return soon if due is None else min(due, soon)

    def _work_deadline(self, stall_s: float, tokens_per_s: float) -> float | None:
        if self.state is WorkerState.STARTING:
            return self.last_sign + self._excused_s + _BOOT_PATIENCE_S
        if not self.slots:
            return None
        longest = max(given.shard.cost for given in self.slots.values())
        return self.last_sign + self._excused_s + stall_s + 10 * longest / tokens_per_s

    def stopped(self) -> bool:
        """Tell whether a signal has stopped it in the midst of its work, and left it so.

        It would not be heard of before its deadline, which is that of a slow worker.
        """
        now = self._outside.monotonic()
        owes = bool(self.slots) or self.state is WorkerState.STARTING
        if not owes or now < self.last_sign + self._excused_s + _SILENT_S:
            self._stopped_since = None
            return False
        if now >= self._state_again:
            self._state_again = now + _STATE_EVERY_S
            if not self._outside.stopped(self.pid):
                self._stopped_since = None
            elif self._stopped_since is None:
                self._stopped_since = now
        return self._stopped_since is not None and now >= self._stopped_since + _SILENT_S

    def spins(self, stall_s: float, pace: Pace) -> float | None:
        """Give the processor time it took without a step where that is too much for its work.

        Of processor time, so that a worker that only waits for a core is never meant: whatever
        else the machine does, only its own computing counts.
        """
        now = self._outside.monotonic()
        if not self.slots or now < max(self.last_sign + _SILENT_S, self._computing_again):
            return None
        self._computing_again = now + _STATE_EVERY_S
        steps = [self.region.slots[index].steps for index in sorted(self.slots)]
        cpu_s = self._outside.cpu_s(self.pid)
        if cpu_s is None or steps != self._steps or self._cpu_at_step is None:
            self._steps, self._cpu_at_step = steps, cpu_s
            return None
        most = [pace.computing_s(given.shard.cost, given.size) for given in self.slots.values()]
        took = cpu_s - self._cpu_at_step
        allowed = max((each for each in most if each is not None), default=None)
        if allowed is None or took < stall_s * _SPIN_SHARE + allowed:
            return None
        return took

    def silence(self) -> str:
        """Say what was missing when a deadline was over."""
        if self._cut_off_at is None:
            silent_s = self._outside.monotonic() - self.last_sign
            return f"gave no sign of life for {silent_s:.0f} s"
        return "sent half a message" if self._incoming.half else "closed its pipe"

    def restart_deadlines(self) -> None:
        """Count deadlines from now."""
        now = self._outside.monotonic()
        self.last_sign, self._excused_s, self._stopped_since = now, 0.0, None
        if self._cut_off_at is not None:
            self._cut_off_at = now

    def excuse(self, seconds: float) -> None:
        """Count so many seconds as none of its silence."""
        self._excused_s += seconds
        self._stopped_since = None
        if self._cut_off_at is not None:
            self._cut_off_at += seconds

    def has_grown(self, allowed_bytes: int) -> bool:
        """Tell whether the process holds `allowed_bytes` more than after its first shards."""
        now = self._outside.monotonic()
        if self.shards_done < _BASELINE_SHARDS or now < self._look_again:
            return False
        # Not at every shard: a lone caller would wait for this.
        self._look_again = now + _LOOK_EVERY_S
        resident = self._outside.resident_bytes(self.pid)
        if not self._baseline_bytes:
            self._baseline_bytes = resident
        return resident > self._baseline_bytes + allowed_bytes

    def welcome(self) -> None:
        """Note that it is ready for work."""
        self.state = WorkerState.READY
        self._ready_at = self._outside.monotonic()

    def lasted(self, seconds: float) -> bool:
        """Tell whether it was ready for so long."""
        return self._ready_at is not None and self._outside.monotonic() - self._ready_at >= seconds

    # ── death ──

    def end(self) -> bool:
        """Kill the process if it lives, and release what the system holds of it.

        False where it does not die, and so nothing could be released.
        """
        self.child.kill()
        if not self.child.ended(_END_S):
            return False
        self.exit_code = self.child.exit_code
        self.child.close()
        return True

    def in_hand(self) -> list[int]:
        """Give the slots that the worker can have been at: the first given of each kind.

        That is how it works, whatever it has written into its slots.
        """
        indices = [index for index in self.slots if index not in self._unsent]
        urgent = [index >= worker.URGENT_SLOT for index in indices]
        return [indices[urgent.index(kind)] for kind in (False, True) if kind in urgent]

    def begun(self) -> set[int]:
        """Give those of `in_hand` that it had begun, as it says."""
        return {index for index in self.in_hand() if not self.region.slots[index].untouched}

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel does when memory runs out."""
        return self.exit_code == -signal.SIGKILL

    def exit_reason(self) -> str:
        """Say how a buried worker ended."""
        who = f"worker {self.number} (pid {self.pid})"
        code = self.exit_code
        if self.ended_by:
            return f"{who} {self.ended_by}"
        if code is None or code >= 0:
            return f"{who} left with exit code {code}"
        hint = ", likely out of memory" if self.killed else ""
        return f"{who} was killed by {_signal_name(-code)}{hint}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most real-time signals have no name

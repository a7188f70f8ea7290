"""One worker process as the parent sees it: its state, its slots, its signs of life."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from memworker.pool import messages, worker
from memworker.pool.arena import Form, Region, Slot, SlotState

BOOT_PATIENCE_S = 120.0
_BASELINE_SHARDS = 8
_LOOK_EVERY_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Shard(Protocol):
    """What the supervisor must know of a piece of work."""

    id: int
    urgent: bool
    form: Form
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
    RETIRING = auto()
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
    shards_done: int = 0
    last_sign: float = field(default_factory=time.monotonic)
    pid: int = 0
    exit_code: int | None = None
    ended_by: str = ""
    baseline_bytes: int = 0
    look_again: float = 0.0

    def __post_init__(self) -> None:
        self.pid = self.process.pid

    def end(self) -> None:
        """Kill the process if it lives, and release what the system holds of it."""
        self.process.kill()
        self.process.join()
        self.exit_code = self.process.exitcode
        self.process.close()
        self.pipe.close()

    @property
    def idle(self) -> bool:
        """Whether it has no bulk work."""
        return not any(index < worker.URGENT_SLOT for index in self.slots)

    @property
    def outstanding(self) -> float:
        """Tokens given to this worker and not yet answered."""
        return sum(shard.cost for shard in self.slots.values())

    def free_slot(self, *, urgent: bool) -> int | None:
        """Give the index of a free slot of that kind, if there is one."""
        if urgent:
            candidates = range(worker.URGENT_SLOT, len(self.region.slots))
        else:
            candidates = range(worker.URGENT_SLOT)
        return next((slot for slot in candidates if slot not in self.slots), None)

    def give(self, index: int, shard: Shard) -> None:
        """Fill a slot and tell the worker; a worker that is dead already is found so later."""
        slot = self.region.slots[index]
        shard.fill(slot)
        if not self.slots:
            self.last_sign = time.monotonic()
        self.slots[index] = shard
        self.send(messages.Encode(shard.id, index, slot.generation, int(shard.form)))

    def answered(self, done: messages.Done) -> Shard | None:
        """Give the shard that a message is about; None when it is about none that is here."""
        shard, slot = self.slots.get(done.slot), self.region.slots[done.slot]
        if shard is None or shard.id != done.shard or slot.generation != done.generation:
            return None
        return shard

    def release(self, index: int) -> None:
        """Free a slot whose result was taken."""
        self.region.slots[index].state = SlotState.FREE
        del self.slots[index]
        self.shards_done += 1
        self.last_sign = time.monotonic()

    def send(self, message: messages.ToWorker) -> None:
        """Send a header; a broken pipe means a death, which the sentinel tells."""
        try:
            self.pipe.send_bytes(messages.encode(message))
        except OSError:
            pass

    def begun(self) -> set[int]:
        """Give the slots that the worker had begun, as shared memory tells."""
        worked_on = (SlotState.BEGUN, SlotState.WRITTEN)
        return {index for index in self.slots if self.region.slots[index].state in worked_on}

    def deadline(self, stall_s: float, tokens_per_s: float) -> float | None:
        """Give the monotonic time by which a sign of life is due; None when none is.

        A shard may take its estimated work at a tenth of the speed seen, and
        `stall_s` on top.
        """
        if self.state is WorkerState.STARTING:
            return self.last_sign + BOOT_PATIENCE_S
        if not self.slots:
            return None
        longest = max(shard.cost for shard in self.slots.values())
        return self.last_sign + stall_s + 10 * longest / tokens_per_s

    def has_grown(self, allowed_bytes: int) -> bool:
        """Tell whether the process holds `allowed_bytes` more than after its first shards."""
        if self.shards_done < _BASELINE_SHARDS or time.monotonic() < self.look_again:
            return False
        # Not at every shard: a lone caller would wait for this.
        self.look_again = time.monotonic() + _LOOK_EVERY_S
        resident = _resident_bytes(self.pid)
        if not self.baseline_bytes:
            self.baseline_bytes = resident
        return resident > self.baseline_bytes + allowed_bytes

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel does when memory runs out."""
        return self.exit_code == -signal.SIGKILL

    def epitaph(self) -> str:
        """Say how a buried worker ended."""
        who = f"worker {self.number} (pid {self.pid})"
        code = self.exit_code
        if self.ended_by:
            return f"{who} {self.ended_by}"
        if code is None or code >= 0:
            return f"{who} left with exit code {code}"
        hint = ", likely out of memory" if self.killed else ""
        return f"{who} was killed by {signal.Signals(-code).name}{hint}"


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0  # no procfs, or gone: then there is no drift to see

"""What a soak sees of processes and folders from outside, and whether it drifts.

Of a run's three thirds the first is for growing accustomed: caches, arenas and
indices reach their size. Whatever grows from the second to the last, grows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from bench.common import Result
from memworker.errors import UsageError

SAMPLES_A_THIRD = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """How much of a figure's growth is still none: within a ratio, or within an amount."""

    ratio: float
    amount: float


# By a figure's last word. Latencies hang on what else the machine does, hence so much room.
BOUNDS = {
    "private_mb": Bound(1.03, 2.0),
    "descriptors": Bound(1.05, 3.0),
    "threads": Bound(1.0, 2.0),
    "disk_mb": Bound(1.10, 5.0),
    "files": Bound(1.15, 50.0),
    "p50_ms": Bound(1.25, 1.0),
    "p95_ms": Bound(1.5, 5.0),
}


def needs_proc() -> None:
    """Refuse a system that does not tell private memory. Raises UsageError."""
    if not Path("/proc/self/status").exists():
        raise UsageError("a soak reads private memory from /proc, which this system does not have.")


class Family:
    """A process and its children, each under a name that outlives its replacement."""

    def __init__(self, name: str, pid: int) -> None:
        self.replaced = 0
        self._name, self._parent = name, psutil.Process(pid)
        self._places: dict[int, int] = {}
        self._most = 0

    def look(self) -> dict[str, float]:
        """Give private memory, descriptors and threads of each of them, by name."""
        found = _figures(self._name, self._parent.pid)
        children = self._parent.children()
        self._settle([child.pid for child in children])
        for pid, place in self._places.items():
            with suppress(OSError):
                found |= _figures(f"{self._name}'s worker {place}", pid)
        return found

    def _settle(self, pids: list[int]) -> None:
        """Give each child a place; a new one takes the lowest that a lost one has left."""
        kept = {pid: place for pid, place in self._places.items() if pid in pids}
        for pid in sorted(set(pids) - set(kept)):
            kept[pid] = min(set(range(1, len(pids) + 1)) - set(kept.values()), default=len(kept))
            self.replaced += kept[pid] <= self._most
        self._places, self._most = kept, max([self._most, *kept.values()])


def folder(name: str, path: Path) -> dict[str, float]:
    """Give the bytes and files under a folder that somebody is writing to."""
    count = total = 0
    # What is removed while we look was not there: os.walk passes over such folders, rglob raises.
    for parent, _, names in os.walk(path):
        for each in names:
            with suppress(OSError):
                count, total = count + 1, total + os.stat(os.path.join(parent, each)).st_size
    return {f"{name} disk_mb": round(total / 2**20, 2), f"{name} files": count}


def drifts(samples: Sequence[dict[str, float]], at_s: Sequence[float]) -> list[Result]:
    """Hold the last third of each figure against the second; a row a figure.

    A row's `steady` is None where a third has too few samples to say anything.
    """
    names = dict.fromkeys(name for sample in samples for name in sample)
    return [_drift(name, samples, at_s) for name in names if name.split()[-1] in BOUNDS]


def _drift(name: str, samples: Sequence[dict[str, float]], at_s: Sequence[float]) -> Result:
    length = len(samples)
    second = _values(name, samples, range(length // 3, 2 * length // 3))
    last = _values(name, samples, range(2 * length // 3, length))
    row: Result = {"figure": name, "second": None, "last": None, "ratio": None}
    row |= {"an_hour": None, "steady": None}
    if min(len(second), len(last)) < SAMPLES_A_THIRD:
        return row
    before, after = median(second.values()), median(last.values())
    bound = BOUNDS[name.split()[-1]]
    both = second | last
    slope = np.polyfit([at_s[place] for place in both], list(both.values()), 1)[0]
    return row | {
        "second": round(before, 2),
        "last": round(after, 2),
        "ratio": round(after / before, 3) if before else None,
        "an_hour": round(float(slope) * 3600, 1) + 0.0,
        "steady": after <= before * bound.ratio or after - before <= bound.amount,
    }


def _values(name: str, samples: Sequence[dict[str, float]], places: range) -> dict[int, float]:
    return {place: samples[place][name] for place in places if name in samples[place]}


def _figures(name: str, pid: int) -> dict[str, float]:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    # A process that has ended and not been waited for has no memory.
    private_kb = int(status.get("RssAnon", "0 kB").split()[0])
    return {
        f"{name} private_mb": round(private_kb / 1024, 1),
        f"{name} threads": int(status["Threads"]),
        f"{name} descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }

"""What this machine, or the part of it that is ours, has: cores that run side by side, memory."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from memworker.pool import cgroups


def usable_cores() -> int:
    """Count physical cores within the affinity mask and the cgroups' quotas; at least 1.

    Two hyper-threads of a core share its matrix units, so they count once.
    """
    allowed = _allowed_cpus()
    cores = min(_physical_cores(allowed), len(allowed))
    quota = cgroups.limits().cores
    return max(1, min(cores, int(quota)) if quota else cores)


def core_quota() -> float | None:
    """Give the cores that the control groups allow; None where they bound nothing."""
    return cgroups.limits().cores


def memory_bytes() -> int:
    """Give the machine's memory, or the least of the cgroups' limits where that is lower."""
    total = int(psutil.virtual_memory().total)
    limit = cgroups.limits().memory_bytes
    return total if limit is None else min(total, limit)


def free_bytes() -> int:
    """Give the memory that is not in use now, within the cgroups' limits.

    What holds pages of files counts as free, for the system takes them back.
    """
    available = int(psutil.virtual_memory().available)
    free = cgroups.limits().free_bytes
    return available if free is None else min(available, free)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _physical_cores(allowed: set[int]) -> int:
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text().strip())
        except OSError:
            return psutil.cpu_count(logical=False) or len(allowed)
    return len(siblings)

"""What this machine has for us: cores that run side by side, and memory."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Count physical cores within the affinity mask and the cgroup quota; at least 1.

    Two hyper-threads of a core share its matrix units, so they count once.
    """
    allowed = _allowed_cpus()
    cores = min(_physical_cores(allowed), len(allowed))
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota)) if quota else cores)


def memory_bytes() -> int:
    """Give the machine's memory, or the cgroup's limit where that is lower."""
    total = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):
            continue
    return total


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


def _cgroup_quota() -> float | None:
    """Read the CPU quota in cores: cgroup v2 first, then v1; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        period_us = int((base / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None

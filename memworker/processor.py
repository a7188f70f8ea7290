"""What the processor is called, and which instructions it has, as Linux tells it."""

from __future__ import annotations

import platform
from pathlib import Path


def name() -> str:
    """Return the processor's name; the kind of machine where nothing tells more."""
    return _field("model name") or platform.processor() or platform.machine()


def features() -> frozenset[str]:
    """Return the names of its instructions' extensions, such as ``avx2``; none where not told."""
    return frozenset((_field("flags") or _field("Features")).split())


def _field(key: str) -> str:
    """Return the first core's field of /proc/cpuinfo, "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        found, _, value = line.partition(":")
        if found.strip() == key:
            return value.strip()
    return ""

"""One thing that was looked at: what it is like, as a line and as facts, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one topic.

    `told` says it in a line, `facts` in JSON's own types: bytes in bytes, speeds a second.
    `advice` holds one sentence for each thing that is wrong, with what to do; empty where
    nothing is.
    """

    topic: str
    told: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    advice: tuple[str, ...] = ()


def size(count: float) -> str:
    """Say a number of bytes as people do."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"

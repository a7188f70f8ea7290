"""Where a job's texts are read and embedded, as callers say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memworker.errors import UsageError
from memworker.values import checked_choice, shown

RUNNERS = ("local", "ray")
COMMITS = ("auto", "driver", "fragments")


@dataclass(frozen=True, slots=True)
class OnRay:
    """On the nodes of the Ray cluster at `address`, or of this machine alone where it is None.

    Files are read together, or in pieces, of about `part_bytes`. `encoders` is "node" for a pool
    of many workers a node, or "cpu" for pools of one (measured: bench/scaling_ray.py).
    """

    address: str | None = None
    commit: str = "auto"
    part_bytes: int = 64 << 20
    encoders: str = "node"


def runner_of(runner: Any, address: str | None) -> OnRay | None:
    """Read what `ingest` is given; None is this process. Raises UsageError."""
    if isinstance(runner, OnRay):
        return runner
    checked_choice("runner", runner, RUNNERS)
    if runner == "local" and address is not None:
        raise UsageError(
            f"--address {shown(address)} (address=) is a Ray cluster's: give --runner ray as well"
        )
    return OnRay(address) if runner == "ray" else None


def is_dataset(given: Any) -> bool:
    """Tell a Ray Dataset, without Ray."""
    kind = type(given)
    return kind.__module__.startswith("ray.data") and kind.__name__.endswith("Dataset")

"""Where a job's texts are read and embedded, as callers say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memworker.errors import UsageError
from memworker.values import checked_choice, positive, shown

RUNNERS = ("local", "ray")
COMMITS = ("auto", "driver", "fragments")
ENCODERS = ("node", "cpu")


@dataclass(frozen=True, slots=True)
class OnRay:
    """On the nodes of the Ray cluster at `address`, or of this machine alone where it is None.

    Files are read together, or in pieces, of about `part_bytes`. `encoders` is "node" for a pool
    of many workers a node, or "cpu" for pools of one (measured: bench/scaling_ray.py). `commit`:
    whether nodes write files of rows ("fragments"), or send vectors to be written here ("driver").
    Raises UsageError.
    """

    address: str | None = None
    commit: str = "auto"
    part_bytes: int = 64 << 20
    encoders: str = "node"

    def __post_init__(self) -> None:
        checked_choice("commit", self.commit, COMMITS)
        checked_choice("encoders", self.encoders, ENCODERS)
        positive("part_bytes", self.part_bytes)

    def refuse(self, *, in_bucket: bool, updates: bool) -> None:
        """Raise UsageError where nodes were asked to write files and cannot."""
        if self.commit == "fragments" and (in_bucket or updates):
            why = (
                "into a bucket one committer writes"
                if in_bucket
                else "on_conflict='update' takes a merge, which one committer does"
            )
            raise UsageError(f"commit='fragments' cannot be obeyed: {why}; give commit='driver'")


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

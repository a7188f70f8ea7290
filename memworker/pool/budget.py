"""How many workers, of which size, fit into a given amount of memory.

The amounts are measured (bench/memory_of_a_worker.py prints them again) and
rounded up; memory that processes share counts once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from memworker.errors import UsageError

_MIB = 1 << 20
# Interpreter, LanceDB, pyarrow and what an ingest holds besides its windows.
_PARENT_BYTES = 320 * _MIB
# Interpreter, ONNX Runtime, tokenizer, session with its weights mapped.
_WORKER_BYTES = 48 * _MIB
# Activations of a padded token, a dimension: feed-forward, attention, their copies.
_TOKEN_BYTES = 128
# A row of a window beyond its vector: text, ids, keys, Arrow and Python around them.
_ROW_BYTES = 2048
_WINDOW_ROWS = 8192
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


@dataclass(frozen=True, slots=True)
class Budget:
    """What a pool may use: processes, padded tokens a session run, windows under way."""

    workers: int
    batch_tokens: int
    windows_in_flight: int = 3


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is fixed about a model's memory, in bytes and dimensions.

    All workers share the weights; each has `worker_bytes`, `token_bytes` for each padded
    token of a session run and dimension, and the region that its slots lie in.
    """

    dim: int
    weights_bytes: int
    region_bytes: int = 0
    worker_bytes: int = _WORKER_BYTES
    token_bytes: int = _TOKEN_BYTES

    def estimate(self, budget: Budget) -> int:
        """Estimate the bytes that parent and workers hold together at their peak."""
        window = _WINDOW_ROWS * (4 * self.dim + _ROW_BYTES)
        activations = budget.batch_tokens * self.token_bytes * self.dim
        worker = self.worker_bytes + activations + self.region_bytes
        parent = _PARENT_BYTES + window * budget.windows_in_flight
        return parent + self.weights_bytes + budget.workers * worker


def fit(allowed_bytes: int, wanted: Budget, footprint: Footprint) -> Budget:
    """Give the largest budget up to `wanted` that stays under `allowed_bytes`.

    What costs least speed goes first: windows under way, then the size of a
    session run, then workers. Raises UsageError when not even the least fits.
    """
    steps = [wanted, replace(wanted, windows_in_flight=2)]
    for tokens in (wanted.batch_tokens // 2, wanted.batch_tokens // 4):
        steps.append(replace(steps[1], batch_tokens=max(tokens, 64)))
    for workers in range(wanted.workers, 0, -1):
        for step in steps:
            budget = replace(step, workers=workers)
            if footprint.estimate(budget) <= allowed_bytes:
                return budget
    least = footprint.estimate(replace(steps[-1], workers=1))
    raise UsageError(
        f"memory of {allowed_bytes / _MIB:,.0f} MiB is not enough: one worker with this model"
        f" needs about {least / _MIB:,.0f} MiB. Allow more, or choose a smaller model."
    )


def parse_bytes(amount: int | str) -> int:
    """Read an amount of memory: 4GB, 512MiB, 1.5g, or a number of bytes."""
    if isinstance(amount, int):
        return amount
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", amount.lower())
    if match is None:
        raise UsageError(f"memory must be an amount such as 4GB or 512MiB, not {amount!r}")
    return int(float(match[1]) * _UNITS[match[2] or ""])

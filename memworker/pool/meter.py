"""What was done and where the time went."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class WorkTotals:
    """Totals since the pool began. Times are seconds; those of workers add up over workers."""

    texts: int = 0
    truncated: int = 0
    failed: int = 0
    real_tokens: int = 0
    padded_tokens: int = 0
    tokenize_s: float = 0.0
    encode_s: float = 0.0
    shards: int = 0
    restarts: int = 0
    first_dispatch: float = 0.0
    last_vector: float = 0.0
    read_at: float = 0.0

    def since(self, before: WorkTotals) -> WorkTotals:
        """Give what was done after `before` was read."""
        totals = {
            field.name: getattr(self, field.name) - getattr(before, field.name)
            for field in fields(self)
        }
        # The time of the first dispatch is not known any more: when it was read will do.
        begun = self.first_dispatch if not before.texts else before.read_at
        totals |= {
            "first_dispatch": begun,
            "last_vector": self.last_vector,
            "read_at": self.read_at,
        }
        return WorkTotals(**totals)

    @property
    def padding_ratio(self) -> float:
        """Share of the computed tokens that was padding, 0 to 1."""
        return 1 - self.real_tokens / self.padded_tokens if self.padded_tokens else 0.0

    @property
    def seconds(self) -> float:
        """From the first dispatch to the last vector."""
        return max(0.0, self.last_vector - self.first_dispatch)


class Meter:
    """Adds up work; read from any thread, written by the scheduler's."""

    def __init__(self) -> None:
        self._work = WorkTotals()
        self._lock = threading.Lock()

    @property
    def work(self) -> WorkTotals:
        return replace(self._work, read_at=time.perf_counter())

    def dispatched(self) -> None:
        if not self._work.first_dispatch:
            self._add(first_dispatch=time.perf_counter())

    def add(self, **amounts: float) -> None:
        """Add a shard's amounts to the totals."""
        totals = {name: getattr(self._work, name) + value for name, value in amounts.items()}
        self._add(**totals, last_vector=time.perf_counter())

    def _add(self, **totals: float) -> None:
        with self._lock:
            self._work = replace(self._work, **totals)  # type: ignore[arg-type]

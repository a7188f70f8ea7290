"""Equal texts of a run are embedded once: later ones take the vector of the first.

::

    keys of a window ─► plan ─► only the texts not met yet go to the pool
                                         │
    vectors of all its rows ◄─ settle ◄──┘   (windows settle in the order of their plans)

Each embedded text has a number, counted through the run. The pool's own
arrays of the last windows are kept, uncopied, up to a bound in bytes; a text
whose equal is longer past is embedded again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.pool import Embedded, Floats, TokenRows, unstorable

_KEPT_BYTES = 48 << 20

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """Which rows of a window are embedded, and where each row finds its vector.

    `texts` (Arrow string[m], or tokens) are those to embed; they are numbered from `first`
    on, or not at all where it is None. `sources` int64[n] names a number for each
    row, or is None when m = n.
    """

    texts: pa.Array | TokenRows
    first: int | None
    sources: Int64s | None

    @property
    def reused(self) -> int:
        """Rows that are not embedded themselves."""
        return 0 if self.sources is None else len(self.sources) - len(self.texts)


@dataclass(frozen=True, slots=True)
class WindowVectors:
    """Vectors float32[n, dim] of a window's rows; `failures` gives the reason a failed row."""

    vectors: Floats
    failures: dict[int, str]

    def unstorable(self) -> dict[int, str]:
        """Give the rows without a usable vector, as `Embedded.unstorable` does."""
        return unstorable(self.vectors, self.failures)


class Reuse:
    """Remembers the vectors of the texts embedded last, about `capacity` of them."""

    def __init__(self, dim: int, capacity: int | None = None) -> None:
        self.capacity = max(1, _KEPT_BYTES // (4 * dim)) if capacity is None else capacity
        self._numbers: dict[str, int] = {}
        self._planned: deque[tuple[int, list[str]]] = deque()
        self._settled: deque[tuple[int, Embedded]] = deque()
        self._next = 0

    def plan(self, texts: pa.Array | TokenRows, keys: pa.Array | None) -> ReusePlan:
        """Choose what is embedded of `texts`; equal `keys` (string[n]) mean equal texts.

        Without keys, each text is embedded, and none is remembered.
        """
        if keys is None:
            return ReusePlan(texts, None, None)
        encoded = keys.dictionary_encode()
        distinct, first = encoded.dictionary.to_pylist(), self._next
        known = list(map(self._numbers.get, distinct))
        if len(distinct) == len(keys) and known.count(None) == len(keys):
            self._remember(distinct)
            return ReusePlan(texts, first, None)
        fresh = np.array([number is None for number in known], np.bool_)
        numbers = np.array([-1 if number is None else number for number in known], np.int64)
        numbers[fresh] = np.arange(first, first + int(fresh.sum()))
        places = encoded.indices.to_numpy()
        rows = np.empty(len(distinct), np.int64)
        # Backwards, so that of equal texts the first one's row stays.
        rows[places[::-1]] = np.arange(len(places) - 1, -1, -1)
        self._remember([key for key, new in zip(distinct, fresh, strict=True) if new])
        return ReusePlan(texts.take(pa.array(rows[fresh])), first, numbers[places])

    def settle(self, plan: ReusePlan, embedded: Embedded) -> WindowVectors:
        """Give every row its vector; must be called in the order of the plans."""
        if plan.first is None:
            return WindowVectors(embedded.vectors, embedded.failures)
        self._settled.append((plan.first, embedded))
        if plan.sources is None:
            outcome = WindowVectors(embedded.vectors, embedded.failures)
        else:
            outcome = self._gather(plan.sources, embedded)
        # Whatever is planned from here on begins behind this window.
        end = plan.first + len(embedded.vectors)
        while self._settled and end - self._settled[0][0] > self.capacity:
            self._settled.popleft()
        return outcome

    def _gather(self, sources: Int64s, embedded: Embedded) -> WindowVectors:
        firsts = np.array([first for first, _ in self._settled])
        windows = np.searchsorted(firsts, sources, side="right") - 1
        # Nearly all rows are the window's own: one pass for them, the others are put in after.
        own = np.maximum(sources - firsts[-1], 0)
        shape = len(sources), embedded.vectors.shape[1]
        some = len(embedded.vectors) > 0
        vectors = embedded.vectors.take(own, axis=0) if some else np.empty(shape, np.float32)
        failures: dict[int, str] = {}
        for window in np.unique(windows).tolist():
            first, there = self._settled[window]
            rows = np.flatnonzero(windows == window)
            if there is not embedded:
                vectors[rows] = there.vectors[sources[rows] - first]
            if there.failures:
                reasons = map(there.failures.get, (sources[rows] - first).tolist())
                failures |= {r: why for r, why in zip(rows.tolist(), reasons, strict=True) if why}
        return WindowVectors(vectors, failures)

    def _remember(self, keys: list[str]) -> None:
        first, self._next = self._next, self._next + len(keys)
        self._numbers.update(zip(keys, range(first, self._next), strict=True))
        self._planned.append((first, keys))
        while self._planned and self._next - self._planned[0][0] > self.capacity:
            for key in self._planned.popleft()[1]:
                del self._numbers[key]

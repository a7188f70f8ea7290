"""A caller's texts on their way out as shards, and their vectors back in input order."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from memworker.errors import TextFailed
from memworker.pool import plan
from memworker.pool.arena import Form, RowStatus, Slot
from memworker.pool.incoming import Result
from memworker.pool.rows import RowSource, fill_slot
from memworker.vectors import bad_vectors

Floats: TypeAlias = npt.NDArray[np.float32]
T = TypeVar("T")

AnyShard: TypeAlias = "WorkShard | GatheredShard"

_shard_ids = itertools.count(1)
# Sorting more would cost more than it saves.
LOOK_AHEAD = 256
_FIRST_ROW = np.zeros(1, np.int64)
_NO_DIRECTION = "the model gave a vector of NaN, infinity or all zeros"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The outcome of one request, rows in input order.

    `vectors` is float32[n, dim] (NaN where `failures` names the row), `tokens`
    int32[n] counts what the model saw, `truncated` bool[n] marks cut texts,
    `failures` gives the reason a failed row.
    """

    vectors: Floats
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]
    failures: dict[int, str]

    @property
    def first_failure(self) -> TextFailed | None:
        """What to raise for the first row that failed, if one did."""
        return self._error_of(min(self.failures)) if self.failures else None

    def raise_first(self) -> None:
        """Raise TextFailed for the first row that failed, if one did."""
        if self.failures:
            # No name for it here: its traceback would hold this frame, and so the vectors.
            raise self._error_of(min(self.failures))

    def unstorable(self) -> dict[int, str]:
        """Give the rows without a vector that a search could find, each with its reason.

        An empty text's vector may rightly be zero (static models): it is no failure, but
        a table cannot rank it.
        """
        return unstorable(self.vectors, self.failures)

    def _error_of(self, row: int) -> TextFailed:
        return TextFailed(f"texts[{row}] could not be embedded: {self.failures[row]}", row)


def unstorable(vectors: Floats, failures: Mapping[int, str]) -> dict[int, str]:
    """Join the rows that failed with those whose vector is NaN, infinite or zero."""
    return {row: _NO_DIRECTION for row in bad_vectors(vectors).tolist()} | dict(failures)


class VectorsFuture(Future[T]):
    """A future that is completed or cancelled once, by the first thread to do so."""

    def __init__(self) -> None:
        super().__init__()
        self._unclaimed = threading.Lock()
        self._given_up: Callable[[], None] | None = None

    def when_given_up(self, call: Callable[[], None]) -> None:
        """Have `call` called once, should it be cancelled; before anybody can do that."""
        self._given_up = call

    def claim(self) -> bool:
        """Take the right to complete it; False where that is taken, or it was cancelled."""
        if not self._unclaimed.acquire(blocking=False):
            return False
        claimed = self.set_running_or_notify_cancel()
        # What it knows leads to the request: a cycle around the vectors, were it kept.
        given_up, self._given_up = self._given_up, None
        if given_up is not None and not claimed:
            given_up()
        return claimed

    def cancel(self) -> bool:
        """Cancel it, and tell so to those in `concurrent.futures.wait` and `as_completed`."""
        cancelled = super().cancel()
        if cancelled:
            self.claim()
        return cancelled


class Request:
    """Rows that become vectors together."""

    __slots__ = ("_dim", "_result", "_rows_left", "byte_lengths", "form", "future", "rows")

    def __init__(self, rows: RowSource, dim: int, form: Form = Form.PASSAGE) -> None:
        self.rows = rows
        self.form = form
        self.future: VectorsFuture[Embedded] = VectorsFuture()
        self.byte_lengths = rows.lengths
        self._dim = dim
        self._rows_left = len(rows.lengths)
        self._result: Embedded | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the result is no longer awaited."""
        return self.future.done()

    def estimate(self, costs: plan.Costs) -> float:
        """Estimate the tokens of all rows."""
        if len(self.byte_lengths) == 1:
            return plan.estimate_one(self.rows.longest, costs)
        return float(plan.estimate_tokens(self.byte_lengths, costs).sum())

    def cut(
        self,
        costs: plan.Costs,
        limits: plan.SlotLimits,
        *,
        workers: int,
        urgent: bool,
        small: bool = False,
    ) -> list[WorkShard]:
        """Plan the request's shards, a window at a time, for the slots of one kind."""
        if len(self.byte_lengths) == 1:
            # A lone caller waits for this: planning one row would take longer than all the rest.
            cost = plan.estimate_one(self.rows.longest, costs)
            return [WorkShard(self, _FIRST_ROW, cost, urgent, small)]
        estimates = plan.estimate_tokens(self.byte_lengths, costs)
        shards, start = [], 0
        for end in plan.cut_windows(self.byte_lengths, costs, workers=workers):
            lengths = self.byte_lengths[start:end]
            for rows in plan.cut_shards(lengths, costs, limits, workers=workers):
                rows += start
                cost = float(estimates[rows].sum())
                shards.append(WorkShard(self, rows, cost, urgent, small))
            start = end
        return shards

    def collect(self, rows: plan.Int64s, got: Result, first: int) -> None:
        """Copy a result's rows, from `first` on, to their places; the one copy of a vector here."""
        here = slice(first, first + len(rows))
        # `got` has the slot's own vectors, which the worker overwrites once the slot is free.
        if len(self.byte_lengths) == 1 and not got.failed:
            # What many callers bring: one copy, for a view would keep the vectors of all the
            # callers that shared a run; and no index arithmetic.
            self._result = Embedded(got.vectors[here].copy(), got.tokens[here], got.cut[here], {})
            self._rows_left = 0
            return
        result = self._results()
        result.vectors[rows] = got.vectors[here]
        result.tokens[rows] = got.tokens[here]
        result.truncated[rows] = got.cut[here]
        if got.failed:
            for row in np.flatnonzero(got.status[here] == RowStatus.FAILED).tolist():
                reason = got.reasons.get(first + row, "the encoder gave no reason")
                self._fail_row(int(rows[row]), reason)
        self._rows_left -= len(rows)

    def fail_rows(self, rows: plan.Int64s, reason: str) -> None:
        """Mark rows that will not be tried again."""
        for row in rows.tolist():
            self._fail_row(row, reason)
        self._rows_left -= len(rows)

    def ended(self) -> bool:
        """Whether every row is there and the future is this caller's to complete, by `finish`."""
        return not self._rows_left and self.future.claim()

    def finish(self) -> None:
        """Complete the future, which was claimed."""
        self.future.set_result(self._results())

    def _fail_row(self, row: int, reason: str) -> None:
        result = self._results()
        result.vectors[row] = np.nan
        result.failures[row] = reason

    def _results(self) -> Embedded:
        # Made when the first rows are there: what waits in line takes no memory for vectors.
        if self._result is None:
            n = len(self.byte_lengths)
            vectors = np.empty((n, self._dim), np.float32)
            self._result = Embedded(vectors, np.zeros(n, np.int32), np.zeros(n, np.bool_), {})
        return self._result


class WorkShard:
    """Some rows of one request: what one slot takes."""

    gathered = 1
    __slots__ = (
        *("blames", "cost", "doubts", "form", "id", "indices"),
        *("request", "rows", "small", "urgent"),
    )

    def __init__(
        self,
        request: Request,
        rows: plan.Int64s,
        cost: float,
        urgent: bool,
        small: bool = False,
    ) -> None:
        self.id = next(_shard_ids)
        self.request = request
        self.indices = rows
        self.rows = len(rows)
        self.cost = cost
        self.form = request.form
        self.urgent = urgent
        self.small = small
        self.blames = 0
        self.doubts = 0

    @property
    def requests(self) -> list[Request]:
        return [self.request]

    @property
    def abandoned(self) -> bool:
        return self.request.abandoned

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all its rows."""
        if len(self.request.byte_lengths) == 1:
            return self.request.rows.longest
        return int(self.request.byte_lengths[self.indices].sum())

    def fill(self, slot: Slot) -> None:
        """Write the rows into a slot."""
        self.request.rows.fill(slot, self.indices)

    def collect(self, got: Result, first: int = 0) -> None:
        """Take the vectors of this shard's rows, which begin at row `first` of the result."""
        if not self.abandoned:
            self.request.collect(self.indices, got, first)

    def fail(self, reason: str) -> None:
        """Mark the shard's rows as failed."""
        if not self.abandoned:
            self.request.fail_rows(self.indices, reason)

    def split(self) -> list[WorkShard]:
        """Halve a shard that ended its workers, to find the text that does it."""
        middle = self.rows // 2
        parts = (self.indices[:middle], self.indices[middle:])
        return [
            WorkShard(self.request, rows, self.cost / 2, self.urgent, self.small) for rows in parts
        ]


class GatheredShard:
    """Small shards of several requests that share one slot, and so one session run."""

    def __init__(self, parts: list[WorkShard]) -> None:
        self.id = next(_shard_ids)
        self.parts = parts
        self.gathered = len(parts)
        self.rows = sum(part.rows for part in parts)
        self.cost = sum(part.cost for part in parts)
        self.form = parts[0].form
        self.urgent = parts[0].urgent
        self.small = parts[0].small
        self.blames = 0
        self.doubts = 0

    @property
    def requests(self) -> list[Request]:
        return [part.request for part in self.parts]

    @property
    def abandoned(self) -> bool:
        return all(part.abandoned for part in self.parts)

    def fill(self, slot: Slot) -> None:
        """Write the rows of all parts, one after the other."""
        picked = (part.request.rows.pick(part.indices) for part in self.parts)
        fill_slot(slot, list(chain.from_iterable(picked)))

    def collect(self, got: Result, first: int = 0) -> None:
        """Hand each part its rows."""
        for part in self.parts:
            part.collect(got, first)
            first += part.rows

    def fail(self, reason: str) -> None:
        """Mark all rows as failed."""
        for part in self.parts:
            part.fail(reason)

    def split(self) -> list[WorkShard]:
        """Part again: what ended a worker is one request's affair."""
        return [part for part in self.parts if not part.abandoned]


def gather(
    queue: deque[WorkShard], limits: plan.SlotLimits, tokens: float
) -> tuple[AnyShard, list[WorkShard]]:
    """Give the queue's first shard, with small ones that go well with it, and what is left.

    Those are, of the next few hundred, the ones whose texts are nearest in length:
    padded to the longest they waste least, and no caller waits longer than the first
    does. Together they stay within the slot, and within `tokens` of estimated work.
    What is left of those looked at is in the queue's order, which stays as it is.
    """
    first = queue[0]
    if first.cost >= tokens:
        return first, []
    seen = list(islice(queue, LOOK_AHEAD))
    fit = [shard for shard in seen if shard.form is first.form and shard.cost < tokens]
    like = first.cost / first.rows
    fit.sort(key=lambda shard: abs(shard.cost / shard.rows - like))
    parts: list[WorkShard] = []
    rows, text_bytes, cost = 0, 0, 0.0
    for shard in fit:
        # The first goes even if it was cancelled a moment ago, for a shard must have some part.
        if shard.abandoned and shard is not first:
            continue
        rows, cost = rows + shard.rows, cost + shard.cost
        text_bytes += shard.text_bytes
        if parts and (rows > limits.rows or text_bytes > limits.text_bytes or cost > tokens):
            break
        parts.append(shard)
    taken = set(parts)
    left = [shard for shard in seen if shard not in taken]
    return (parts[0] if len(parts) == 1 else GatheredShard(parts)), left

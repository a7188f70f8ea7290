"""A caller's texts on their way out as shards, and their vectors back in input order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker.errors import PoolError, TextFailed, UsageError
from memworker.pool import plan
from memworker.pool.arena import Form, RowStatus, Slot

Floats: TypeAlias = npt.NDArray[np.float32]

AnyShard: TypeAlias = "WorkShard | GatheredShard"

_shard_ids = itertools.count(1)


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

    def raise_first(self) -> None:
        """Raise TextFailed for the first row that failed, if one did."""
        if self.failures:
            row = min(self.failures)
            raise TextFailed(f"texts[{row}] could not be embedded: {self.failures[row]}", row)


class Request:
    """Rows (Arrow large_string or large_binary[n], no nulls) that become vectors together."""

    def __init__(self, texts: pa.Array, dim: int, form: Form = Form.PASSAGE) -> None:
        self.texts = texts
        self.form = form
        self.future: Future[Embedded] = Future()
        self.byte_lengths = _byte_lengths(texts)
        rows = len(texts)
        self._vectors = np.empty((rows, dim), np.float32)
        self._tokens = np.zeros(rows, np.int32)
        self._truncated = np.zeros(rows, np.bool_)
        self._failures: dict[int, str] = {}
        self._rows_left = rows

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.future.done()

    def cut(self, costs: plan.Costs, limits: plan.SlotLimits, *, workers: int) -> list[WorkShard]:
        """Plan the request's shards, a window at a time."""
        estimates = plan.estimate_tokens(self.byte_lengths, costs)
        if len(estimates) == 1:
            # A lone caller waits for this: planning one row would take longer than all the rest.
            return [WorkShard(self, np.zeros(1, np.int64), float(estimates[0]))]
        shards, start = [], 0
        for end in plan.cut_windows(self.byte_lengths, costs, workers=workers):
            lengths = self.byte_lengths[start:end]
            for rows in plan.cut_shards(lengths, costs, limits, workers=workers):
                rows += start
                shards.append(WorkShard(self, rows, float(estimates[rows].sum())))
            start = end
        return shards

    def collect(self, rows: plan.Int64s, slot: Slot, reasons: dict[int, str], first: int) -> None:
        """Copy a slot's rows, from `first` on, to their places; the one copy of a vector here."""
        here = slice(first, first + len(rows))
        status = slot.status[here]
        self._vectors[rows] = slot.vectors[here]
        self._tokens[rows] = slot.tokens[here]
        self._truncated[rows] = status == RowStatus.TRUNCATED
        for row in np.flatnonzero(status == RowStatus.FAILED).tolist():
            reason = reasons.get(first + row, "the encoder gave no reason")
            self._fail_row(int(rows[row]), reason)
        self._settle(len(rows))

    def fail_rows(self, rows: plan.Int64s, reason: str) -> None:
        """Mark rows that will not be tried again."""
        for row in rows.tolist():
            self._fail_row(row, reason)
        self._settle(len(rows))

    def fail(self, error: PoolError) -> None:
        """Give the whole request up."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _fail_row(self, row: int, reason: str) -> None:
        self._vectors[row] = np.nan
        self._failures[row] = reason

    def _settle(self, rows: int) -> None:
        self._rows_left -= rows
        if self._rows_left or self.future.done():
            return
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(
                Embedded(self._vectors, self._tokens, self._truncated, self._failures)
            )

    def settle_if_empty(self) -> None:
        """Finish a request of no rows at once."""
        self._settle(0)


class WorkShard:
    """Some rows of one request: what one slot takes."""

    def __init__(self, request: Request, rows: plan.Int64s, cost: float) -> None:
        self.id = next(_shard_ids)
        self.request = request
        self.indices = rows
        self.cost = cost
        self.form = request.form
        self.urgent = request.form is Form.QUERY
        self.blames = 0

    @property
    def rows(self) -> int:
        return len(self.indices)

    @property
    def abandoned(self) -> bool:
        return self.request.abandoned

    @property
    def text_bytes(self) -> int:
        return int(self.request.byte_lengths[self.indices].sum())

    def texts(self) -> pa.Array:
        """Give the shard's texts in its own order."""
        return self.request.texts.take(pa.array(self.indices))

    def fill(self, slot: Slot) -> None:
        """Write the texts into a slot, in Arrow's string layout."""
        _fill(slot, self.texts())

    def collect(self, slot: Slot, reasons: dict[int, str], first: int = 0) -> None:
        """Take the vectors of this shard's rows, which begin at row `first` of the slot."""
        if not self.abandoned:
            self.request.collect(self.indices, slot, reasons, first)

    def fail(self, reason: str) -> None:
        """Mark the shard's rows as failed."""
        if not self.abandoned:
            self.request.fail_rows(self.indices, reason)

    def split(self) -> list[WorkShard]:
        """Halve a shard that ended its workers, to find the text that does it."""
        middle = self.rows // 2
        parts = (self.indices[:middle], self.indices[middle:])
        halves = [WorkShard(self.request, rows, self.cost / 2) for rows in parts]
        for half in halves:
            # Which kind of slot holds it was decided by the whole request.
            half.urgent = self.urgent
        return halves


class GatheredShard:
    """Small shards of several requests that share one slot, and so one session run."""

    def __init__(self, parts: list[WorkShard]) -> None:
        self.id = next(_shard_ids)
        self.parts = parts
        self.rows = sum(part.rows for part in parts)
        self.cost = sum(part.cost for part in parts)
        self.form = parts[0].form
        self.urgent = parts[0].urgent
        self.blames = 0

    @property
    def abandoned(self) -> bool:
        return all(part.abandoned for part in self.parts)

    def fill(self, slot: Slot) -> None:
        """Write the texts of all parts, one after the other."""
        _fill(slot, pa.concat_arrays([part.texts() for part in self.parts]))

    def collect(self, slot: Slot, reasons: dict[int, str], first: int = 0) -> None:
        """Hand each part its rows."""
        for part in self.parts:
            part.collect(slot, reasons, first)
            first += part.rows

    def fail(self, reason: str) -> None:
        """Mark all rows as failed."""
        for part in self.parts:
            part.fail(reason)

    def split(self) -> list[WorkShard]:
        """Part again: what ended a worker is one request's affair."""
        return [part for part in self.parts if not part.abandoned]


def gather(queue: deque[WorkShard], limits: plan.SlotLimits, tokens: float) -> AnyShard:
    """Give the queue's first shard, with small ones behind it that fit into its slot.

    Together they stay within the slot, and within `tokens` of estimated work; no
    shard is waited for, and the queue is left as it is.
    """
    first = queue[0]
    if first.cost >= tokens:
        return first
    parts: list[WorkShard] = []
    rows, text_bytes, cost = 0, 0, 0.0
    for shard in queue:
        rows, cost = rows + shard.rows, cost + shard.cost
        text_bytes += shard.text_bytes
        fits = rows <= limits.rows and text_bytes <= limits.text_bytes and cost <= tokens
        if parts and (not fits or shard.form is not first.form):
            break
        parts.append(shard)
    return parts[0] if len(parts) == 1 else GatheredShard(parts)


def _fill(slot: Slot, texts: pa.Array) -> None:
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    slot.fill((ends - ends[0]).astype(np.int32), text[ends[0] : ends[-1]])


def arrow_texts(texts: Sequence[str] | pa.Array) -> pa.Array:
    """Bring texts into Arrow large_string, without nulls.

    Raises TypeError for what is not `str`, TextFailed for a lone surrogate; both
    name the position.
    """
    if isinstance(texts, (pa.Array, pa.ChunkedArray)):
        return _from_arrow(texts)
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts must be a list of str; for one text pass [text]")
    listed = texts if isinstance(texts, list) else list(texts)
    if not set(map(type, listed)) <= {str}:
        _refuse_other_types(listed)
    try:
        return pa.array(listed, pa.large_string())
    except UnicodeEncodeError:
        raise _surrogate_error(listed) from None


def arrow_tokens(rows: Sequence[Sequence[int]]) -> pa.Array:
    """Bring token ids into Arrow large_binary, int32 an id.

    Raises UsageError for what is no list of whole numbers from 0 up to 2^31.
    """
    packed = []
    for position, ids in enumerate(rows):
        try:
            row = np.asarray(ids if len(ids) else np.zeros(0, np.int64))
            fits = row.ndim == 1 and row.dtype.kind in "iu"
            fits = fits and row.min(initial=0) >= 0 and row.max(initial=0) < 1 << 31
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise UsageError(
                f"rows[{position}] must be a list of token ids, whole numbers from 0, not"
                f" {ids!r:.80}"
            )
        packed.append(row.astype(np.int32).tobytes())
    return pa.array(packed, pa.large_binary())


def _from_arrow(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise TypeError(f"texts must be an Arrow string array, not {texts.type}")
    if texts.null_count:
        raise TypeError(f"texts must not hold nulls; {texts.null_count} found")
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.cast(pa.large_string()).combine_chunks()
    return texts.cast(pa.large_string())


def _refuse_other_types(texts: list[object]) -> None:
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] is {type(text).__name__}, not str: {text!r:.80}")


def _surrogate_error(texts: list[str]) -> TextFailed:
    for position, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return TextFailed(
                f"texts[{position}] is not valid Unicode (a lone surrogate at character"
                f" {error.start}). Clean it, for example with"
                " text.encode('utf-8', 'replace').decode().",
                position,
            )
    raise AssertionError("some text could not be encoded, and then all could")


def _byte_lengths(texts: pa.Array) -> plan.Int64s:
    if len(texts) == 0:
        return np.zeros(0, np.int64)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return np.diff(offsets[texts.offset : texts.offset + len(texts) + 1])

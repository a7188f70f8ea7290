"""Pure planning: byte lengths to shards, token counts to micro-batches.

Nothing here looks at a clock or a process: the cuts are a function of the
input, so that a retry or a second run meets the same shards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

SHARDS_PER_WINDOW = 16
_WINDOW_ROWS = 8192
# 1, 2, 3, 4, 6, 8, 12 and so on.
_ROW_NUMBERS = (1, *(share << power for power in range(9) for share in (2, 3)))


@dataclass(frozen=True, slots=True)
class Costs:
    """What a text costs under one model; constants, so that cuts never depend on timing.

    `row_tokens` is what a text costs beyond its own bytes (special tokens,
    Python's work for a row), in tokens. `shard_tokens` is the work that one
    bulk slot takes; `batch_tokens` bounds the padded tokens of one session run,
    which costs `run_tokens` beyond them. Where `lengths` names some, runs are padded to one of
    those, and their rows to few numbers: for engines that compile each new shape.
    """

    max_tokens: int
    shard_tokens: int = 4096
    batch_tokens: int = 512
    run_tokens: float = 10.0
    bytes_per_token: float = 4.3
    row_tokens: float = 2.0
    lengths: tuple[int, ...] = ()

    def length(self, longest: int) -> int:
        """Give how many tokens a row of a session run has whose longest text has `longest`."""
        at = bisect_left(self.lengths, longest)
        return self.lengths[at] if at < len(self.lengths) else longest

    def rows(self, texts: int, length: int) -> int:
        """Give how many rows of `length` a session run of so many texts has."""
        if not self.lengths:
            return texts
        # A few numbers, and as many as there is room for.
        few = next((number for number in _ROW_NUMBERS if number >= texts), texts)
        return max(min(few, self.batch_tokens // length), texts)


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """What one slot can take: rows and UTF-8 bytes."""

    rows: int
    text_bytes: int


def estimate_tokens(byte_lengths: Int64s, costs: Costs) -> npt.NDArray[np.float64]:
    """Estimate tokens a text from its UTF-8 length; float64[n]."""
    tokens = byte_lengths / costs.bytes_per_token + costs.row_tokens
    return np.minimum(tokens, costs.max_tokens)


def estimate_one(byte_length: int, costs: Costs) -> float:
    """Estimate the tokens of one text, as `estimate_tokens` does."""
    return min(byte_length / costs.bytes_per_token + costs.row_tokens, costs.max_tokens)


def cut_shards(
    byte_lengths: Int64s, costs: Costs, limits: SlotLimits, *, workers: int
) -> list[Int64s]:
    """Cut a window into shards of row indices, long texts first.

    Shards shrink towards the window's end (guided self-scheduling, Polychronopoulos
    and Kuck 1987), so that the workers finish together, and there are at least as
    many as workers when there are rows enough.
    """
    order = np.argsort(-byte_lengths, kind="stable")
    lengths = byte_lengths[order]
    tokens_before = np.concatenate(([0.0], np.cumsum(estimate_tokens(lengths, costs))))
    bytes_before = np.concatenate(([0], np.cumsum(lengths)))
    shards: list[Int64s] = []
    start, total = 0, len(order)
    while start < total:
        left = tokens_before[-1] - tokens_before[start]
        guided = max(left / (2 * workers), min(costs.batch_tokens, left / workers))
        wanted = tokens_before[start] + min(costs.shard_tokens, guided)
        end = int(np.searchsorted(tokens_before, wanted, side="left"))
        end = min(end, start + limits.rows, total)
        fits = int(np.searchsorted(bytes_before, bytes_before[start] + limits.text_bytes, "right"))
        end = max(min(end, fits - 1), start + 1)
        shards.append(order[start:end])
        start = end
    return shards


def cut_windows(byte_lengths: Int64s, costs: Costs, *, workers: int) -> list[int]:
    """Cut rows, in order, into windows of about `SHARDS_PER_WINDOW` shards a worker.

    Returns the windows' ends; the last is n. Within a window texts are sorted by
    length: a longer one pads less, a shorter one is finished, and committed, sooner.
    It has `_WINDOW_ROWS` at most, for sorted rows are gathered at random from all the
    memory that they span.
    """
    total = len(byte_lengths)
    done = np.cumsum(estimate_tokens(byte_lengths, costs))
    budget = float(costs.shard_tokens) * workers * SHARDS_PER_WINDOW
    ends, start, before = [], 0, 0.0
    while start < total:
        end = max(int(np.searchsorted(done, before + budget, side="right")), start + 1)
        end = min(end, start + _WINDOW_ROWS)
        ends.append(end)
        start, before = end, float(done[end - 1])
    return ends


def cut_micro_batches(token_counts: Int64s, costs: Costs) -> Iterator[Int64s]:
    """Yield index arrays, longest texts first, that together cost least.

    A run of r texts costs ``costs.run_tokens + r * longest`` and at most
    `batch_tokens` of those are padded tokens; among all cuts of the sorted texts the
    cheapest is found by dynamic programming. A single text over the budget is a
    micro-batch of its own.
    """
    if len(token_counts) == 1:
        yield np.zeros(1, np.int64)
        return
    order = np.argsort(-token_counts, kind="stable")
    lengths = np.maximum(token_counts[order], 1).tolist()
    start = 0
    for end in _cheapest_ends(lengths, costs):
        yield order[start:end]
        start = end


def _cheapest_ends(lengths: list[int], costs: Costs) -> list[int]:
    """Give where the micro-batches of texts sorted by falling length end."""
    # Cuts are looked for at about 128 places, which bounds the work for many short texts.
    step = 1 + len(lengths) // 128
    places = [*range(0, len(lengths), step), len(lengths)]
    padded_to = [costs.length(lengths[place]) for place in places[:-1]]
    best, came_from = [0.0], [0]
    for at in range(1, len(places)):
        cheapest, source = float("inf"), at - 1
        for begin in range(at - 1, -1, -1):
            rows, length = places[at] - places[begin], padded_to[begin]
            padded = (costs.rows(rows, length) if costs.lengths else rows) * length
            if padded > costs.batch_tokens and begin < at - 1:
                break
            total = best[begin] + costs.run_tokens + padded
            if total < cheapest:
                cheapest, source = total, begin
        best.append(cheapest)
        came_from.append(source)
    ends, at = [], len(places) - 1
    while at > 0:
        ends.append(places[at])
        at = came_from[at]
    return ends[::-1]

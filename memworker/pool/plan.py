"""Pure planning: byte lengths to shards, token counts to micro-batches.

Nothing here looks at a clock or a process: the cuts are a function of the
input, so that a retry or a second run meets the same shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

_SHARDS_PER_WINDOW = 16


@dataclass(frozen=True, slots=True)
class Costs:
    """What a text costs under one model; constants, so that cuts never depend on timing.

    `row_tokens` is what a text costs beyond its own bytes (special tokens,
    Python's work for a row), in tokens. `shard_tokens` is the work that one
    bulk slot takes; `batch_tokens` the padded tokens of one session run.
    """

    max_tokens: int
    shard_tokens: int = 2048
    batch_tokens: int = 512
    bytes_per_token: float = 4.3
    row_tokens: float = 2.0


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """What one slot can take: rows and UTF-8 bytes."""

    rows: int
    text_bytes: int


def estimate_tokens(byte_lengths: Int64s, costs: Costs) -> npt.NDArray[np.float64]:
    """Estimate tokens a text from its UTF-8 length; float64[n]."""
    tokens = byte_lengths / costs.bytes_per_token + costs.row_tokens
    return np.minimum(tokens, costs.max_tokens)


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
    """Cut rows, in order, into windows of about `_SHARDS_PER_WINDOW` shards a worker.

    Returns the windows' ends; the last is n. Within a window texts are sorted by
    length: a longer one pads less, a shorter one is finished, and committed, sooner.
    """
    total = len(byte_lengths)
    done = np.cumsum(estimate_tokens(byte_lengths, costs))
    budget = float(costs.shard_tokens) * workers * _SHARDS_PER_WINDOW
    ends, start, before = [], 0, 0.0
    while start < total:
        end = max(int(np.searchsorted(done, before + budget, side="right")), start + 1)
        ends.append(end)
        start, before = end, float(done[end - 1])
    return ends


def cut_micro_batches(token_counts: Int64s, batch_tokens: int) -> Iterator[Int64s]:
    """Yield index arrays, longest texts first, of at most `batch_tokens` padded tokens each.

    Padded tokens are rows times the longest row. A single text over the
    budget is a micro-batch of its own.
    """
    order = np.argsort(-token_counts, kind="stable")
    start = 0
    while start < len(order):
        longest = max(int(token_counts[order[start]]), 1)
        end = start + max(batch_tokens // longest, 1)
        yield order[start:end]
        start = end

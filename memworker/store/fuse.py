"""Hybrid search: one ranking of two, by rank alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memworker.store.search import MAX_LIMIT, Hit, checked_limit

# Reciprocal rank fusion; k as in Cormack, Clarke and Buettcher, SIGIR 2009.
K = 60
# Measured on LoCoMo by recall@10 (MiniLM int8; its vectors alone 0.43, words alone 0.62): hybrid
# has 0.634 with 10 to 15 ranks of each, 0.61 with 20, 0.53 with 50, for what is fiftieth to both
# then goes before what one of them is sure of.
_RANKS_PER_HIT = 1.5
_MIN_RANKS = 10


def depth(limit: int) -> int:
    """Return how many hits each ranking should have. Raises UsageError for a bad limit."""
    ranks = math.ceil(_RANKS_PER_HIT * checked_limit(limit))
    return min(MAX_LIMIT, max(_MIN_RANKS, ranks))


def fuse(
    rankings: Sequence[Sequence[Hit]],
    limit: int,
    key: Callable[[Hit], str] = lambda hit: hit.id,
) -> list[Hit]:
    """Return the best of several rankings; a hit's score is the sum of ``1 / (60 + rank)``.

    Hits of one `key` are one. Of equal scores the one found by the earlier ranking comes first.
    """
    hits: dict[str, Hit] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            hits.setdefault(key(hit), hit)
            scores[key(hit)] = scores.get(key(hit), 0.0) + 1 / (K + rank)
    return [replace(hits[row_id], score=scores[row_id]) for row_id in _best(scores)[:limit]]


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda row_id: -scores[row_id])

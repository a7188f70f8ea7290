"""Hybrid search: one ranking of two, by rank alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memworker.errors import UsageError
from memworker.store.search import Hit

# Reciprocal rank fusion; k as in Cormack, Clarke and Buettcher, SIGIR 2009.
K = 60
# Ranks beyond count too: a row that is twentieth for both is better than one that is
# tenth for one of them.
DEPTH = 50


def depth(limit: int) -> int:
    """Return how many hits each ranking should have. Raises UsageError for a limit below 1."""
    if limit < 1:
        raise UsageError(f"a search needs a limit of at least 1, got {limit}")
    return max(DEPTH, 2 * limit)


def fuse(rankings: Sequence[Sequence[Hit]], limit: int) -> list[Hit]:
    """Return the best of several rankings; a hit's score is the sum of ``1 / (60 + rank)``.

    Of equal scores the one found by the earlier ranking comes first.
    """
    hits: dict[str, Hit] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            hits.setdefault(hit.id, hit)
            scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (K + rank)
    return [replace(hits[row_id], score=scores[row_id]) for row_id in _best(scores)[:limit]]


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda row_id: -scores[row_id])

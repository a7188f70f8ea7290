"""Hybrid search: one ranking of two, by how sure each of them is.

Relative scores: each ranking's scores run from 1, its first hit's, to 0, the next that it did not
give; a row has the weighted sum. Ranks alone (reciprocal rank fusion) forget how sure a ranking
was: on LoCoMo the first hit was evidence for 0.23 of the questions, where words alone had 0.35.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from memworker.store.search import MAX_LIMIT, Hit, checked_limit

# What the vectors' ranking counts for, the words' having the rest: fixed on LoCoMo's first five
# conversations (MiniLM int8), where 0.25 is the most at which no single ranking has a better first
# hit; the other five: recall@10 0.634 and first hit 0.338, words alone 0.615 and 0.335.
VECTOR_WEIGHT = 0.25
# 20, 30 and 50 hits of each were alike there, 100 a little worse.
_DEPTH = 50


def depth(limit: int) -> int:
    """Return how many hits each ranking should have. Raises UsageError for a bad limit."""
    return min(MAX_LIMIT, max(_DEPTH, checked_limit(limit)))


def fuse(
    near: Sequence[Hit],
    worded: Sequence[Hit],
    limit: int,
    key: Callable[[Hit], str] = lambda hit: hit.id,
) -> list[Hit]:
    """Return the best of the rankings by vector and by words; scores are from 0 to 1.

    Hits of one `key` are one. Of equal scores the one found by vector comes first.
    """
    hits: dict[str, Hit] = {}
    scores: dict[str, float] = {}
    # Fewer than were asked for: no other row has any of the words, and BM25 gives such rows 0.
    floor = 0.0 if len(worded) < depth(limit) else None
    for ranking, weight, least in (
        (near, VECTOR_WEIGHT, None),
        (worded, 1 - VECTOR_WEIGHT, floor),
    ):
        for hit, share in zip(ranking, _relative(ranking, least), strict=True):
            hits.setdefault(key(hit), hit)
            scores[key(hit)] = scores.get(key(hit), 0.0) + weight * share
    return [replace(hits[row_id], score=scores[row_id]) for row_id in _best(scores)[:limit]]


def _relative(ranking: Sequence[Hit], least: float | None) -> list[float]:
    """Scale scores so that the first is 1 and `least`, or else the last, 0; all 1 where equal."""
    if not ranking:
        return []
    most = ranking[0].score
    least = ranking[-1].score if least is None else least
    if most <= least:
        return [1.0] * len(ranking)
    return [(hit.score - least) / (most - least) for hit in ranking]


def _best(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda row_id: -scores[row_id])

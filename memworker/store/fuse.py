"""Hybrid search: one ranking of two, by how sure each of them is and what the texts show.

Relative scores: each ranking's scores run from 1, its first hit's, to 0, the next that it did not
give; a row has the weighted sum, and the share of the question's words that it has; what the texts
themselves show scales that (see clues.py); rows that stand beside each other in time share their
scores where that is asked for (see neighbours.py). Ranks alone (reciprocal rank fusion) forget how
sure a ranking was.

Weights are fixed on LoCoMo's first five conversations (MiniLM int8). Recall@10 and the share of
first hits that are evidence, on the five held back: words alone 0.613 and 0.336, the two rankings
alone 0.634 and 0.338, with coverage and clues 0.680 and 0.427 (docs/MEMORY.md has all). Tried and
left out, for they added nothing: who speaks, pairs of words, BM25 by the best that the question
could have, 100 hits of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from memworker.store.clues import Query
from memworker.store.neighbours import Order
from memworker.store.search import MAX_LIMIT, Hit, checked_limit

VECTOR, WORDS, COVERAGE = 0.4, 0.6, 1.0
# Read of every row that is fused.
NEEDED_COLUMNS = ("text", "created_at")
_DEPTH = 50
# What stands beside many hits is read too, but no more of it than this.
_MOST_BESIDE = 100


def depth(limit: int) -> int:
    """Return how many hits each ranking should have. Raises UsageError for a bad limit."""
    return min(MAX_LIMIT, max(_DEPTH, checked_limit(limit)))


def fuse(
    question: Query,
    near: Sequence[Hit],
    worded: Sequence[Hit],
    limit: int,
    *,
    key: Callable[[Hit], str] = lambda hit: hit.id,
    order: Order | None = None,
    read: Callable[[Sequence[str]], Iterable[Hit]] = lambda ids: (),
) -> list[Hit]:
    """Return the best of the rankings by vector and by words; scores are from 0 to 1.

    Hits of one `key` are one. Of equal scores the one found by vector comes first. With an `order`,
    rows beside hits may be among the best; `read` gives those that are in neither ranking.
    """
    hits: dict[str, Hit] = {}
    for hit in (*near, *worded):
        hits.setdefault(key(hit), hit)
    scores = _sure(near, worded, depth(limit), key)
    covered = question.coverage({name: hit.text for name, hit in hits.items()})
    for name, share in covered.items():
        scores[name] += COVERAGE * share
    most = (VECTOR + WORDS + COVERAGE) * question.most
    if order is not None:
        scores = order.shared(scores)
        most *= order.most
        beside = [name for name in _best(scores) if name not in hits][:_MOST_BESIDE]
        hits |= {hit.id: hit for hit in read(beside)}
    told = {
        name: scores[name] * question.factor(hit.text, hit.created_at) / most
        for name, hit in hits.items()
    }
    return [replace(hits[name], score=told[name]) for name in _best(told)[:limit]]


def _sure(
    near: Sequence[Hit], worded: Sequence[Hit], wanted: int, key: Callable[[Hit], str]
) -> dict[str, float]:
    """Return the weighted sum of what each row has of either ranking."""
    # Fewer than were asked for: no other row has any of the words, and BM25 gives such rows 0.
    floor = 0.0 if len(worded) < wanted else None
    scores: dict[str, float] = {}
    for ranking, weight, least in ((near, VECTOR, None), (worded, WORDS, floor)):
        for hit, share in zip(ranking, _relative(ranking, least), strict=True):
            scores[key(hit)] = scores.get(key(hit), 0.0) + weight * share
    return scores


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
    return sorted(scores, key=lambda name: -scores[name])

"""A soft preference for what is recent: scores that fade with age, never below a share of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from memworker.errors import UsageError
from memworker.store.search import Hit
from memworker.values import number, shown

# What the oldest memory loses of its score: enough to decide between near equals, no more.
MOST_LOST = 0.3


def checked_half_life(given: Any) -> float | None:
    """Return a half-life in seconds, of a timedelta or a number of days. Raises UsageError."""
    if given is None:
        return None
    seconds = (
        given.total_seconds()
        if isinstance(given, timedelta)
        else None
        if (days := number(given)) is None
        else float(days) * 86_400.0
    )
    if seconds is None or not 0 < seconds < float("inf"):
        raise UsageError(
            f"recency_half_life is a timedelta or a number of days over 0, not {shown(given)}"
        )
    return float(seconds)


def faded(hits: Sequence[Hit], half_life_s: float, now: datetime | None = None) -> list[Hit]:
    """Return hits in the order of their scores after age has taken its part.

    A score loses up to 0.3 of itself, half of that at the age of one half-life. What is younger
    than now, by a clock that goes otherwise, loses nothing.
    """
    moment = now or datetime.now(UTC)
    told = [replace(hit, score=_faded(hit, half_life_s, moment)) for hit in hits]
    return sorted(told, key=lambda hit: -hit.score)


def _faded(hit: Hit, half_life_s: float, now: datetime) -> float:
    age_s = 0.0 if hit.created_at is None else max(0.0, (now - hit.created_at).total_seconds())
    lost = MOST_LOST * (1 - 0.5 ** (age_s / half_life_s))
    # A cosine below zero falls too.
    return float(hit.score - abs(hit.score) * lost)

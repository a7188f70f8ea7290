"""What stands before and after a row: rows of exactly the same scope, in the order of their times.

Of talk the turn before a hit is often what it answers, and the turn after what answers it. So
`context` rows on either side share their scores with a row, half as much a step further, and are
returned with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from memworker.errors import UsageError
from memworker.store.schema import has_chunks
from memworker.store.search import Hit, text_hits
from memworker.store.snapshot import Snapshot
from memworker.values import shown, whole

# What the row just before gives of its score, and the row just after; fixed with the other
# weights of fuse.py.
BEFORE, AFTER = 0.5, 0.4
_FADES = 0.5
MOST_CONTEXT = 20
_SCOPE = ("user_id", "agent_id", "run_id")


def checked_context(context: Any) -> int:
    """Return how many rows on either side are wanted. Raises UsageError."""
    found = whole(context)
    if found is None or not 0 <= found <= MOST_CONTEXT:
        raise UsageError(
            f"context is a whole number from 0 to {MOST_CONTEXT}, the memories before and after"
            f" a hit, not {shown(context)}"
        )
    return found


@dataclass(frozen=True, slots=True)
class Order:
    """The ids of all rows that may be found, scope by scope, each in the order of time."""

    ids: Sequence[str]
    scopes: Sequence[tuple[str, ...]]
    places: Mapping[str, int]
    context: int

    @classmethod
    def read(cls, at: Snapshot, where: Mapping[str, Any] | None, context: int) -> Order:
        """Read the order of the rows that meet a filter: ids, scopes and times of all of them."""
        chunks = ("parent_id", "chunk") if has_chunks(at.table.schema) else ()
        found = at.rows(where, columns=("id", *_SCOPE, "created_at", *chunks))
        by = [(name, "ascending") for name in (*_SCOPE, "created_at", *chunks, "id")]
        rows = found.sort_by(by)
        ids = rows["id"].to_pylist()
        scopes = list(zip(*(rows[name].to_pylist() for name in _SCOPE), strict=True))
        return cls(ids, scopes, {row_id: place for place, row_id in enumerate(ids)}, context)

    @property
    def most(self) -> float:
        """How many times as large a score can become by what stands beside it."""
        steps = sum(_FADES**step for step in range(self.context))
        return 1 + (BEFORE + AFTER) * steps

    def shared(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the scores of rows, and of those beside them, with what they have of others."""
        found = dict(scores)
        for row_id, score in scores.items():
            for step in range(1, self.context + 1):
                faded = score * _FADES ** (step - 1)
                for places, weight in ((step, BEFORE), (-step, AFTER)):
                    other = self._beside(row_id, places)
                    if other is not None:
                        found[other] = found.get(other, 0.0) + weight * faded
        return found

    def around(self, row_id: str) -> tuple[list[str], list[str]]:
        """Return the ids before and after a row, each in the order of time."""
        steps = range(1, self.context + 1)
        before = [self._beside(row_id, -step) for step in reversed(steps)]
        after = [self._beside(row_id, step) for step in steps]
        return [one for one in before if one], [one for one in after if one]

    def _beside(self, row_id: str, places: int) -> str | None:
        place = self.places.get(row_id)
        other = -1 if place is None else place + places
        if place is None or not 0 <= other < len(self.ids):
            return None
        return self.ids[other] if self.scopes[other] == self.scopes[place] else None


def with_context(
    hits: Sequence[Hit], order: Order, read: Callable[[Sequence[str]], Iterable[Hit]]
) -> list[Hit]:
    """Return hits with the rows before and after each."""
    around = [order.around(hit.id) for hit in hits]
    wanted = dict.fromkeys(one for sides in around for side in sides for one in side)
    rows = {hit.id: hit for hit in read(list(wanted))}
    return [
        replace(hit, before=_of(rows, before), after=_of(rows, after))
        for hit, (before, after) in zip(hits, around, strict=True)
    ]


def hits_by_id(at: Snapshot, ids: Sequence[str], columns: Sequence[str]) -> list[Hit]:
    """Return rows as hits of the score 0."""
    if not ids:
        return []
    found = at.rows({"id": {"in": list(ids)}}, columns=columns)
    return text_hits(found.append_column("_score", pa.array([0.0] * len(found), pa.float64())))


def _of(rows: Mapping[str, Hit], ids: Iterable[str]) -> tuple[Hit, ...]:
    return tuple(rows[one] for one in ids if one in rows)

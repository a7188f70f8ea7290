"""Rows as the dictionaries that callers get, of the shape that Mem0's users know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from memworker.errors import MemoryNotFound, UsageError
from memworker.memory.rows import Row
from memworker.memory.scope import Scope
from memworker.store import Hit

if TYPE_CHECKING:
    from memworker.memory.drafts import Batch
    from memworker.memory.group import Event

Record = dict[str, Any]


def record(row: Row) -> Record:
    """Return a memory: id, memory, metadata, times as ISO 8601 in UTC, and what it has besides.

    The scope ids and expires_at are there when the memory has them, and so are
    the role and actor_id of a message, which are in its metadata too.
    """
    found = _record(row.id, row.text, row.metadata, row.created_at, row.updated_at)
    found |= row.scope.named()
    if row.expires_at is not None:
        found["expires_at"] = iso(row.expires_at)
    return found


def scored(hit: Hit) -> Record:
    """Return a memory that a search found, with its score; higher is better."""
    assert hit.created_at and hit.updated_at
    found = _record(hit.id, hit.text, hit.metadata, hit.created_at, hit.updated_at)
    found |= Scope(hit.user_id, hit.agent_id, hit.run_id).named()
    if hit.expires_at is not None:
        found["expires_at"] = iso(hit.expires_at)
    if hit.parent_id is not None:
        found |= {"parent_id": hit.parent_id, "chunk": hit.chunk}
        found |= {"char_start": hit.char_start, "char_end": hit.char_end}
    return found | {"score": hit.score}


def hit_record(hit: Hit, *, with_context: bool) -> Record:
    """Return a found memory; `with_context` with those `before` and `after` it."""
    if not with_context:
        return scored(hit)
    beside = {"before": hit.before, "after": hit.after}
    return scored(hit) | {side: [_unscored(one) for one in hits] for side, hits in beside.items()}


def _unscored(hit: Hit) -> Record:
    told = scored(hit)
    del told["score"]
    return told


def results(records: Sequence[Record], note: str = "") -> dict[str, Any]:
    """Wrap records as every list is returned, with what there is to say about it."""
    return {"results": list(records)} | ({"note": note} if note else {})


def added(batch: Batch, outcomes: Sequence[tuple[Event, Row]]) -> dict[str, list[Record]]:
    """Return what became of each item, in the order of the input."""
    told: dict[int, Record] = {
        place: {"error": str(flaw), "index": place} for place, flaw in batch.flaws.items()
    }
    for place, (event, row) in zip(batch.places, outcomes, strict=True):
        told[place] = record(row) | {"event": event}
        if place in batch.cut:
            told[place]["truncated"] = True
    return results([told[place] for place in sorted(told)])


def deleted(outcomes: Iterable[tuple[str, BaseException | None]]) -> dict[str, list[Record]]:
    """Return what became of each id, in their order. Raises what is no flaw of an id's own."""
    told: list[Record] = []
    for index, (memory_id, error) in enumerate(outcomes):
        if error is None:
            told.append({"id": memory_id, "event": "DELETE"})
        elif isinstance(error, MemoryNotFound | UsageError):
            told.append({"error": str(error), "index": index})
        else:
            raise error
    return results(told)


def said_by(metadata: Mapping[str, Any]) -> Record:
    """Return the role and actor_id of what was a message."""
    return {name: metadata[name] for name in ("role", "actor_id") if name in metadata}


def iso(moment: datetime) -> str:
    """Return a time as ISO 8601 text in UTC, always with microseconds, so that texts sort."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _record(
    memory_id: str, text: str, metadata: Mapping[str, Any], created: datetime, updated: datetime
) -> Record:
    return {
        "id": memory_id,
        "memory": text,
        "metadata": metadata,
        "created_at": iso(created),
        "updated_at": iso(updated),
        **said_by(metadata),
    }

"""What became of a memory: its older versions lie in the same table, superseded.

The version of memory ``ID`` that was replaced at some moment has the id
``ID@UUID7``, so that all versions of a memory are a range of ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import uuid_utils

from memworker.memory.rows import Row
from memworker.memory.shapes import Record, iso, said_by

_VERSION = re.compile(r"@[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def version_id(memory_id: str) -> str:
    """Return a new id for a version of a memory."""
    return f"{memory_id}@{uuid_utils.uuid7()}"


def versions_of(memory_id: str) -> Mapping[str, Any]:
    """Return the filter of a memory's row and those of its older versions."""
    # "A" follows "@", so this is every id that begins with "ID@".
    older = {"id": {"gte": f"{memory_id}@", "lt": f"{memory_id}A"}, "superseded_at": {"ne": None}}
    return {"OR": [{"id": memory_id}, older]}


def tell(memory_id: str, rows: Sequence[Row]) -> list[Record]:
    """Return a memory's events, oldest first, from its row and its older versions' rows."""
    texts = [row for row in rows if row.id == memory_id or _is_version(memory_id, row)]
    # The row itself comes last, deleted or not.
    texts.sort(key=lambda row: (row.id == memory_id, row.superseded_at or row.updated_at, row.id))
    events = []
    before: Row | None = None
    for row in texts:
        event: Literal["ADD", "UPDATE"] = "ADD" if before is None else "UPDATE"
        old = None if before is None else before.text
        events.append(_event(row, event, old, row.text, row.updated_at))
        before = row
    if before is not None and before.superseded_at is not None:
        events.append(_event(before, "DELETE", before.text, None, before.superseded_at))
    return [
        {"id": f"{memory_id}#{number}", "memory_id": memory_id, **event}
        for number, event in enumerate(events, 1)
    ]


def _is_version(memory_id: str, row: Row) -> bool:
    return row.id.startswith(memory_id) and bool(_VERSION.match(row.id[len(memory_id) :]))


def _event(row: Row, event: str, old: str | None, new: str | None, at: datetime) -> Record:
    return {
        "old_memory": old,
        "new_memory": new,
        "event": event,
        "created_at": iso(row.created_at),
        "updated_at": iso(at),
        "is_deleted": event == "DELETE",
        **said_by(row.metadata),
    }

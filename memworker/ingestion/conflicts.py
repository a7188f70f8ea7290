"""Why a row's id stands for another row already, told row by row; and which field made the ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from memworker.ingestion.fields import SCOPE_COLUMNS
from memworker.ingestion.records import scopes_of
from memworker.store import HeldRow, Table, difference

# How other programs call what this one calls `id`, without underscores and in lower case.
_ALIKE = {"id", "uuid", "guid", "key", "uid", "docid", "documentid", "messageid", "memoryid"}


def told_conflicts(table: Table, rows: pa.RecordBatch, which: Sequence[int]) -> dict[int, str]:
    """Return, for rows of a window whose ids stand for other rows, the reason by row number."""
    ids = rows["id"].to_pylist()
    theirs = table.held([ids[row] for row in which])
    before: dict[str, int] = {}
    for place, row_id in enumerate(ids):
        before.setdefault(row_id, place)
    reasons = {}
    for row in which:
        mine = _held(rows, row)
        # Where the table does not have it yet, an earlier row of this window does.
        other = theirs.get(ids[row]) or _held(rows, before[ids[row]])
        reasons[row] = _reason(ids[row], mine, other, from_text=ids[row] == mine.key)
    return reasons


def note_on_ids(rows: pa.RecordBatch) -> str:
    """Say that ids were made of texts where a field looks like the id of rows that have none."""
    missing = rows["id"].is_null().to_pylist()
    if True not in missing:
        return ""
    name = _like_an_id(rows["metadata"][missing.index(True)].as_py())
    return name and (
        f"rows without an id got one made of their text, though they have a field {name!r}; if that"
        f" is their id, name it: --id-field {name} (id_field={name!r})"
    )


def _like_an_id(metadata: str | None) -> str:
    names: list[str] = list(json.loads(metadata or "{}"))
    return next((name for name in names if name.replace("_", "").lower() in _ALIKE), "")


def _reason(row_id: str, mine: HeldRow, other: HeldRow, *, from_text: bool) -> str:
    told = difference(mine, other)
    if not from_text:
        return f"id {row_id!r} is already there {told}"
    name = _like_an_id(mine.metadata)
    return (
        f"it has no id, so its text made one, which is already there {told}. Name the field that"
        f" holds the id: --id-field {name or 'FIELD'} (id_field)"
    )


def _held(rows: pa.RecordBatch, row: int) -> HeldRow:
    scopes: dict[str, Any] = scopes_of(rows)
    scope = tuple(scopes[n][row].as_py() if n in scopes else "" for n in SCOPE_COLUMNS)
    return HeldRow(rows["key"][row].as_py(), scope, rows["metadata"][row].as_py())

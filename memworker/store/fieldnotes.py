"""Filters that ask for a metadata field that no row has: said, with the nearest names.

Such a filter finds nothing, and so it looks like an answer. Looking costs a scan of the rows in
the filter's scope, so a field that was there is not looked for again, and one that was not only
after a while.
"""

from __future__ import annotations

import difflib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memworker.store.filters import (
    CHUNK_NUMBERS,
    CHUNK_TEXTS,
    LOGIC,
    TEXT_COLUMNS,
    TIME_COLUMNS,
    to_sql,
)
from memworker.store.schema import SCOPES, has_chunks
from memworker.store.untyped import field_of

if TYPE_CHECKING:
    from lancedb.table import LanceTable

_AGAIN_S = 10.0
_REMEMBERED = 1000
_ROWS_LOOKED_AT = 1000
_NAMES_SHOWN = 10
_COLUMNS = TEXT_COLUMNS | TIME_COLUMNS

_log = logging.getLogger(__name__)


class FieldNotes:
    """What was found out about one table's fields. May be shared by threads."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._lock = threading.Lock()
        # By scope and field: until when it is believed, and what is said of it ("" of one there).
        self._known: dict[tuple[str, str], tuple[float, str]] = {}
        self._logged: set[str] = set()

    def concern(self, where: Mapping[str, Any] | None) -> bool:
        """Tell whether a filter asks for any metadata field."""
        return bool(where) and next(_fields(where or {}), None) is not None

    def note(self, at: LanceTable, where: Mapping[str, Any] | None) -> str:
        """Say which fields of a filter no row of its scope has; "" where all are there."""
        names = dict.fromkeys(_fields(where)) if where else {}
        if has_chunks(at.schema):
            names = {name: None for name in names if name not in CHUNK_TEXTS | CHUNK_NUMBERS}
        scope = _scope(where) if names and where else {}
        return ". ".join(filter(None, (self._of(at, scope, name) for name in names)))

    def warn(self, at: LanceTable, where: Mapping[str, Any] | None) -> None:
        """Log, once, what `note` says."""
        note = self.note(at, where)
        if note and note not in self._logged and len(self._logged) < _REMEMBERED:
            self._logged.add(note)
            _log.warning("a filter on table %r found nothing: %s", self._table, note)

    def _of(self, at: LanceTable, scope: dict[str, Any], name: str) -> str:
        key = (to_sql(scope), name)
        until, said = self._known.get(key, (0.0, ""))
        if time.monotonic() < until:
            return said
        said = _look(at, scope, name)
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = (time.monotonic() + _AGAIN_S if said else float("inf"), said)
        return said


def _look(at: LanceTable, scope: dict[str, Any], name: str) -> str:
    rows = at.search().where(f"{to_sql(scope)} AND {field_of(name)} IS NOT NULL")
    if there := rows.select(["metadata"]).limit(1).to_arrow()["metadata"].to_pylist():
        return _of_object(name.removeprefix("metadata."), json.loads(there[0]))
    some = at.search().where(to_sql(scope)).select(["metadata"]).limit(_ROWS_LOOKED_AT)
    metadata = [json.loads(text or "{}") for text in some.to_arrow()["metadata"].to_pylist()]
    return _told(name.removeprefix("metadata."), metadata, scope) if metadata else ""


def _of_object(name: str, metadata: dict[str, Any]) -> str:
    """Say that a field holds an object, which equals nothing; "" where it does not."""
    held = metadata.get(name)
    if not isinstance(held, dict) or not held:
        return ""
    return f"{name!r} holds an object; ask for what is inside, such as '{name}.{next(iter(held))}'"


def _told(name: str, metadata: list[dict[str, Any]], scope: dict[str, Any]) -> str:
    whose = f"in {' and '.join(scope)} " if scope else ""
    there = dict.fromkeys(field for each in metadata for field in each)
    around = next((f for each in metadata for f, v in each.items() if _holds(v, name)), "")
    said = f"no row {whose}has the metadata field {name!r}"
    if around:
        return f"{said}; it stands inside {around!r}: ask for '{around}.{name.rpartition('.')[2]}'"
    by_lower = {field.lower(): field for field in [*there, *sorted(_COLUMNS)]}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.6)
    if near:
        return f"{said}; near it there are: {', '.join(by_lower[each] for each in near)}"
    shown = list(there)[:_NAMES_SHOWN]
    more = ", …" if len(there) > len(shown) else ""
    return f"{said}; there are: {', '.join(shown)}{more}" if shown else f"{said}, nor any other"


def _holds(value: Any, name: str) -> bool:
    return isinstance(value, dict) and name.rpartition(".")[2] in value


def _fields(where: Mapping[str, Any]) -> Iterator[str]:
    for key, value in where.items():
        if key in LOGIC:
            for part in [value] if isinstance(value, Mapping) else value:
                yield from _fields(part)
        elif key not in _COLUMNS:
            yield key


def _scope(where: Mapping[str, Any]) -> dict[str, Any]:
    """Give the conditions on scopes that every row found must meet."""
    found = {name: where[name] for name in SCOPES if name in where}
    for part in where.get("AND", ()):
        found = _scope(part) | found
    return found

"""Typed filters to LanceDB SQL: the one place where a user's value becomes part of a statement.

A filter is a mapping. A key is a column or a metadata field (``n`` or, when a
column has that name, ``metadata.n``); a value is compared for equality, or is
a mapping of operators::

    {"user_id": "alice", "n": {"gt": 3, "lte": 9}, "OR": [{"tag": "a"}, {"tag": {"in": ["b"]}}]}

Filters are two-valued: a row without the field does not equal anything, so
``ne``, ``nin`` and ``NOT`` include it.

Metadata come typed from JSON, and as bare text from CSV. So a number meets text that reads as
that number, true and false meet text that says so, text meets the number or boolean that is
written like it, and a time meets text that is the same moment. What a value of another library
stands for, `memworker.values` says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from memworker.errors import FilterError
from memworker.store import literals, untyped
from memworker.store.untyped import ORDER
from memworker.values import exact_str, shown

TEXT_COLUMNS = frozenset({"id", "dedup_key", "text", "user_id", "agent_id", "run_id"})
# Of a table of chunks alone; in other tables they are metadata fields like any other.
CHUNK_TEXTS = frozenset({"parent_id", "context"})
CHUNK_NUMBERS = frozenset({"chunk", "char_start", "char_end"})
TIME_COLUMNS = frozenset({"created_at", "updated_at", "expires_at", "superseded_at"})
OPERATORS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains")
LOGIC = ("AND", "OR", "NOT")

# DataFusion plans by recursion; deeper nesting could exhaust its stack.
_MAX_DEPTH = 32
_MAX_ALTERNATIVES = 100

_CONDITION = re.compile(r"([^=<>!~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
_SIGNS = {"=": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "~": "contains"}

# Looked up, never defaulted: what a kind of field was not taught must not pass as another operator.
_SQL = {"eq": "=", **ORDER}

Compare = Callable[[str, Any], str]


def to_sql(where: Mapping[str, Any], *, chunks: bool = False) -> str:
    """Return the SQL of a filter; an empty one is ``true``. `chunks`: of a table of chunks.

    Raises FilterError for an unknown operator, a value of a type that the
    field does not hold, or text that is not valid Unicode.
    """
    return _mapping(where, 0, chunks)


def parse_where(items: Iterable[str]) -> dict[str, Any]:
    """Return the filter of conditions like ``user_id=alice`` or ``n>=3``, all of which must hold.

    Signs: ``= != > >= < <= ~`` (contains). Columns hold text or times; values
    of metadata fields are numbers, booleans or null where they read as such,
    and a quoted ``"3"`` is text. Raises FilterError.
    """
    conditions = []
    for item in items:
        match = _CONDITION.fullmatch(item)
        if not match:
            raise FilterError(f"{item!r} is no condition; write FIELD=VALUE, such as user_id=alice")
        field, sign, text = match.group(1).strip(), match.group(2), match.group(3)
        value = text if field in TEXT_COLUMNS | TIME_COLUMNS or sign == "~" else _asked(text)
        conditions.append({field: {_SIGNS[sign]: value}})
    return {"AND": conditions} if conditions else {}


def visible(where: Mapping[str, Any] | None, now: datetime | None = None) -> dict[str, Any]:
    """Return the filter of those rows that are neither superseded nor expired."""
    moment = now or datetime.now(UTC)
    not_expired = {"OR": [{"expires_at": None}, {"expires_at": {"gt": moment}}]}
    return {"AND": [where or {}, {"superseded_at": None}, not_expired]}


def id_in(ids: Iterable[str]) -> str:
    """Return the SQL that selects rows by id."""
    return key_in("id", ids)


def key_in(column: str, values: Iterable[str]) -> str:
    """Return the SQL that selects rows by the exact values of a text column."""
    if column not in TEXT_COLUMNS | {"parent_id"}:
        raise FilterError(f"{column!r} is no key; there are {', '.join(sorted(TEXT_COLUMNS))}")
    quoted = ", ".join(literals.text(value, column) for value in values)
    return f"{column} IN ({quoted})" if quoted else "false"


def assignments(values: Mapping[str, datetime | None]) -> dict[str, str]:
    """Return the SQL of new values, a column each. Raises FilterError but for times.

    A row is superseded after it was updated, whatever the clock has done meanwhile.
    """
    other = [name for name in values if name not in TIME_COLUMNS]
    if other or not values:
        raise FilterError(f"cannot set {other}; what can be set is {', '.join(TIME_COLUMNS)}")
    set_to = {name: "NULL" if v is None else literals.time(name, v) for name, v in values.items()}
    if values.get("superseded_at") is not None:
        after = "updated_at + interval '1 microsecond'"
        set_to["superseded_at"] = f"greatest({set_to['superseded_at']}, {after})"
    return set_to


def _mapping(where: Any, depth: int, chunks: bool) -> str:
    if not isinstance(where, Mapping):
        raise FilterError(f"a filter is a mapping of fields to values, got {shown(where)}")
    if depth > _MAX_DEPTH:
        raise FilterError(f"the filter is nested deeper than {_MAX_DEPTH} levels; flatten it")
    parts = [
        _logic(key, value, depth, chunks) if key in LOGIC else _field(key, value, chunks)
        for key, value in where.items()
    ]
    return _all(parts)


def _logic(word: str, operands: Any, depth: int, chunks: bool) -> str:
    if word == "NOT" and isinstance(operands, Mapping):
        operands = [operands]
    if not isinstance(operands, list | tuple) or (word != "AND" and not operands):
        raise FilterError(f"{word} needs a list of filters, got {shown(operands)}")
    parts = [_mapping(operand, depth + 1, chunks) for operand in operands]
    if word == "AND":
        return _all(parts)
    # As in Mem0 and Qdrant, NOT of several filters excludes rows that meet any.
    either = _any(parts)
    return either if word == "OR" else f"NOT {either}"


def _field(name: Any, condition: Any, chunks: bool) -> str:
    if not isinstance(name, str) or not name or name == "vector":
        raise FilterError(f"{name!r} cannot be filtered by; name a column or a metadata field")
    name = exact_str(name)
    compare = _comparer(name, chunks)
    if not isinstance(condition, Mapping):
        return compare("eq", condition)
    if not condition:
        raise FilterError(f"{name!r} has no condition; operators: {', '.join(OPERATORS)}")
    return _all(_operator(name, compare, op, value, chunks) for op, value in condition.items())


def _operator(name: str, compare: Compare, op: Any, value: Any, chunks: bool) -> str:
    if op not in OPERATORS:
        inside = "" if op in LOGIC else f"; what is inside an object: write '{name}.{op}'"
        known = ", ".join(OPERATORS)
        raise FilterError(f"unknown operator {op!r} for {name!r}; there are {known}{inside}")
    if op == "ne":
        return f"NOT {compare('eq', value)}"
    if op not in ("in", "nin"):
        return compare(op, value)
    if not isinstance(value, list | tuple | set | frozenset):
        raise FilterError(f"{op!r} of {name!r} needs a list, got {shown(value)}")
    inside = _any_of(name, compare, list(value), chunks)
    return inside if op == "in" else f"NOT {inside}"


def _any_of(name: str, compare: Compare, values: list[Any], chunks: bool) -> str:
    if not values:
        return "false"
    # One IN instead of many ORs: a long chain of ORs is a deep tree to the planner.
    if name in TEXT_COLUMNS:
        texts = ", ".join(literals.text(untyped.given(name, value), name) for value in values)
        return f"({name} IN ({texts}))"
    if chunks and name in CHUNK_TEXTS and all(isinstance(value, str) for value in values):
        return f"(({name} IN ({', '.join(literals.text(v, name) for v in values)})) IS TRUE)"
    of_metadata = name not in TIME_COLUMNS and not (chunks and name in CHUNK_NUMBERS)
    if of_metadata and all(isinstance(value, str) for value in values):
        return untyped.one_of(name, values)
    if len(values) > _MAX_ALTERNATIVES:
        raise FilterError(f"{name!r} has {len(values)} values; use at most {_MAX_ALTERNATIVES}")
    return _any(compare("eq", value) for value in values)


def _comparer(name: str, chunks: bool) -> Compare:
    if chunks and name in CHUNK_TEXTS:
        return lambda op, value: _compare_chunk_text(name, op, untyped.given(name, value))
    if chunks and name in CHUNK_NUMBERS:
        return lambda op, value: _compare_number(name, op, untyped.given(name, value))
    if name in TEXT_COLUMNS:
        return lambda op, value: _compare_text(name, op, untyped.given(name, value))
    if name in TIME_COLUMNS:
        return lambda op, value: _compare_time(name, op, untyped.given(name, value))
    return lambda op, value: untyped.compare(name, op, untyped.given(name, value))


def _compare_text(column: str, op: str, value: Any) -> str:
    # A scope that is not there is stored as empty text.
    literal = literals.text("" if value is None and op == "eq" else value, column)
    if op == "contains":
        return f"contains({column}, {literal})"
    return f"({column} {_SQL[op]} {literal})"


def _compare_chunk_text(column: str, op: str, value: Any) -> str:
    if value is None and op == "eq":
        return f"({column} IS NULL)"
    return f"({_compare_text(column, op, value)} IS TRUE)"


def _compare_number(column: str, op: str, value: Any) -> str:
    if value is None and op == "eq":
        return f"({column} IS NULL)"
    if op == "contains" or isinstance(value, bool) or not isinstance(value, int | float):
        raise FilterError(f"{column!r} holds a number; {op!r} cannot compare it with {value!r}")
    return f"(({column} {_SQL[op]} {literals.number(column, value)}) IS TRUE)"


def _compare_time(column: str, op: str, value: Any) -> str:
    if value is None and op == "eq":
        return f"({column} IS NULL)"
    if op == "contains":
        raise FilterError(f"{column!r} holds a time, which contains nothing; use gt, gte, lt, lte")
    return f"(({column} {_SQL[op]} {literals.time(column, value)}) IS TRUE)"


def _asked(text: str) -> Any:
    # What wrote a CSV may have spelt it so, as pandas does.
    said = text.lower()
    return said == "true" if said in ("true", "false") else scalar(text)


def scalar(text: str) -> Any:
    """Read a value of a command line: a number, a boolean, null or quoted text, else as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite and not isinstance(value, list | dict) else text


def _all(parts: Iterable[str]) -> str:
    return _joined(parts, " AND ") or "true"


def _any(parts: Iterable[str]) -> str:
    return _joined(parts, " OR ")


def _joined(parts: Iterable[str], word: str) -> str:
    listed = list(parts)
    return f"({word.join(listed)})" if len(listed) > 1 else "".join(listed)

"""Typed filters to LanceDB SQL: the one place where a user's value becomes part of a statement.

A filter is a mapping. A key is a column or a metadata field (``n`` or, when a
column has that name, ``metadata.n``); a value is compared for equality, or is
a mapping of operators::

    {"user_id": "alice", "n": {"gt": 3, "lte": 9}, "OR": [{"tag": "a"}, {"tag": {"in": ["b"]}}]}

Filters are two-valued: a row without the field does not equal anything, so
``ne``, ``nin`` and ``NOT`` include it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from memworker.errors import FilterError

TEXT_COLUMNS = frozenset({"id", "dedup_key", "text", "user_id", "agent_id", "run_id"})
TIME_COLUMNS = frozenset({"created_at", "updated_at", "expires_at", "superseded_at"})
OPERATORS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "contains")
LOGIC = ("AND", "OR", "NOT")

_ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# DataFusion plans by recursion; deeper nesting could exhaust its stack.
_MAX_DEPTH = 32
_MAX_ALTERNATIVES = 100
# Larger integers are not all exact as float64, so they are compared as text.
_EXACT_INT = 2**53

_CONDITION = re.compile(r"([^=<>!~]+)(!=|>=|<=|=|>|<|~)(.*)", re.DOTALL)
_SIGNS = {"=": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "~": "contains"}

Compare = Callable[[str, Any], str]


def to_sql(where: Mapping[str, Any]) -> str:
    """Return the SQL of a filter; an empty one is ``true``.

    Raises FilterError for an unknown operator, a value of a type that the
    field does not hold, or text that is not valid Unicode.
    """
    return _mapping(where, 0)


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
        value = text if field in TEXT_COLUMNS | TIME_COLUMNS or sign == "~" else scalar(text)
        conditions.append({field: {_SIGNS[sign]: value}})
    return {"AND": conditions} if conditions else {}


def live(where: Mapping[str, Any] | None, now: datetime | None = None) -> dict[str, Any]:
    """Return the filter of those rows that are neither superseded nor expired."""
    moment = now or datetime.now(UTC)
    not_expired = {"OR": [{"expires_at": None}, {"expires_at": {"gt": moment}}]}
    return {"AND": [where or {}, {"superseded_at": None}, not_expired]}


def id_in(ids: Iterable[str]) -> str:
    """Return the SQL that selects rows by id."""
    return key_in("id", ids)


def key_in(column: str, values: Iterable[str]) -> str:
    """Return the SQL that selects rows by the exact values of a text column."""
    if column not in TEXT_COLUMNS:
        raise FilterError(f"{column!r} is no key; there are {', '.join(sorted(TEXT_COLUMNS))}")
    quoted = ", ".join(_text(value, column) for value in values)
    return f"{column} IN ({quoted})" if quoted else "false"


def assignments(values: Mapping[str, datetime | None]) -> dict[str, str]:
    """Return the SQL of new values, a column each. Raises FilterError but for times.

    A row is superseded after it was updated, whatever the clock has done meanwhile.
    """
    other = [name for name in values if name not in TIME_COLUMNS]
    if other or not values:
        raise FilterError(f"cannot set {other}; what can be set is {', '.join(TIME_COLUMNS)}")
    set_to = {name: "NULL" if v is None else _time(name, v) for name, v in values.items()}
    if values.get("superseded_at") is not None:
        after = "updated_at + interval '1 microsecond'"
        set_to["superseded_at"] = f"greatest({set_to['superseded_at']}, {after})"
    return set_to


def _mapping(where: Any, depth: int) -> str:
    if not isinstance(where, Mapping):
        raise FilterError(f"a filter is a mapping of fields to values, got {where!r}")
    if depth > _MAX_DEPTH:
        raise FilterError(f"the filter is nested deeper than {_MAX_DEPTH} levels; flatten it")
    parts = [
        _logic(key, value, depth) if key in LOGIC else _field(key, value)
        for key, value in where.items()
    ]
    return _all(parts)


def _logic(word: str, operands: Any, depth: int) -> str:
    if word == "NOT" and isinstance(operands, Mapping):
        operands = [operands]
    if not isinstance(operands, list | tuple) or (word != "AND" and not operands):
        raise FilterError(f"{word} needs a list of filters, got {operands!r}")
    parts = [_mapping(operand, depth + 1) for operand in operands]
    if word == "AND":
        return _all(parts)
    # As in Mem0 and Qdrant, NOT of several filters excludes rows that meet any.
    either = _any(parts)
    return either if word == "OR" else f"NOT {either}"


def _field(name: Any, condition: Any) -> str:
    if not isinstance(name, str) or not name or name == "vector":
        raise FilterError(f"{name!r} cannot be filtered by; name a column or a metadata field")
    compare = _comparer(name)
    if not isinstance(condition, Mapping):
        return compare("eq", condition)
    if not condition:
        raise FilterError(f"{name!r} has no condition; operators: {', '.join(OPERATORS)}")
    return _all(_operator(name, compare, op, value) for op, value in condition.items())


def _operator(name: str, compare: Compare, op: Any, value: Any) -> str:
    if op not in OPERATORS:
        raise FilterError(f"unknown operator {op!r} for {name!r}; there are {', '.join(OPERATORS)}")
    if op == "ne":
        return f"NOT {compare('eq', value)}"
    if op not in ("in", "nin"):
        return compare(op, value)
    if not isinstance(value, list | tuple | set | frozenset):
        raise FilterError(f"{op!r} of {name!r} needs a list, got {value!r}")
    inside = _any_of(name, compare, list(value))
    return inside if op == "in" else f"NOT {inside}"


def _any_of(name: str, compare: Compare, values: list[Any]) -> str:
    if not values:
        return "false"
    # One IN instead of many ORs: a long chain of ORs is a deep tree to the planner.
    if name in TEXT_COLUMNS:
        return f"({name} IN ({', '.join(_text(value, name) for value in values)}))"
    if name not in TIME_COLUMNS and all(isinstance(value, str) for value in values):
        quoted = (_text(json.dumps(value, ensure_ascii=False), name) for value in values)
        return f"(({_metadata_field(name)} IN ({', '.join(quoted)})) IS TRUE)"
    if len(values) > _MAX_ALTERNATIVES:
        raise FilterError(f"{name!r} has {len(values)} values; use at most {_MAX_ALTERNATIVES}")
    return _any(compare("eq", value) for value in values)


def _comparer(name: str) -> Compare:
    if name in TEXT_COLUMNS:
        return lambda op, value: _compare_text(name, op, value)
    if name in TIME_COLUMNS:
        return lambda op, value: _compare_time(name, op, value)
    return lambda op, value: _compare_metadata(name, op, value)


def _compare_text(column: str, op: str, value: Any) -> str:
    # A scope that is not there is stored as empty text.
    literal = _text("" if value is None and op == "eq" else value, column)
    if op == "contains":
        return f"contains({column}, {literal})"
    return f"({column} {_ORDER.get(op, '=')} {literal})"


def _compare_time(column: str, op: str, value: Any) -> str:
    if value is None and op == "eq":
        return f"({column} IS NULL)"
    if op == "contains":
        raise FilterError(f"{column!r} holds a time, which contains nothing; use gt, gte, lt, lte")
    return f"(({column} {_ORDER.get(op, '=')} {_time(column, value)}) IS TRUE)"


def _compare_metadata(name: str, op: str, value: Any) -> str:
    field = _metadata_field(name)
    if value is None and op == "eq":
        return f"({field} IS NULL OR {field} = 'null')"
    if op == "eq":
        return _metadata_equals(field, name, value)
    if isinstance(value, str):
        inner, text = _unquoted(field), _text(value, name)
        test = f"contains({inner}, {text})" if op == "contains" else f"{inner} {_ORDER[op]} {text}"
        return f"((starts_with({field}, '\"') AND {test}) IS TRUE)"
    if op == "contains" or isinstance(value, bool) or not isinstance(value, int | float):
        raise FilterError(f"{op!r} of {name!r} cannot compare with {value!r}")
    return f"((try_cast({field} AS double) {_ORDER[op]} {_number(name, value)}) IS TRUE)"


def _metadata_field(name: str) -> str:
    # json_get_int and its like fail a whole query over one row of another
    # type; the field's JSON text can be compared whatever a row holds.
    return f"json_extract(json_get(metadata, {_text(name.removeprefix('metadata.'))}), '$')"


def _metadata_equals(field: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"(({field} = '{str(value).lower()}') IS TRUE)"
    if isinstance(value, int) and abs(value) > _EXACT_INT:
        return f"(({field} = '{value}') IS TRUE)"
    if isinstance(value, int | float):
        return f"((try_cast({field} AS double) = {_number(name, value)}) IS TRUE)"
    if isinstance(value, str):
        # Lance prints JSON text just as json.dumps does without ensure_ascii.
        return f"(({field} = {_text(json.dumps(value, ensure_ascii=False), name)}) IS TRUE)"
    raise FilterError(
        f"{name!r} cannot be compared with {value!r}; use text, a number, true, false or null"
    )


def _unquoted(field: str) -> str:
    """Undo JSON's quotes and escapes, but for those of rare control characters."""
    sql = f"right(left({field}, -1), -1)"
    # JSON text holds no raw control character, so U+0001 can stand for a backslash meanwhile.
    escapes = [("\\\\", "\x01"), ('\\"', '"'), ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")]
    for escaped, plain in [*escapes, ("\x01", "\\")]:
        sql = f"replace({sql}, {_text(escaped)}, {_text(plain)})"
    return sql


def _text(value: Any, name: str = "the filter") -> str:
    if not isinstance(value, str):
        raise FilterError(f"{name!r} holds text and cannot be compared with {value!r}; quote it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FilterError(f"the value for {name!r} is not valid Unicode: {error}") from error
    # In this dialect a doubled quote is the only escape; a backslash is a backslash.
    return "'" + value.replace("'", "''") + "'"


def _number(name: str, value: float) -> str:
    if not math.isfinite(value):
        raise FilterError(f"{name!r} cannot be compared with {value!r}; use a finite number")
    return f"CAST('{float(value)!r}' AS double)"


def _time(column: str, value: Any) -> str:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise FilterError(
                f"{column!r} holds a time, and {value!r} is none; write 2026-01-31T12:00:00Z"
            ) from None
    if not isinstance(value, datetime):
        raise FilterError(f"{column!r} holds a time and cannot be compared with {value!r}")
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    return f"timestamp '{moment.astimezone(UTC).isoformat(timespec='microseconds')[:26]}Z'"


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

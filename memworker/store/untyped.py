"""Conditions on metadata, which come typed from JSON and as bare text from CSV.

So a number meets text that reads as that number, true and false meet text that says so, text
meets the number or boolean that is written like it, and a time meets text of the same moment.
A field is compared as the JSON text it is, for Lance's typed readers fail a whole query over
one row of another type.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from decimal import Decimal
from typing import Any

from memworker import values
from memworker.errors import FilterError
from memworker.store import literals

ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:\d\d)?)?\Z")


def given(name: str, value: Any) -> Any:
    """Return the value in Python's own types: text, a number, a datetime, a boolean or None.

    Whatever a subclass says of itself: what is written into a statement is what it is.
    """
    if value is None or type(value) in (str, bool, int, float, datetime):
        return value
    if isinstance(value, list | tuple | Set | Mapping | bytes | bytearray):
        raise FilterError(
            f"{name!r} cannot be compared with {values.shown(value)}; use text, a number, true,"
            " false or null"
        )
    try:
        found = values.plain(value)
    except values.Unsayable as error:
        raise FilterError(f"the value for {name!r} {error}") from None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(found, str) and not isinstance(value, str) and _DATE.match(found):
        return _moment(found) or found
    return found


def _moment(text: str) -> datetime | None:
    """Read a date or a time, as RFC 3339 has it; None for other text, and beyond microseconds."""
    if not _DATE.match(text):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found


def compare(name: str, op: str, value: Any) -> str:
    """Return the condition that a field stands so to a value, as `given` returned it."""
    field = field_of(name)
    if value is None and op == "eq":
        return f"({field} IS NULL OR {field} = 'null')"
    if op == "eq":
        return _equals(field, name, value)
    if isinstance(value, str) and op == "contains":
        test = f"contains({_unquoted(field)}, {literals.text(value, name)})"
        return f"(({_is_text(field)} AND {test}) IS TRUE)"
    if isinstance(value, str):
        return _text_order(field, name, op, value)
    if op == "contains" or isinstance(value, bool) or not isinstance(value, int | float | datetime):
        raise FilterError(f"{op!r} of {name!r} cannot compare with {values.shown(value)}")
    if isinstance(value, datetime):
        test = f"{_as_time(field)} {ORDER[op]} {literals.time(name, value)}"
        return f"(({_is_text(field)} AND {test}) IS TRUE)"
    return _number_test(field, ORDER[op], name, value)


def one_of(name: str, texts: Sequence[str]) -> str:
    """Return the condition that a field equals one of these texts."""
    forms = ", ".join(_forms(name, values.exact_str(text)) for text in texts)
    return f"(({field_of(name)} IN ({forms})) IS TRUE)"


def _text_order(field: str, name: str, op: str, value: str) -> str:
    """Compare texts with text, and by time where both are times; numbers where it reads as one."""
    test = f"{_unquoted(field)} {ORDER[op]} {literals.text(value, name)}"
    if (moment := _moment(value)) is not None:
        test = f"coalesce({_as_time(field)} {ORDER[op]} {literals.time(name, moment)}, {test})"
    if (number := _literal(value)) is not None and not isinstance(number, bool):
        numbers = f"try_cast({field} AS double) {ORDER[op]} {literals.number(name, number)}"
        return f"((({_is_text(field)} AND {test}) OR {numbers}) IS TRUE)"
    return f"(({_is_text(field)} AND {test}) IS TRUE)"


def _is_text(field: str) -> str:
    return f"starts_with({field}, '\"')"


def _bare(field: str) -> str:
    return f"btrim({field}, '\" ')"


def _number_test(field: str, sign: str, name: str, value: float) -> str:
    # Of texts that end in a letter some read as numbers that are none, as "nan" and "infinity".
    bare, bound = _bare(field), literals.number(name, value)
    return f"((right({bare}, 1) <= '9' AND try_cast({bare} AS double) {sign} {bound}) IS TRUE)"


def _as_time(field: str) -> str:
    return f"try_cast({_bare(field)} AS timestamp)"


def _literal(text: str) -> int | float | bool | None:
    """Return the number or boolean that JSON writes just so, if there is one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(found, int | float) and (isinstance(found, int) or math.isfinite(found))
    return found if sound and json.dumps(found) == text else None


def field_of(name: str) -> str:
    """Return the SQL of a metadata field's JSON text."""
    # json_get_int and its like fail a whole query over one row of another
    # type; the field's JSON text can be compared whatever a row holds.
    return f"json_extract(json_get(metadata, {literals.text(name.removeprefix('metadata.'))}), '$')"


def _equals(field: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"((lower({_bare(field)}) = '{str(value).lower()}') IS TRUE)"
    if isinstance(value, int) and abs(value) >= values.EXACT_FLOAT:
        return f"(({_bare(field)} = '{_digits(name, value)}') IS TRUE)"
    if isinstance(value, int | float):
        return _number_test(field, "=", name, value)
    if isinstance(value, datetime):
        return f"(({_is_text(field)} AND {_as_time(field)} = {literals.time(name, value)}) IS TRUE)"
    if isinstance(value, str):
        return f"(({field} IN ({_forms(name, value)})) IS TRUE)"
    raise FilterError(
        f"{name!r} cannot be compared with {values.shown(value)}; use text, a number, true, false"
        " or null"
    )


def _forms(name: str, value: str) -> str:
    """Write the JSON texts that a text equals: its own, and the literal that is written like it."""
    # Lance prints JSON text just as json.dumps does without ensure_ascii.
    forms = [literals.text(json.dumps(value, ensure_ascii=False), name)]
    if _literal(value) is not None:
        forms.append(literals.text(value, name))
    return ", ".join(forms)


def _digits(name: str, value: int) -> str:
    if value.bit_length() > 1000:
        raise FilterError(f"the integer for {name!r} has over 300 digits; none is stored")
    return str(value)


def _unquoted(field: str) -> str:
    """Undo JSON's quotes and escapes, but for those of rare control characters."""
    sql = f"right(left({field}, -1), -1)"
    # JSON text holds no raw control character, so U+0001 can stand for a backslash meanwhile.
    escapes = [("\\\\", "\x01"), ('\\"', '"'), ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t")]
    for escaped, plain in [*escapes, ("\x01", "\\")]:
        sql = f"replace({sql}, {literals.text(escaped)}, {literals.text(plain)})"
    return sql

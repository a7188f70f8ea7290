"""Conditions on metadata, which come typed from JSON and as bare text from CSV.

So a number meets text that reads as that number, true and false meet text that says so, text
meets the number or boolean that is written like it, and a time meets text of the same moment.
A list meets what one of its values meets (`lists`).
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
from memworker.store import lists, literals

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
            " false or null, and {'in': [...]} for one of several"
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
    """Return the condition that a field stands so to a value, as `given` returned it.

    A list does where one of its values does.
    """
    field = field_of(name)
    if value is None and op == "eq":
        return f"({field} IS NULL OR {field} = 'null')"
    if op == "eq" or (op == "contains" and isinstance(value, bool | int | float)):
        return _equals(field, name, value)
    if isinstance(value, str) and op == "contains":
        test = f"contains({_unquoted(field)}, {literals.text(value, name)})"
        held = lists.any_of(field, _forms(name, value))
        inside = lists.any_containing(field, literals.exact(value, name))
        return f"((({_is_text(field)} AND {test}) IS TRUE) OR {held} OR {inside})"
    if isinstance(value, str):
        return _text_order(field, name, op, value)
    if op == "contains" or isinstance(value, bool) or not isinstance(value, int | float | datetime):
        raise FilterError(f"{op!r} of {name!r} cannot compare with {values.shown(value)}")
    if isinstance(value, datetime):
        return _time_test(field, ORDER[op], name, value)
    return _number_test(field, ORDER[op], name, value)


def one_of(name: str, texts: Sequence[str]) -> str:
    """Return the condition that a field equals one of these texts, or holds one in a list."""
    field = field_of(name)
    forms = [form for text in texts for form in _forms(name, values.exact_str(text))]
    return f"((({field} IN ({', '.join(forms)})) IS TRUE) OR {lists.any_of(field, forms)})"


def _text_order(field: str, name: str, op: str, value: str) -> str:
    """Compare texts with text, and by time where both are times; numbers where it reads as one."""
    sign, text = ORDER[op], literals.exact(value, name)
    test = f"{_unquoted(field)} {sign} {literals.text(value, name)}"
    moment, number = _moment(value), _literal(value)
    held = [lists.any_text(field, sign, text, but_times=moment is not None)]
    if moment is not None:
        at = literals.time(name, moment)
        test = f"coalesce({_as_time(field)} {sign} {at}, {test})"
        held.append(lists.any_time(field, sign, at))
    either = [f"(({_is_text(field)} AND {test}) IS TRUE)", *held]
    if number is not None and not isinstance(number, bool):
        bound = literals.number(name, number)
        either.append(f"((try_cast({field} AS double) {sign} {bound}) IS TRUE)")
        either.append(lists.any_number(field, sign, bound))
    return f"({' OR '.join(either)})"


def _time_test(field: str, sign: str, name: str, value: datetime) -> str:
    at = literals.time(name, value)
    held = lists.any_time(field, sign, at)
    return f"((({_is_text(field)} AND {_as_time(field)} {sign} {at}) IS TRUE) OR {held})"


def _is_text(field: str) -> str:
    return f"starts_with({field}, '\"')"


def _bare(field: str) -> str:
    return f"btrim({field}, '\" ')"


def _number_test(field: str, sign: str, name: str, value: float) -> str:
    # Of texts that end in a letter some read as numbers that are none, as "nan" and "infinity".
    bare, bound = _bare(field), literals.number(name, value)
    test = f"right({bare}, 1) <= '9' AND try_cast({bare} AS double) {sign} {bound}"
    return f"((({test}) IS TRUE) OR {lists.any_number(field, sign, bound)})"


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
    """Return the SQL of a metadata field's JSON text; a dot leads into an object.

    A field that has the dot in its own name comes first.
    """
    # json_get_int and its like fail a whole query over one row of another
    # type; the field's JSON text can be compared whatever a row holds.
    bare = name.removeprefix("metadata.")
    ways = dict.fromkeys(((bare,), tuple(bare.split(".")), tuple(name.split("."))))
    places = [_inside(way) for way in ways]
    place = f"coalesce({', '.join(places)})" if len(places) > 1 else places[0]
    return f"json_extract({place}, '$')"


def _inside(way: tuple[str, ...]) -> str:
    sql = "metadata"
    for name in way:
        sql = f"json_get({sql}, {literals.text(name)})"
    return sql


def _equals(field: str, name: str, value: Any) -> str:
    if isinstance(value, bool):
        said = str(value).lower()
        forms = [f"'{said}'", *(f"'\"{form}\"'" for form in (said, said.title(), said.upper()))]
        held = lists.any_of(field, forms)
        return f"(((lower({_bare(field)}) = '{said}') IS TRUE) OR {held})"
    if isinstance(value, int) and abs(value) >= values.EXACT_FLOAT:
        digits = _digits(name, value)
        held = lists.any_of(field, [f"'{digits}'", f"'\"{digits}\"'"])
        return f"((({_bare(field)} = '{digits}') IS TRUE) OR {held})"
    if isinstance(value, int | float):
        return _number_test(field, "=", name, value)
    if isinstance(value, datetime):
        return _time_test(field, "=", name, value)
    if isinstance(value, str):
        return one_of(name, [value])
    raise FilterError(
        f"{name!r} cannot be compared with {values.shown(value)}; use text, a number, true, false"
        " or null"
    )


def _forms(name: str, value: str) -> list[str]:
    """Write the JSON texts that a text equals: its own, and the literal that is written like it."""
    # Lance prints JSON text just as json.dumps does without ensure_ascii.
    forms = [literals.text(json.dumps(value, ensure_ascii=False), name)]
    if _literal(value) is not None:
        forms.append(literals.text(value, name))
    return forms


def _digits(name: str, value: int) -> str:
    if value.bit_length() > 1000:
        raise FilterError(f"the integer for {name!r} has over 300 digits; none is stored")
    return str(value)


def _unquoted(field: str) -> str:
    return lists.unescaped(f"right(left({field}, -1), -1)")

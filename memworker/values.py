"""The one rule for what a value given as data becomes: what JSON can say, exactly, or a reason.

Metadata, filters and ids pass through here at every door. Values of other worlds (subclasses
of Python's types, enums, numpy's, pandas' and Arrow's scalars) become Python's own types, times
and decimals text. Nothing is rounded, cut or dropped: what cannot be kept is `Unsayable`.
No library is asked for that the value did not come from.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from memworker import times
from memworker.errors import UsageError

# JSONB, as which LanceDB keeps metadata, holds larger integers as floats only.
LEAST_INT, LARGEST_INT = -(2**63), 2**64 - 1
# What was stored must be readable from any depth of the caller's stack.
MAX_DEPTH = 64
# Larger integers are not all exact as floats.
EXACT_FLOAT = 2**53
_SHOWN = 100
_WRITTEN_BITS = 1000
_MISSING = frozenset((("NAType", "pandas"), ("NaTType", "pandas"), ("MaskedConstant", "numpy")))
TYPE_NAMES = {
    bool: "true or false",
    list: "an array",
    tuple: "an array",
    dict: "an object",
    bytes: "bytes",
    type(None): "null",
}


class Unsayable(ValueError):
    """A value that JSON cannot keep as it is; `field` says where in the data it stands."""

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{field!r} {reason}" if field else reason)
        self.reason = reason
        self.field = field

    def inside(self, step: str) -> Unsayable:
        """Give the same, found one step further in."""
        dot = "." if self.field and not self.field.startswith("[") else ""
        field = f"{step}{dot}{self.field}"
        return type(self)(self.reason, field if len(field) <= _SHOWN else f"{field[:_SHOWN]}…")


class NotFinite(Unsayable):
    """NaN or an infinity, for which JSON has no number."""


def checked_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return the text that is allowed and equals `value`. Raises UsageError, naming the choices."""
    choices = [str(choice) for choice in allowed]
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
    return choices[choices.index(value)]


def plain(value: Any) -> Any:
    """Return the value in Python's own JSON types; raise Unsayable where that would alter it.

    Times become RFC 3339 text with all their digits, decimals and UUIDs text, bytes base64,
    tuples lists, enums their values; pandas' NA and NaT are None.
    """
    return _plain(value, 0)


def plain_mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping as `plain` does."""
    return _object(value, 0)


def is_plain(value: Mapping[Any, Any]) -> bool:
    """Tell, quickly, whether `plain_mapping` would return an equal mapping; texts are not read."""
    return _fine(value.values(), 0) and all(type(key) is str for key in value)


def json_text(value: Mapping[Any, Any]) -> str:
    """Write a mapping as JSON. Raises Unsayable."""
    return json.dumps(_object(value, 0), ensure_ascii=False, allow_nan=False, sort_keys=True)


def has_finite(value: Any) -> bool:
    """Tell whether a value is written as JSON without NaN and infinities."""
    try:
        _plain(value, 0)
    except NotFinite:
        return False
    except Unsayable:
        pass
    return True


def with_nulls(value: Any) -> Any:
    """Return the value with None in place of each NaN and infinity in it."""
    if isinstance(value, Mapping):
        return {key: with_nulls(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_nulls(inner) for inner in value]
    if getattr(getattr(value, "dtype", None), "kind", "") == "f":
        return with_nulls(value.tolist())
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return None
    return value


def exact_str(value: str) -> str:
    """Return the text that a subclass of str is, whatever it says of itself."""
    return str.__str__(value)


def id_text(value: Any) -> str:
    """Return the text of an id: text as it is, whole numbers in digits, UUIDs as usual.

    A whole number may be a float, as pandas makes it where an id is missing. Raises Unsayable.
    """
    if isinstance(value, str):
        return _text(exact_str(value))
    if isinstance(value, UUID):
        return UUID.__str__(value)
    if isinstance(value, Enum) and not isinstance(value, int):
        return id_text(value.value)
    found = number(value) if not isinstance(value, Decimal) else value
    if isinstance(found, Decimal) and found.is_finite() and found == found.to_integral_value():
        return str(int(found))
    # A larger float may stand for several whole numbers.
    if isinstance(found, float) and found.is_integer() and abs(found) <= EXACT_FLOAT:
        return str(int(found))
    if isinstance(found, int) or (found := whole(value)) is not None:
        # Of thousands of digits Python writes no number out.
        if found.bit_length() < _WRITTEN_BITS:
            return str(found)
    raise Unsayable(f"is {_named(value)}; it must be a string or a whole number")


def positive(name: str, given: object) -> int | None:
    """Return a number of at least 1, or None. Raises UsageError."""
    found = None if given is None else whole(given)
    if given is not None and (found is None or found < 1):
        raise UsageError(f"{name} must be a whole number of at least 1, not {shown(given)}")
    return found


def whole(value: Any) -> int | None:
    """Return a whole number as an int; None for what is none, as True and 2.0 are."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return None
    if isinstance(value, int):
        return int.__int__(value)
    try:
        return int.__int__(value.__index__())
    except (AttributeError, TypeError, ValueError):
        return None


def number(value: Any) -> int | float | None:
    """Return a number as an int or a float; None for what is none, as True is."""
    try:
        found = None if isinstance(value, Decimal) else _plain(value, 0)
    except Unsayable:
        return None
    return found if type(found) in (int, float) else None


def _fine(values: Iterable[Any], depth: int) -> bool:
    for value in values:
        kind = type(value)
        if kind is str or kind is bool or value is None:
            continue
        if kind is int:
            fine = LEAST_INT <= value <= LARGEST_INT
        elif kind is float:
            fine = value - value == 0.0
        elif kind is list:
            fine = depth < MAX_DEPTH and _fine(value, depth + 1)
        else:
            fine = kind is dict and depth < MAX_DEPTH and _fine(value.values(), depth + 1)
            fine = fine and all(type(key) is str for key in value)
        if not fine:
            return False
    return True


def shown(value: Any, longest: int = _SHOWN) -> str:
    """Return how a value is written in a message: short, and whatever it is."""
    try:
        told = repr(value)
    except Exception as error:
        return f"a {type(value).__name__} that cannot be written ({type(error).__name__})"
    return told if len(told) <= longest else f"{told[:longest]}…"


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is bool or value is None:
        return value
    if kind is int:
        return _int(value)
    if kind is float:
        return _float(value)
    if depth > MAX_DEPTH:
        raise Unsayable(f"is nested deeper than {MAX_DEPTH} levels")
    if kind is dict:
        return _object(value, depth)
    if kind is list:
        return _list(value, depth)
    return _converted(value, depth)


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unsayable(
                f"holds a lone surrogate, which is no character, at {error.start}"
            ) from None
    return value


def _int(value: int) -> int:
    if LEAST_INT <= value <= LARGEST_INT:
        return value
    # Not written out: of thousands of digits Python refuses that.
    shown = str(value) if value.bit_length() < _WRITTEN_BITS else f"of {value.bit_length():,} bits"
    raise Unsayable(f"is the integer {shown}, which needs more than 64 bits; write it as text")


def _float(value: float) -> float:
    if math.isfinite(value):
        return value
    raise NotFinite(f"is {value}, which is no number in JSON; leave it out, or write it as text")


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth > MAX_DEPTH:
        raise Unsayable(f"is nested deeper than {MAX_DEPTH} levels")
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if not isinstance(key, str):
            raise Unsayable(f"has the key {shown(key)}, which is not a str")
        name = _text(key if type(key) is str else exact_str(key))
        try:
            found[name] = _plain(inner, depth + 1)
        except Unsayable as error:
            raise error.inside(name) from None
    return found


def _list(values: Any, depth: int) -> list[Any]:
    found = []
    for place, inner in enumerate(values):
        try:
            found.append(_plain(inner, depth + 1))
        except Unsayable as error:
            raise error.inside(f"[{place}]") from None
    return found


def _converted(value: Any, depth: int) -> Any:
    if is_missing(value):
        return None
    # Before all else: some of its scalars call themselves mappings and sequences.
    if type(value).__module__.partition(".")[0] == "pyarrow":
        from memworker import arrow_values

        return _plain(_kept(arrow_values.as_python, value), depth)
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value, depth)
    return _of_a_library(value, depth)


def _decimal(value: Decimal) -> str:
    if value.is_finite():
        return Decimal.__str__(value)
    raise NotFinite(f"is {value}, which is no number in JSON; leave it out, or write it as text")


def _set(value: Any, _: int) -> Any:
    raise Unsayable(f"is a {type(value).__name__}, which has no order; make it a list")


# The first that fits counts: many types are subclasses of another, and most enums of their values'.
_CONVERSIONS: tuple[tuple[Any, Callable[[Any, int], Any]], ...] = (
    (str, lambda value, _: _text(exact_str(value))),
    (int, lambda value, _: _int(int.__int__(value))),
    (float, lambda value, _: _float(float.__float__(value))),
    (Enum, lambda value, depth: _plain(value.value, depth + 1)),
    (datetime | date | time | timedelta, lambda value, _: times.text(value)),
    (Decimal, lambda value, _: _decimal(value)),
    (UUID, lambda value, _: UUID.__str__(value)),
    (bytes | bytearray | memoryview, lambda value, _: base64.b64encode(value).decode()),
    (Mapping, lambda value, depth: _object(value, depth)),
    (list | tuple | deque, lambda value, depth: _list(value, depth)),
    (Set, _set),
)


def _of_a_library(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind.__name__ == "Period" and kind.__module__.partition(".")[0] == "pandas":
        return str(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _scalar(value, depth) if value.shape == () else _list(value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return _object(fields, depth)
    raise Unsayable(
        f"is a {kind.__module__}.{kind.__qualname__}, which JSON cannot say; make it text, a"
        " number, a list or a dict"
    )


def _named(value: Any) -> str:
    """Name a value's type as JSON does."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return "a number" if value == value else "nan"
    return TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def _scalar(value: Any, depth: int) -> Any:
    """Return a scalar, or an array of no dimension, of numpy or of a library like it."""
    kind = getattr(value.dtype, "kind", "")
    if kind in ("M", "m"):
        return _kept(times.of_numpy, value)
    found = value.item()
    if getattr(value.dtype, "names", None):
        return _object(dict(zip(value.dtype.names, found, strict=True)), depth)
    if type(found) is type(value):
        # numpy's long double and its like have no counterpart in Python.
        narrow = float(found) if kind == "f" else None
        if narrow is None or narrow != found:
            raise Unsayable(f"is {found!r}, which no float of 64 bits holds; write it as text")
        return _float(narrow)
    return _plain(found, depth + 1)


def _kept(take: Callable[[Any], Any], value: Any) -> Any:
    try:
        return take(value)
    except (ValueError, OverflowError, NotImplementedError) as error:
        raise Unsayable(f"cannot be kept: {error}") from error


def is_missing(value: Any) -> bool:
    """Tell None, pandas' NA and NaT, the latter of which is a datetime, too, and numpy's masked."""
    kind = type(value)
    return value is None or (kind.__name__, kind.__module__.partition(".")[0]) in _MISSING

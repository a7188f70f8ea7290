"""Arrow's values as Python's, with all their digits, whatever else is installed.

Arrow's own way to Python goes through pandas where that is installed, refuses nanoseconds where
it is not, and years beyond 9999 always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as of

from memworker import times

_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def as_python(value: Any) -> Any:
    """Return a scalar's value, or the values of an array, as `values_of` does."""
    if isinstance(value, pa.RunEndEncodedScalar | pa.DictionaryScalar):
        return as_python(value.value)
    if isinstance(value, pa.Scalar):
        return values_of(pa.array([value], value.type))[0] if value.is_valid else None
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return values_of(value)
    raise ValueError(f"is a pyarrow {type(value).__name__}, which is no value; take its rows")


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of a column: times, durations and decimals as text, nulls as None.

    Structs are dicts, lists and maps lists; all else is what Arrow makes of it. Raises
    ValueError for a type that has no counterpart.
    """
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in values_of(chunk)]
    kind = column.type
    for test, take in _TAKEN:
        if test(kind):
            return take(column)
    if isinstance(kind, pa.BaseExtensionType):
        return _extension(column)
    found: list[Any] = column.to_pylist()
    return found


def _extension(column: pa.ExtensionArray) -> list[Any]:
    if column.type.extension_name == "arrow.uuid":
        return list(map(_uuid, column.storage.to_pylist()))
    return values_of(column.storage)


def _uuid(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _timestamps(column: pa.Array) -> list[Any]:
    unit, zone = column.type.unit, column.type.tz
    counts = column.cast(pa.int64()).to_pylist()
    return [None if n is None else times.moment(n, unit, zone) for n in counts]


def _days(column: pa.Array) -> list[Any]:
    counts = column.cast(pa.int32()).to_pylist()
    return [None if n is None else times.day(n) for n in counts]


def _days_in_ms(column: pa.Array) -> list[Any]:
    counts = column.cast(pa.int64()).to_pylist()
    return [None if n is None else _day_or_moment(n) for n in counts]


def _day_or_moment(milliseconds: int) -> str:
    days, rest = divmod(milliseconds, 86_400_000)
    return times.moment(milliseconds, "ms") if rest else times.day(days)


def _times_of_day(column: pa.Array) -> list[Any]:
    a_unit = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[column.type.unit]
    counts = column.cast(pa.int32() if of.is_time32(column.type) else pa.int64()).to_pylist()
    return [None if n is None else times.of_day(n * a_unit) for n in counts]


def _durations(column: pa.Array) -> list[Any]:
    a_unit = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[column.type.unit]
    counts = column.cast(pa.int64()).to_pylist()
    return [None if n is None else times.duration(n * a_unit) for n in counts]


def _intervals(column: pa.Array) -> list[Any]:
    found = column.to_pylist()
    return [None if n is None else times.interval(n.months, n.days, n.nanoseconds) for n in found]


def _decimals(column: pa.Array) -> list[Any]:
    return [None if n is None else str(n) for n in column.to_pylist()]


def _structs(column: pa.StructArray) -> list[Any]:
    names = [field.name for field in column.type]
    rows = zip(*map(values_of, column.flatten()), strict=True) if names else [()] * len(column)
    valid = column.is_valid().to_pylist()
    return [_struct(names, row) if there else None for row, there in zip(rows, valid, strict=True)]


def _struct(names: list[str], row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(names, row, strict=True))
    if len(found) != len(names):
        raise ValueError(f"has two fields of one name among {', '.join(names)}")
    return found


def _lists(column: pa.Array) -> list[Any]:
    return [None if not row.is_valid else values_of(row.values) for row in column]


def _maps(column: pa.MapArray) -> list[Any]:
    rows = [None if not row.is_valid else values_of(row.values) for row in column]
    return [None if row is None else [list(each.values()) for each in row] for row in rows]


def decoded(column: pa.Array) -> pa.Array:
    """Return what a dictionary or runs stand for, row by row; any other column as it is."""
    if of.is_dictionary(column.type):
        if flat := _VIEWS.get(column.type.value_type):
            # Arrow takes no single values of views, as which polars keeps its categories.
            flattened = column.dictionary.cast(flat)
            column = pa.DictionaryArray.from_arrays(column.indices, flattened)
        return column.dictionary_decode()
    if of.is_run_end_encoded(column.type):
        if flat := _VIEWS.get(column.type.value_type):
            return pa.array(column.to_pylist(), flat)
        return pc.run_end_decode(column)
    return column


def _decoded(column: pa.Array) -> list[Any]:
    return values_of(decoded(column))


def _unions(column: pa.UnionArray) -> list[Any]:
    return [as_python(scalar.value) for scalar in column]


Taker = Callable[[Any], list[Any]]
_TAKEN: tuple[tuple[Callable[[pa.DataType], bool], Taker], ...] = (
    (of.is_timestamp, _timestamps),
    (of.is_date32, _days),
    (of.is_date64, _days_in_ms),
    (of.is_time, _times_of_day),
    (of.is_duration, _durations),
    (of.is_interval, _intervals),
    (of.is_decimal, _decimals),
    (of.is_map, _maps),
    (of.is_struct, _structs),
    (of.is_list, _lists),
    (of.is_large_list, _lists),
    (of.is_fixed_size_list, _lists),
    (of.is_list_view, _lists),
    (of.is_large_list_view, _lists),
    (of.is_dictionary, _decoded),
    (of.is_run_end_encoded, _decoded),
    (of.is_union, _unions),
)

"""Rows that are Python objects (decoded JSON, CSV rows, records) to checked columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker import values
from memworker.containers import record_of
from memworker.ingestion.readers.checked import CheckedRows, ReadOptions, column_faults, no_text
from memworker.ingestion.records import EXCERPT_CHARS, row_batch

RECORDS_PATH = "<records>"

_ABSENT: Any = object()
# Sorted as LanceDB gives it back: so that equal metadata are equal bytes.
_ENCODE = msgspec.json.Encoder(order="sorted").encode
_TYPE_NAMES = {**values.TYPE_NAMES, str: "a string", int: "a number", float: "a number"}
_LONE_SURROGATE = "holds a lone surrogate, which is no character"


@dataclass(frozen=True, slots=True)
class ObjectRows:
    """A block of decoded rows; a row with a known fault holds any object, best an empty one.

    `header` names the fields of all rows, where they have one; `paths` the input of each
    row, where it is not the same for all.
    """

    lines: npt.NDArray[np.int64]
    objects: list[Mapping[str, Any]]
    raw: Callable[[int], str]
    faults: dict[int, str] = field(default_factory=dict)
    not_utf8: str = _LONE_SURROGATE
    header: list[str] | None = None
    paths: list[str] | None = None


def with_fields(path: str, rows: ObjectRows, options: ReadOptions) -> ObjectRows:
    """Refuse rows that lack a field that must be there, as long as no row of the run had it.

    Raises MissingField as `read` says.
    """
    if options.fields_seen or (rows.header is None and len(rows.objects) <= len(rows.faults)):
        return rows
    present = set().union(*rows.objects) if rows.header is None else rows.header
    hint = _around_rows(rows.objects) if len(rows.objects) == 1 else ""
    fault = options.require_fields(path, present, len(rows.objects), hint)
    if not fault:
        return rows
    return replace(rows, faults=dict.fromkeys(range(len(rows.objects)), fault) | rows.faults)


def _around_rows(objects: list[Mapping[str, Any]]) -> str:
    """Say how to get at the rows where they stand within one object."""
    for name, value in objects[0].items():
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            return (
                f"Its field {name!r} holds a list of {len(value):,} objects: give those, one a"
                f" line: jq -c '.{name}[]'"
            )
    return ""


def checked_objects(path: str, rows: ObjectRows, options: ReadOptions) -> CheckedRows:
    """Turn decoded rows into checked columns; raises MissingField as `read` says."""
    rows = with_fields(path, rows, options)
    fields, objects, faults = options.fields, rows.objects, dict(rows.faults)
    column = _ColumnMaker(objects, faults, rows.not_utf8)
    texts = column.texts(fields.text)
    ids = column.strings(fields.id)
    scopes = {name: column.strings(scope, none="") for name, scope in fields.scopes}
    metadata = column.metadata(fields.used) if fields.metadata else None
    faults = column_faults(texts, ids, options, faults)
    batch = row_batch(rows.lines, texts, ids, scopes, metadata)
    if rows.paths is not None:
        batch = batch.append_column("path", pa.array(rows.paths, pa.string()))
    return CheckedRows(batch, rows.raw, faults)


def checked_records(
    records: Iterable[Any], options: ReadOptions, first: int = 1
) -> Iterator[CheckedRows]:
    """Yield the rows of Python records: strings, mappings and other rows with named fields."""
    iterator = iter(records)
    while taken := list(islice(iterator, options.batch_rows)):
        faults: dict[int, str] = {}
        objects = [_mapping(record, options, faults, i) for i, record in enumerate(taken)]
        lines = np.arange(first, first + len(taken), dtype=np.int64)
        rows = ObjectRows(lines, objects, partial(_shown, taken), faults)
        yield checked_objects(RECORDS_PATH, rows, options)
        first += len(taken)


def metadata_column(
    rest: list[dict[str, Any]], faults: dict[int, str], not_utf8: str = _LONE_SURROGATE
) -> pa.Array | None:
    """Write the fields that are left as JSON; None if no row has any. Adds to `faults`."""
    if not any(rest):
        return None
    encoded = [_encoded(row, i, faults, not_utf8) if row else None for i, row in enumerate(rest)]
    return pa.array(encoded, pa.string())


def _encoded(row: dict[str, Any], i: int, faults: dict[int, str], not_utf8: str) -> bytes | None:
    try:
        return _ENCODE(row if values.is_plain(row) else values.plain_mapping(row))
    except UnicodeError:
        faults.setdefault(i, f"a field for the metadata {not_utf8}")
    except values.Unsayable as error:
        faults.setdefault(i, f"the metadata cannot be written as JSON: {error}")
    return None


def type_name(value: object) -> str:
    """Name a value's type as JSON does; nan, as which pandas has what is missing, by itself."""
    if values.is_missing(value):
        return "null"
    if isinstance(value, float) and value != value:
        return "nan, as a missing value is"
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _mapping(
    record: object, options: ReadOptions, faults: dict[int, str], i: int
) -> Mapping[str, Any]:
    if isinstance(record, str):
        return {options.fields.text: values.exact_str(record)}
    row = record if type(record) is dict else record_of(record)
    if row is None:
        faults[i] = f"not a string or mapping but {type_name(record)}"
    elif not all(isinstance(key, str) for key in row):
        faults[i] = "a key is not a string"
    else:
        return row
    return {}


def _shown(records: list[Any], i: int) -> str:
    record = records[i]
    if isinstance(record, str):
        text = record[:EXCERPT_CHARS]
    else:
        text = values.shown(record, EXCERPT_CHARS)
    return text.encode(errors="replace").decode()


class _ColumnMaker:
    """Makes columns of objects; what is wrong with a row goes into `faults`, first one first."""

    def __init__(
        self, objects: list[Mapping[str, Any]], faults: dict[int, str], not_utf8: str
    ) -> None:
        self._objects = objects
        self._faults = faults
        self._not_utf8 = not_utf8

    def texts(self, name: str) -> pa.Array:
        found = [o.get(name, _ABSENT) for o in self._objects]
        if set(map(type, found)) != {str}:
            found = [self._text(name, i, v) for i, v in enumerate(found)]
        return self._array(name, found)

    def strings(self, name: str, none: str | None = None) -> pa.Array | None:
        """Make a column of strings or whole numbers; None if no row has one and `none` is None."""
        found = [o.get(name) for o in self._objects]
        types = set(map(type, found))
        if types == {type(None)} and none is None:
            return None
        if types != {str}:
            missing = values.is_missing
            found = [none if missing(v) else self._string(name, i, v) for i, v in enumerate(found)]
        return self._array(name, found)

    def metadata(self, used: frozenset[str]) -> pa.Array | None:
        rest = [{k: v for k, v in o.items() if k not in used} for o in self._objects]
        return metadata_column(rest, self._faults, self._not_utf8)

    def _text(self, name: str, i: int, value: Any) -> str | None:
        if isinstance(value, str):
            return values.exact_str(value)
        fault = no_text(name) if value is _ABSENT else _not_text(name, value)
        self._faults.setdefault(i, fault)
        return None

    def _string(self, name: str, i: int, value: Any) -> str | None:
        try:
            return values.id_text(value)
        except values.Unsayable as error:
            flaw = self._not_utf8 if isinstance(value, str) else str(error)
            self._faults.setdefault(i, f"field {name!r} {flaw}")
            return None

    def _array(self, name: str, found: list[Any]) -> pa.Array:
        try:
            return pa.array(found, pa.string())
        except UnicodeEncodeError:
            return pa.array([self._utf8(name, i, v) for i, v in enumerate(found)], pa.string())

    def _utf8(self, name: str, i: int, value: str | None) -> str | None:
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            self._faults.setdefault(i, f"field {name!r} {self._not_utf8}")
            return None
        return value


def _not_text(name: str, value: object) -> str:
    return f"field {name!r} is {type_name(value)}; a text must be a string"

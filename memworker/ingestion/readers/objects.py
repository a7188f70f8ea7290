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
from memworker.ingestion.fields import (
    ABSENT,
    Fields,
    Template,
    id_words_of,
    value_at,
    without,
    words_of,
)
from memworker.ingestion.readers.checked import (
    CheckedRows,
    ReadOptions,
    column_faults,
    no_text,
    templated,
)
from memworker.ingestion.readers.told import Findings
from memworker.ingestion.records import EXCERPT_CHARS, row_batch

RECORDS_PATH = "<records>"

_LOOKED_AT = 100
# Sorted as LanceDB gives it back: so that equal metadata are equal bytes.
_ENCODE = msgspec.json.Encoder(order="sorted").encode
_TYPE_NAMES = {**values.TYPE_NAMES, str: "a string", int: "a number", float: "a number"}
LONE_SURROGATE = "holds a lone surrogate, which is no character"


@dataclass(frozen=True, slots=True)
class ObjectRows:
    """A block of decoded rows; a row with a known fault holds any object, best an empty one.

    `header` names the fields of all rows, where they have one, and `hint` says what to do
    where one is not among them; `paths` the input of each
    row, where it is not the same for all.
    """

    lines: npt.NDArray[np.int64]
    objects: list[Mapping[str, Any]]
    raw: Callable[[int], str]
    faults: dict[int, str] = field(default_factory=dict)
    not_utf8: str = LONE_SURROGATE
    header: list[str] | None = None
    hint: str = ""
    paths: list[str] | None = None

    def within(self, partition: Mapping[str, str | None]) -> ObjectRows:
        """Give the same rows with what their folder says of all; their own fields go before it."""
        partition = {name: value for name, value in partition.items() if value is not None}
        header = None
        if self.header is not None:
            header = [*self.header, *(name for name in partition if name not in self.header)]
        return replace(self, objects=[{**partition, **o} for o in self.objects], header=header)


def with_fields(path: str, rows: ObjectRows, options: ReadOptions) -> ObjectRows:
    """Refuse rows that lack a field that must be there, as long as no row of the run had it.

    Raises MissingField as `read` says.
    """
    if options.fields_seen or (rows.header is None and len(rows.objects) <= len(rows.faults)):
        return rows
    names = present(rows, options.fields.required)
    if not names.issuperset(options.fields.required):
        names |= _nested(rows.objects)
    hint = rows.hint or (_around_rows(rows.objects) if len(rows.objects) == 1 else "")
    fault = options.require_fields(path, names, len(rows.objects), hint)
    if not fault:
        return rows
    return replace(rows, faults=dict.fromkeys(range(len(rows.objects)), fault) | rows.faults)


def present(rows: ObjectRows, wanted: Iterable[str]) -> set[str]:
    """Return the fields of rows, and those within others that are wanted and there."""
    names = set(rows.header) if rows.header else set().union(*rows.objects)
    for name in set(wanted) - names:
        if any(value_at(each, name) is not ABSENT for each in rows.objects):
            names.add(name)
    return names


def _nested(objects: list[Mapping[str, Any]]) -> set[str]:
    """Name the fields of objects within the first rows, as they can be asked for."""
    return {
        f"{name}.{inner}"
        for each in objects[:_LOOKED_AT]
        for name, value in each.items()
        if isinstance(value, Mapping)
        for inner in value
    }


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
    texts = column.texts(fields.text) if fields.composed is None else column.composed(options)
    ids = column.ids(fields)
    scopes = {name: column.strings(scope, none="") for name, scope in fields.scopes}
    metadata = column.metadata(fields, options) if fields.metadata else None
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
    rest: list[dict[str, Any]], faults: dict[int, str], not_utf8: str, told: Findings
) -> pa.Array | None:
    """Write the fields that are left as JSON; None if no row has any. Adds to `faults`."""
    if not any(rest):
        return None
    encoded = [
        _encoded(row, i, faults, not_utf8, told) if row else None for i, row in enumerate(rest)
    ]
    return pa.array(encoded, pa.string())


def _encoded(
    row: dict[str, Any], i: int, faults: dict[int, str], not_utf8: str, told: Findings
) -> bytes | None:
    try:
        return _ENCODE(row if values.is_plain(row) else values.plain_mapping(row))
    except values.NotFinite:
        # Programs write them for what is missing; they are not worth a row.
        nulled = {name: values.with_nulls(value) for name, value in row.items()}
        found = _encoded(nulled, i, faults, not_utf8, told) if i not in faults else None
        if found is not None:
            told.nulled([name for name, value in row.items() if not values.has_finite(value)])
        return found
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
        return {options.fields.lone_text: values.exact_str(record)}
    row = record if type(record) is dict else record_of(record)
    if row is None:
        faults[i] = f"not a string or mapping but {type_name(record)}{_names_for(record)}"
    elif not all(isinstance(key, str) for key in row):
        faults[i] = "a key is not a string"
    else:
        return row
    return {}


def _names_for(record: object) -> str:
    """Say how the values of a row get their names, where it is a sequence of them."""
    if not isinstance(record, tuple | list):
        return ""
    if len(record) == 2 and hasattr(record[1], "to_dict"):
        return ", as frame.iterrows() gives it; give the frame itself, or frame.to_dict('records')"
    return "; give each row its names: dict(zip(names, row))"


def _shown(records: list[Any], i: int) -> str:
    record = records[i]
    if isinstance(record, str):
        text = record[:EXCERPT_CHARS]
    else:
        text = values.shown(record, EXCERPT_CHARS)
    return text.encode(errors="replace").decode()


def composed_texts(
    columns: Mapping[str, list[Any]], options: ReadOptions, faults: dict[int, str]
) -> list[str | None]:
    """Make each row's text of the values of several fields; adds to `faults`, and counts gaps."""
    composed = options.fields.composed
    assert composed is not None
    texts: list[str | None] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        found = _words(columns, row, words_of, i, faults)
        lacking = [name for name in columns if not found.get(name, "").strip()]
        if i in faults:
            texts.append(None)
        elif len(lacking) == len(columns):
            faults[i] = f"none of the fields of the text has a value: {', '.join(columns)}"
            texts.append(None)
        else:
            if lacking:
                options.told.lacking(lacking)
            texts.append(composed.filled(found))
    return texts


def composed_ids(
    columns: Mapping[str, list[Any]], template: Template, faults: dict[int, str]
) -> list[str | None]:
    """Make each row's id of the values of several fields; adds to `faults`."""
    ids: list[str | None] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        found = _words(columns, row, id_words_of, i, faults)
        lacking = [name for name in columns if not found.get(name)]
        if i not in faults and lacking:
            faults[i] = f"field {lacking[0]!r} has no value, and the id is made of it"
        ids.append(None if i in faults else template.filled(found))
    return ids


def _words(
    names: Iterable[str],
    row: tuple[Any, ...],
    words: Callable[[Any], str | None],
    i: int,
    faults: dict[int, str],
) -> dict[str, str]:
    found = {}
    for name, value in zip(names, row, strict=True):
        try:
            text = words(value)
        except values.Unsayable as error:
            faults.setdefault(i, f"field {name!r} {error}")
            continue
        if text is not None:
            found[name] = text
    return found


class _ColumnMaker:
    """Makes columns of objects; what is wrong with a row goes into `faults`, first one first."""

    def __init__(
        self, objects: list[Mapping[str, Any]], faults: dict[int, str], not_utf8: str
    ) -> None:
        self._objects = objects
        self._faults = faults
        self._not_utf8 = not_utf8

    def _found(self, name: str) -> list[Any]:
        found = [o.get(name, ABSENT) for o in self._objects]
        if "." in name:
            found = [
                value_at(o, name) if v is ABSENT else v
                for o, v in zip(self._objects, found, strict=True)
            ]
        return found

    def texts(self, name: str) -> pa.Array:
        found = self._found(name)
        if set(map(type, found)) != {str}:
            found = [self._text(name, i, v) for i, v in enumerate(found)]
        return self._array(name, found)

    def strings(self, name: str, none: str | None = None) -> pa.Array | None:
        """Make a column of strings or whole numbers; None if no row has one and `none` is None."""
        found = [None if v is ABSENT else v for v in self._found(name)]
        types = set(map(type, found))
        if types == {type(None)} and none is None:
            return None
        if types != {str}:
            missing = values.is_missing
            found = [none if missing(v) else self._string(name, i, v) for i, v in enumerate(found)]
        return self._array(name, found)

    def composed(self, options: ReadOptions) -> pa.Array:
        """Make texts of several fields; a row in which none has a value is refused."""
        columns = {name: self._found(name) for name in options.fields.texts}
        texts = composed_texts(columns, options, self._faults)
        return self._array(", ".join(columns), texts)

    def ids(self, fields: Fields) -> pa.Array | None:
        """Make ids of the field, or of the template, that holds them."""
        template = fields.id_template
        return self.strings(fields.id) if template is None else self.composed_ids(template)

    def composed_ids(self, template: Template) -> pa.Array:
        """Make ids of several fields; a row in which one has no value is refused."""
        columns = {name: self._found(name) for name in template.names}
        return self._array(", ".join(columns), composed_ids(columns, template, self._faults))

    def metadata(self, fields: Fields, options: ReadOptions) -> pa.Array | None:
        if isinstance(fields.metadata, tuple):
            rest: list[dict[str, Any]] = [{} for _ in self._objects]
            for name in fields.metadata:
                for row, value in zip(rest, self._found(name), strict=True):
                    if value is not ABSENT:
                        row[name] = value
                        options.metadata_seen.add(name)
            for each in self._objects[:_LOOKED_AT]:
                options.fields_there.update(dict.fromkeys(each))
            return metadata_column(rest, self._faults, self._not_utf8, options.told)
        used = fields.used
        if any("." in name for name in used):
            rest = [without(o, used) for o in self._objects]
        else:
            rest = [{k: v for k, v in o.items() if k not in used} for o in self._objects]
        return metadata_column(rest, self._faults, self._not_utf8, options.told)

    def _text(self, name: str, i: int, value: Any) -> str | None:
        if isinstance(value, str):
            return values.exact_str(value)
        fault = no_text(name) if value is ABSENT else _not_text(name, value)
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
    hint = templated(name) if values.number(value) is not None else ""
    return f"field {name!r} is {type_name(value)}; a text must be a string{hint}"

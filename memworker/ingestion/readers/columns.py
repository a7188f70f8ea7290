"""Texts, ids and metadata taken out of the columns of a record batch; a bad value costs its row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from memworker import values
from memworker.arrow_values import as_python, decoded, values_of
from memworker.errors import InputError
from memworker.ingestion.fields import Fields, Template, splits, without
from memworker.ingestion.readers.checked import (
    ReadOptions,
    no_text,
    templated,
)
from memworker.ingestion.readers.objects import (
    composed_ids,
    composed_texts,
    metadata_column,
)


class ColumnTaker:
    """Takes columns of a record batch; what is wrong with a row goes into `faults`."""

    def __init__(self, path: str, batch: pa.RecordBatch, faults: dict[int, str]) -> None:
        self._path = path
        self._batch = batch
        self._faults = faults

    def texts(self, name: str) -> pa.Array:
        column = self._column(name, integers=False)
        fault = no_text(name) if column is None else f"field {name!r} is null"
        if column is None:
            column = pa.nulls(self._batch.num_rows, pa.string())
        if column.null_count:
            for i in pc.indices_nonzero(column.is_null()).to_pylist():
                self._faults.setdefault(i, fault)
        return column

    def strings(self, name: str) -> pa.Array | None:
        return self._column(name, integers=True)

    def composed(self, options: ReadOptions) -> pa.Array:
        """Make texts of several columns; a row in which none has a value is refused."""
        columns = {name: self._values(name) for name in options.fields.texts}
        return pa.array(composed_texts(columns, options, self._faults), pa.string())

    def ids(self, fields: Fields) -> pa.Array | None:
        """Make ids of the field, or of the template, that holds them."""
        template = fields.id_template
        return self.strings(fields.id) if template is None else self.composed_ids(template)

    def composed_ids(self, template: Template) -> pa.Array:
        """Make ids of several columns; a row in which one has no value is refused."""
        columns = {name: self._values(name) for name in template.names}
        return pa.array(composed_ids(columns, template, self._faults), pa.string())

    def metadata(self, fields: Fields, options: ReadOptions) -> pa.Array | None:
        names: Iterable[str] = self._batch.schema.names
        if isinstance(fields.metadata, tuple):
            options.fields_there.update(dict.fromkeys(names))
            names = [name for name in fields.metadata if self._at(name) is not None]
            options.metadata_seen.update(names)
        else:
            names = [name for name in names if name not in fields.used]
        if not names:
            return None
        columns = [(name, self._values(name)) for name in names]
        rest: list[dict[str, Any]] = [{} for _ in range(self._batch.num_rows)]
        for name, found in columns:
            for row, value in zip(rest, found, strict=True):
                if value is not None:
                    row[name] = value
        if fields.metadata is True and any("." in name for name in fields.used):
            rest = [without(row, fields.used) for row in rest]
        return metadata_column(rest, self._faults, "is not valid UTF-8", options.told)

    def _at(self, name: str) -> pa.Array | None:
        """Find a column, or one within structs and maps; None where it is not there."""
        steps = inside(self._batch.schema, name)
        if steps is None:
            return None
        column = self._batch.column(steps[0])
        for step in steps[1:]:
            if isinstance(step, str):
                column = pc.map_lookup(column, pa.scalar(step), "first")
            else:
                # Not the child alone: that has values where the struct itself is null.
                column = pc.struct_field(column, [step])
        return column

    def _values(self, name: str) -> list[Any]:
        """Take a column's values; what Arrow cannot give costs its row, not the file."""
        column = self._at(name)
        if column is None:
            return [None] * self._batch.num_rows
        try:
            return values_of(column)
        except (ValueError, OverflowError, pa.ArrowException):
            return [self._value(name, i, scalar) for i, scalar in enumerate(column)]

    def _value(self, name: str, i: int, scalar: pa.Scalar) -> Any:
        try:
            return as_python(scalar)
        except UnicodeDecodeError:
            self._faults.setdefault(i, "a field for the metadata is not valid UTF-8")
        except (ValueError, OverflowError, pa.ArrowException) as error:
            self._faults.setdefault(i, f"field {name!r} cannot be written as JSON: {error}")
        return None

    def _column(self, name: str, *, integers: bool) -> pa.Array | None:
        found = self._at(name)
        if found is None:
            return None
        column = decoded(found)
        kind = column.type
        if pa.types.is_null(kind):
            return None if integers else column.cast(pa.string())
        if integers and pa.types.is_integer(kind):
            return column.cast(pa.string())
        if integers and _can_be_an_id(kind):
            return self._ids(name, column)
        if not is_stringlike(kind):
            wanted = "strings or whole numbers" if integers else "strings"
            if not integers and pa.types.is_primitive(kind):
                wanted += templated(name)
            raise InputError(f"{self._path}: column {name!r} is {kind}; it must be {wanted}")
        return self._valid_utf8(name, column)

    def _ids(self, name: str, column: pa.Array) -> pa.Array:
        uuids = isinstance(column.type, pa.BaseExtensionType)
        found = values_of(column) if uuids else column.to_pylist()
        ids = [None if v is None else self._id(name, i, v) for i, v in enumerate(found)]
        return pa.array(ids, pa.string())

    def _id(self, name: str, i: int, value: Any) -> str | None:
        if isinstance(value, bytes):
            # Sixteen bytes are what databases keep of a UUID.
            return str(UUID(bytes=value)) if len(value) == 16 else value.hex()
        try:
            return values.id_text(value)
        except values.Unsayable as error:
            self._faults.setdefault(i, f"field {name!r} {error}")
            return None

    def _valid_utf8(self, name: str, column: pa.Array) -> pa.Array:
        try:
            strings = column.cast(pa.string())
            # Arrow files may hold anything in a string column: it is not checked on reading.
            strings.validate(full=True)
        except pa.ArrowInvalid:
            values = column.cast(pa.binary()).to_pylist()
            return pa.array([self._utf8(name, i, v) for i, v in enumerate(values)], pa.string())
        return strings

    def _utf8(self, name: str, i: int, value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            self._faults.setdefault(i, f"field {name!r} is not valid UTF-8")
            return None


def _can_be_an_id(kind: pa.DataType) -> bool:
    """Tell types of which some values are ids: floats and decimals, and bytes of one length."""
    extension = getattr(kind, "extension_name", "")
    tests = (pa.types.is_floating, pa.types.is_decimal, pa.types.is_fixed_size_binary)
    return extension == "arrow.uuid" or any(test(kind) for test in tests)


def is_stringlike(kind: pa.DataType) -> bool:
    """Tell a type whose values are text, or bytes of it."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(test(kind) for test in tests)


def inside(fields: Any, name: str) -> list[Any] | None:
    """Find the steps to a field within structs and maps; None where it is not there.

    `fields` is a schema or the type of a struct.
    """
    at = fields.get_field_index(name)
    if at >= 0:
        return [at]
    for head, rest in splits(name):
        at = fields.get_field_index(head)
        if at < 0:
            continue
        kind = fields.field(at).type
        if pa.types.is_struct(kind) and (steps := inside(kind, rest)) is not None:
            return [at, *steps]
        if pa.types.is_map(kind) and pa.types.is_string(kind.key_type):
            return [at, rest]
    return None

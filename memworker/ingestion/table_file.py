"""A table's rows to a file that other programs read, and that ingests as the same rows.

The fields of the metadata stand beside the id and the text, as `ingest` takes them up again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from memworker import values
from memworker.errors import StoreError, UsageError
from memworker.ingestion.fields import SCOPE_COLUMNS
from memworker.ingestion.vectors_file import MARK, is_vectors_file
from memworker.paths import DatabaseGiven, PathGiven, used_path
from memworker.store import CHUNK_FIELDS, Output, Table, disk_errors

FORMATS = ("parquet", "jsonl", "csv")
_TIMES = ("created_at", "updated_at")
# Of a table of chunks: without them nothing tells of which text a row is a part, and which one.
_PLACES = {field.name: field.type for field in CHUNK_FIELDS if field.name != "last_chunk"}
_KINDS: dict[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and where; `path` is "-" for standard output."""

    table: str
    path: str
    format: str
    rows: int
    columns: tuple[str, ...]
    # Fields of the metadata that are called like a column beside them, and what they became.
    renamed: Mapping[str, str] = field(default_factory=dict)


def export_table(
    db: DatabaseGiven,
    table: str,
    output: PathGiven | IO[bytes],
    *,
    storage_options: Mapping[str, str] | None = None,
    format: str | None = None,
    where: Mapping[str, Any] | None = None,
    vectors: bool = False,
    times: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write the rows of one version of a table to a .parquet, .jsonl or .csv file, as they come.

    `format` is told by the suffix, if it is not given; `output` may be an open binary file, too.
    `where` chooses rows; expired and superseded ones are left out. The columns are id and text,
    the scopes that any row has, of a table of chunks their parents and places, the fields of the
    metadata, and with `vectors` and `times` these. A field of the metadata that is called like
    a column beside it gets a number (`id_2`), and is told as `renamed`.
    JSON lines hold all that metadata can be; parquet needs one kind of value a field, csv has
    text alone. The file appears when it is whole.
    Raises UsageError, TableNotFound, StoreError, StoreUnwritable.
    """
    opened, target = Table.open(db, table, storage_options=storage_options), None
    if not hasattr(output, "write"):
        chosen = _format(format, used_path(output, "--output"))
        target = Output.checked(output, "--output", _is_ours, overwrite=overwrite)
    else:
        chosen = _format(format, None)
    plan = _planned(opened, where, vectors, times, of_columns=chosen != "jsonl")
    kind = _WRITERS[chosen]
    if target is None:
        rows = _written(opened, plan, kind(output, plan))
        return Exported(table, "-", chosen, rows, plan.names, plan.renamed)
    with disk_errors(target.path, "It is as it was. Make room, or name another file"):
        with target.written() as file:
            rows = _written(opened, plan, kind(file, plan))
    return Exported(table, str(target.path), chosen, rows, plan.names, plan.renamed)


def _is_ours(path: Path) -> bool:
    return is_vectors_file(path)


def _format(given: str | None, path: Path | None) -> str:
    if given is not None:
        return values.checked_choice("format (--to)", given, FORMATS)
    suffix = "" if path is None else path.suffix[1:].lower()
    if suffix not in FORMATS:
        raise UsageError(f"say as what to write it: --to {', '.join(FORMATS)} (format=)")
    return suffix


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is read and written; `fields` are those of the metadata, with Arrow's type of each."""

    where: Mapping[str, Any] | None
    own: tuple[str, ...]
    fields: dict[str, pa.DataType]
    renamed: dict[str, str]
    vectors: int

    @property
    def names(self) -> tuple[str, ...]:
        fields = (self.renamed.get(name, name) for name in self.fields)
        return (*self.own, *fields, *(("vector",) if self.vectors else ()))

    @property
    def read(self) -> tuple[str, ...]:
        return (*self.own, "metadata", *(("vector",) if self.vectors else ()))


def _planned(
    table: Table, where: Mapping[str, Any] | None, vectors: bool, times: bool, *, of_columns: bool
) -> _Layout:
    """Look at all metadata once: columns must be known before the first row."""
    scopes: set[str] = set()
    kinds: dict[str, set[type]] = {}
    columns = (*SCOPE_COLUMNS, "metadata")
    for batch in table.scan(where, columns=columns, visible_only=True):
        for name in set(SCOPE_COLUMNS) - scopes:
            if any(batch[name].to_pylist()):
                scopes.add(name)
        for row in _objects(batch):
            for name, value in row.items():
                kinds.setdefault(name, set()).add(type(value))
    own = ("id", "text", *(name for name in SCOPE_COLUMNS if name in scopes))
    own = (*own, *(_PLACES if table.chunking else ()), *(_TIMES if times else ()))
    taken = {*own, "text", "id", *(("vector",) if vectors else ())}
    found = {name: _type_of(name, kinds[name], of_columns) for name in sorted(kinds)}
    renamed = _renamed(taken, found)
    return _Layout(where, own, found, renamed, table.space.dim if vectors else 0)


def _renamed(taken: set[str], fields: Iterable[str]) -> dict[str, str]:
    """Give a number to each field that is called like a column of the table."""
    used = taken | set(fields)
    names = {}
    for name in sorted(taken & set(fields)):
        names[name] = next(new for n in count(2) if (new := f"{name}_{n}") not in used)
        used.add(names[name])
    return names


def _type_of(name: str, kinds: set[type], of_columns: bool) -> pa.DataType:
    said = kinds - {type(None)}
    if said == {int, float}:
        said = {float}
    if len(said) <= 1 and said <= set(_KINDS):
        return _KINDS[said.pop()] if said else pa.null()
    if of_columns:
        what = "values of several kinds" if len(said) > 1 else "lists or objects"
        raise UsageError(
            f"the field {name!r} of the metadata has {what}, which a column does not hold;"
            " --to jsonl (format='jsonl') does"
        )
    return pa.null()


def _objects(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for text in batch["metadata"].to_pylist():
        yield json.loads(text) if text else {}


class _Writer(Protocol):
    def write(self, batch: pa.RecordBatch, metadata: list[dict[str, Any]]) -> None: ...
    def close(self) -> None: ...


def _written(table: Table, plan: _Layout, writer: _Writer) -> int:
    rows = 0
    for batch in table.scan(plan.where, columns=plan.read, visible_only=True):
        metadata = list(_objects(batch))
        _must_be_planned(table, plan, metadata)
        writer.write(batch, metadata)
        rows += len(batch)
    writer.close()
    return rows


def _must_be_planned(table: Table, plan: _Layout, metadata: list[dict[str, Any]]) -> None:
    unknown = set().union(*metadata) - plan.fields.keys() if metadata else set()
    if unknown:
        raise StoreError(
            f"table {table.name!r} was written to meanwhile, and its metadata has a new field,"
            f" {min(unknown)!r}; nothing was exported, run the command again"
        )


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _is_said(name: str, value: Any) -> bool:
    return value is not None if name in _PLACES else bool(value) or name not in SCOPE_COLUMNS


class _Lines:
    """One JSON object a row; a scope, parent or place that a row has not is left out."""

    def __init__(self, file: IO[bytes], plan: _Layout) -> None:
        self._file, self._plan = file, plan

    def write(self, batch: pa.RecordBatch, metadata: list[dict[str, Any]]) -> None:
        own = batch.select(self._plan.own).to_pylist()
        vectors = batch["vector"].to_pylist() if self._plan.vectors else None
        lines, renamed = [], self._plan.renamed
        for i, row in enumerate(own):
            told = {k: _plain(v) for k, v in row.items() if _is_said(k, v)}
            told |= {renamed.get(k, k): v for k, v in metadata[i].items()}
            if vectors is not None:
                told["vector"] = vectors[i]
            lines.append(json.dumps(told, ensure_ascii=False))
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        self._file.flush()


class _CellWriter:
    """CSV under a header; what a row has not is an empty cell."""

    def __init__(self, file: IO[bytes], plan: _Layout) -> None:
        self._file, self._plan = file, plan
        self._put([list(plan.names)])

    def write(self, batch: pa.RecordBatch, metadata: list[dict[str, Any]]) -> None:
        own = [batch[name].to_pylist() for name in self._plan.own]
        rows = [[_cell(column[i]) for column in own] for i in range(len(batch))]
        for row, fields in zip(rows, metadata, strict=True):
            row += [_cell(fields.get(name)) for name in self._plan.fields]
        if self._plan.vectors:
            for row, vector in zip(rows, batch["vector"].to_pylist(), strict=True):
                row.append(json.dumps(vector))
        self._put(rows)

    def _put(self, rows: list[list[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def close(self) -> None:
        self._file.flush()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value) if isinstance(value, bool | int | float) else str(_plain(value))


def _own_type(name: str) -> pa.DataType:
    if name in _TIMES:
        return pa.timestamp("us", "UTC")
    return _PLACES.get(name, pa.string())


class _Parquet:
    """Columns of Arrow's types; what a row has not is null."""

    def __init__(self, file: IO[bytes], plan: _Layout) -> None:
        self._plan, self._rows = plan, 0
        fields = ((plan.renamed.get(name, name), kind) for name, kind in plan.fields.items())
        columns = [*((name, _own_type(name)) for name in plan.own), *fields]
        if plan.vectors:
            columns.append(("vector", pa.list_(pa.float32(), plan.vectors)))
        self._schema = pa.schema([pa.field(name, kind) for name, kind in columns])
        self._writer: Any = pq.ParquetWriter(file, self._schema)

    def write(self, batch: pa.RecordBatch, metadata: list[dict[str, Any]]) -> None:
        columns = [batch[name].cast(self._schema.field(name).type) for name in self._plan.own]
        for name, kind in self._plan.fields.items():
            columns.append(pa.array([row.get(name) for row in metadata], kind))
        if self._plan.vectors:
            columns.append(batch["vector"].cast(self._schema.field("vector").type))
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows += len(batch)

    def close(self) -> None:
        self._writer.add_key_value_metadata({MARK: str(self._rows)})
        self._writer.close()


_WRITERS: dict[str, Callable[[Any, _Layout], _Writer]] = {
    "jsonl": _Lines,
    "csv": _CellWriter,
    "parquet": _Parquet,
}

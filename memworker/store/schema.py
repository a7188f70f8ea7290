"""What a row is: the columns, the vector space in the vector field's metadata, batches of rows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memworker.chunking import Chunking
from memworker.errors import BadVector, StoreError, TableMismatch, UsageError
from memworker.json_lines import without_doubles
from memworker.store.keys import dedup_keys as make_dedup_keys, string_array
from memworker.store.space import VectorSpace
from memworker.values import plain_mapping
from memworker.vectors import bad_vectors

SCHEMA_VERSION = 1
SCOPES = ("user_id", "agent_id", "run_id")

Vectors = npt.NDArray[np.float32]
Rows = TypeVar("Rows", bound=Any)

_PREFIX = "memworker."
_DURABLE = "durable"
_CHUNKING = "chunking"
# What set_unenforced_primary_key("id") would write in a second commit; it wants the
# column non-null in the table and in every batch.
_PRIMARY_KEY = {"lance-schema:unenforced-primary-key:position": "1"}
_TIMESTAMP = pa.timestamp("us", tz="UTC")
# What a table of chunks has beside the other columns; null in a row that is no chunk. Each may be
# null, so that rows without them can be added.
CHUNK_FIELDS = (
    pa.field("parent_id", pa.string()),
    pa.field("chunk", pa.int32()),
    pa.field("char_start", pa.int64()),
    pa.field("char_end", pa.int64()),
    pa.field("last_chunk", pa.bool_()),
    pa.field("context", pa.string()),
)
CHUNK_COLUMNS = tuple(field.name for field in CHUNK_FIELDS)


def table_schema(
    dim: int, field_metadata: Mapping[str, str] | None = None, *, chunks: bool = False
) -> pa.Schema:
    """Return the columns of a table, or of a batch, of `dim`-dimensional vectors."""
    return _made_schema(dim, field_metadata, chunks) if field_metadata else _batch(dim, chunks)


@lru_cache(maxsize=64)
def _batch(dim: int, chunks: bool) -> pa.Schema:
    return _made_schema(dim, None, chunks)


def _made_schema(dim: int, field_metadata: Mapping[str, str] | None, chunks: bool) -> pa.Schema:
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_PRIMARY_KEY),
            pa.field("dedup_key", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), metadata=field_metadata),
            pa.field("metadata", pa.json_()),
            *(pa.field(name, pa.string(), nullable=False) for name in SCOPES),
            pa.field("created_at", _TIMESTAMP, nullable=False),
            pa.field("updated_at", _TIMESTAMP, nullable=False),
            pa.field("expires_at", _TIMESTAMP),
            pa.field("superseded_at", _TIMESTAMP),
            *(CHUNK_FIELDS if chunks else ()),
        ]
    )


def new_field_metadata(
    space: VectorSpace,
    identity: str | None = None,
    *,
    durable: bool = False,
    chunking: Chunking | None = None,
) -> dict[str, str]:
    """Return the vector field's metadata for a table that is about to be made.

    A table that stays the same one under new vectors keeps its `identity`. Each commit to
    a `durable` one is forced to the disk, by any writer.
    """
    facts = {key: str(value) for key, value in asdict(space).items()}
    facts |= {
        "active": "true",
        "schema_version": str(SCHEMA_VERSION),
        # A table dropped and made again under its name is another table.
        "identity": identity or uuid.uuid4().hex,
    }
    if durable:
        facts[_DURABLE] = "true"
    if chunking is not None:
        facts[_CHUNKING] = chunking.facts()
    return {_PREFIX + key: value for key, value in facts.items()}


def durability(durable: bool) -> dict[str, str | None]:
    """Return the change of the vector field's metadata that makes a table durable, or not."""
    return {_PREFIX + _DURABLE: "true" if durable else None}


def is_durable(schema: pa.Schema) -> bool:
    """Tell whether each commit to the table is forced to the disk."""
    return (schema.field("vector").metadata or {}).get((_PREFIX + _DURABLE).encode()) == b"true"


def has_chunks(schema: pa.Schema) -> bool:
    """Tell whether a table's rows may be chunks of texts."""
    return "parent_id" in schema.names and all(name in schema.names for name in CHUNK_COLUMNS)


def read_chunking(schema: pa.Schema) -> Chunking | None:
    """Return how the texts of a table were cut, or None where its rows are whole texts."""
    facts = (schema.field("vector").metadata or {}).get((_PREFIX + _CHUNKING).encode())
    if facts is None or not has_chunks(schema):
        return None
    try:
        return Chunking.of_facts(facts.decode())
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise TableMismatch(
            f"what the table says of its chunks cannot be read: {facts!r}: {error}"
        ) from error


def embedded_texts(rows: pa.Table | pa.RecordBatch) -> pa.Array | pa.ChunkedArray:
    """Return what the vectors of rows are made of: their texts, behind their context."""
    if "context" not in rows.schema.names or rows["context"].null_count == rows.num_rows:
        return rows["text"]
    before = pc.if_else(
        pc.equal(pc.binary_length(rows["context"]), 0),
        "",
        pc.binary_join_element_wise(rows["context"], "\n\n", ""),
    )
    return pc.binary_join_element_wise(pc.fill_null(before, ""), rows["text"], "")


def is_ours(schema: pa.Schema) -> bool:
    """Tell whether memworker made a table, by any sign of it, for some may be damaged."""
    prefix = _PREFIX.encode()
    return any(key.startswith(prefix) for field in schema for key in field.metadata or {})


def read_field_metadata(schema: pa.Schema, table: str) -> tuple[VectorSpace, str]:
    """Return the vector space and the identity that a table was made with."""
    field = schema.field("vector") if "vector" in schema.names else pa.field("vector", pa.null())
    raw = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    facts = {k.removeprefix(_PREFIX): v for k, v in raw.items() if k.startswith(_PREFIX)}
    try:
        space = VectorSpace(
            model=facts["model"],
            precision=facts["precision"],
            max_tokens=int(facts["max_tokens"]),
            dim=int(facts["dim"]),
            fingerprint=facts["fingerprint"],
            distance=facts["distance"],
        )
        version, identity = int(facts["schema_version"]), facts["identity"]
    except (KeyError, ValueError) as error:
        raise TableMismatch(
            f"table {table!r} was not made by memworker (its vector field lacks {error}); "
            "use another table name"
        ) from error
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"table {table!r} has schema version {version}, this memworker knows "
            f"{SCHEMA_VERSION}; use a newer memworker"
        )
    return space, identity


def records(
    ids: pa.Array | None,
    texts: pa.Array,
    vectors: Vectors,
    *,
    scopes: Mapping[str, pa.Array | str] | None = None,
    metadata_json: pa.Array | None = None,
    dedup_keys: pa.Array | None = None,
    created_at: pa.Array | datetime | None = None,
    updated_at: pa.Array | datetime | None = None,
    expires_at: pa.Array | datetime | None = None,
    superseded_at: pa.Array | datetime | None = None,
) -> pa.Table:
    """Build a batch of rows from columns; the vectors are not copied.

    `vectors` is float32[n, dim]. `ids` may be None, or hold nulls: such a row's
    id is its `dedup_key`. `scopes` maps user_id, agent_id and run_id to an
    array or to one string for all rows. `metadata_json` holds one JSON object
    a row, or null, and is checked. Times default to now (UTC) or, for the last two, to none.
    Raises UsageError when the lengths differ.
    """
    texts, scopes = string_array(texts), dict(scopes or {})
    n = len(texts)
    scope_columns = {name: _filled(scopes.pop(name, ""), n) for name in SCOPES}
    if scopes:
        raise UsageError(f"unknown scopes {sorted(scopes)}; there are {', '.join(SCOPES)}")
    if dedup_keys is None:
        dedup_keys = make_dedup_keys(texts, *scope_columns.values())
    now = datetime.now(UTC)
    columns = {
        "id": dedup_keys if ids is None else _or_key(ids, dedup_keys),
        "dedup_key": dedup_keys,
        "text": texts,
        "vector": vector_array(vectors),
        "metadata": _json_array(metadata_json, n),
        **scope_columns,
        "created_at": _times(created_at or now, n),
        "updated_at": _times(updated_at or created_at or now, n),
        "expires_at": _times(expires_at, n),
        "superseded_at": _times(superseded_at, n),
    }
    _check_lengths(columns, n)
    schema = table_schema(vectors.shape[1])
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def conform(batch: pa.Table | pa.RecordBatch, dim: int, *, chunks: bool = False) -> pa.Table:
    """Return `batch` with exactly a table's columns, in its order and types.

    Columns that may be null may be missing. Raises UsageError for a missing or
    unknown column, a null where there must be none, or vectors of another size.
    """
    schema = table_schema(dim, chunks=chunks)
    if isinstance(batch, pa.RecordBatch):
        batch = pa.Table.from_batches([batch])
    if batch.schema == schema:
        return batch
    unknown = [name for name in batch.column_names if name not in schema.names]
    if unknown:
        raise UsageError(f"unknown columns {unknown}; a table has {', '.join(schema.names)}")
    columns = [_conform_column(batch, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def json_column(objects: pa.Array) -> pa.Array:
    """Give texts that are known to be JSON objects the type of a table's metadata."""
    return pa.ExtensionArray.from_storage(pa.json_(), objects)


def readable(rows: Rows) -> Rows:
    """Give rows for any reader of Arrow: the metadata as text, for not all know Arrow's JSON."""
    place = rows.schema.get_field_index("metadata")
    if place < 0 or rows.schema.field(place).type == pa.string():
        return rows
    field = pa.field("metadata", pa.string())
    told: Rows = rows.set_column(place, field, rows.column(place).cast(pa.string()))
    return told


def widen(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Add the columns that a table has beyond ours, as nulls.

    A merge would otherwise keep what the replaced row had there: the vector of another text.
    Raises StoreError where such a column takes no null, or one of ours is gone.
    """
    if rows.column_names == schema.names:
        return rows
    if missing := [name for name in rows.column_names if name not in schema.names]:
        raise StoreError(
            f"the table has lost {', '.join(missing)}, which memworker writes; another program has"
            " dropped or renamed that. Go back to a version that has it, or use another table"
        )
    for field in schema:
        if field.name not in rows.column_names:
            if rows.num_rows and not field.nullable:
                raise StoreError(
                    f"another program gave the table the column {field.name!r}, {field.type}, which"
                    " takes no null, and memworker has no value for it. With LanceDB let it take"
                    f" nulls, alter_columns({{'path': {field.name!r}, 'nullable': True}}), or drop"
                    " it"
                )
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def refuse_bad_vectors(rows: pa.Table, dim: int) -> None:
    """Raise BadVector, naming the first row of those that `bad_vectors` finds."""
    bad = bad_vectors(vectors_of(rows["vector"], dim))
    if len(bad):
        first = rows["id"][int(bad[0])].as_py()
        raise BadVector(
            f"{len(bad)} of {rows.num_rows} vectors are zero or hold NaN or infinity, "
            f"the first that of row {first!r}; leave them out"
        )


def vector_array(vectors: Vectors) -> pa.FixedSizeListArray:
    """Wrap float32[n, dim] as an Arrow array over the same memory."""
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise UsageError(f"vectors must be float32[n, dim], got {vectors.dtype}{vectors.shape}")
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_of(column: pa.ChunkedArray | pa.Array, dim: int) -> Vectors:
    """Return float32[n, dim] of a vector column, without a copy when it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat: Vectors = array.flatten().to_numpy(zero_copy_only=False)
    if array.null_count or len(flat) != len(array) * dim:
        raise UsageError("a row has no vector; leave such rows out")
    return flat.reshape(-1, dim)


def _conform_column(batch: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in batch.column_names:
        if not field.nullable:
            raise UsageError(f"the batch has no column {field.name!r}; build it with records()")
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    if column.null_count and not field.nullable:
        raise UsageError(f"column {field.name!r} holds {column.null_count} nulls; fill them")
    if column.type == field.type:
        return column
    if field.type == pa.json_():
        parts = [_json_array(part, len(part)) for part in column.chunks]
        return pa.chunked_array(parts, field.type)
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise UsageError(
            f"column {field.name!r} is {column.type}, the table's is {field.type}: {error}"
        ) from error


def _or_key(ids: pa.Array, keys: pa.Array) -> pa.Array:
    return string_array(pc.coalesce(ids.cast(pa.string()), keys) if ids.null_count else ids)


def _filled(values: pa.Array | str, n: int) -> pa.Array:
    if isinstance(values, str):
        return pa.repeat(pa.scalar(values, pa.string()), n)
    return string_array(values.fill_null("") if values.null_count else values)


def _json_array(values: pa.Array | None, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, pa.json_())
    if values.type == pa.json_():
        return values
    strings = values.cast(pa.string())
    for place, text in enumerate(strings.to_pylist()):
        if text is not None:
            _must_be_metadata(place, text)
    return json_column(strings)


def _must_be_metadata(place: int, text: str) -> None:
    """Raise UsageError for text that LanceDB would store as another value."""
    try:
        value = json.loads(text, object_pairs_hook=without_doubles)
        if not isinstance(value, dict | None):
            raise ValueError(f"it is {text!r:.80}")
        plain_mapping(value or {})
    except (ValueError, RecursionError) as error:
        raise UsageError(f"metadata_json[{place}] must be a JSON object or null: {error}") from None


def _times(values: pa.Array | datetime | None, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, _TIMESTAMP)
    if isinstance(values, datetime):
        moment = values if values.tzinfo else values.replace(tzinfo=UTC)
        return pa.repeat(pa.scalar(moment, _TIMESTAMP), n)
    return values if values.type == _TIMESTAMP else values.cast(_TIMESTAMP)


def _check_lengths(columns: Mapping[str, pa.Array], n: int) -> None:
    wrong = {name: len(column) for name, column in columns.items() if len(column) != n}
    if wrong:
        raise UsageError(f"{n} texts, but other lengths: {wrong}; give every column the same rows")

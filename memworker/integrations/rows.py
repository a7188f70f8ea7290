"""Documents of other frameworks as rows of a table: written whole, in one commit, read back.

What a document has beside its text is the row's metadata, so that memworker's own tools filter
by it. One without a vector that could be found gets a stand-in, and a mark by which no search
gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker import EmbeddingPool, Table, VectorSpace, records
from memworker.errors import UsageError
from memworker.integrations.pools import at_least_one, refuse_other
from memworker.values import Unsayable, json_text

Vector = Sequence[float] | npt.NDArray[np.float32]

# What a row keeps for its framework alone stands under this name among its metadata.
INNER = "_memworker"
HAS_VECTOR = {f"{INNER}.vector": {"ne": False}}
READ = ("id", "text", "metadata", "created_at", "updated_at")


@dataclass(frozen=True, slots=True)
class Kept:
    """A document: `inner` is what its framework needs beside text and metadata."""

    id: str
    text: str
    vector: Vector | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, Any] = field(default_factory=dict)
    user_id: str = ""
    created_at: datetime | None = None


def space_of(
    framework: str, pool: EmbeddingPool | None, dim: int, *, option: str = "embedding_dim"
) -> VectorSpace:
    """Bind a table to a pool's model, or, to vectors of somebody else's, by their dimensions.

    Raises UsageError for what is no pool, and no number of dimensions, which `option` gave.
    """
    refuse_other("pool", pool, EmbeddingPool)
    if pool is not None:
        return VectorSpace.of(pool.identity)
    size = at_least_one(option, dim)
    return VectorSpace(framework, "unknown", 0, size, fingerprint=f"{framework}-{size}")


def put(
    table: Table,
    rows: Sequence[Kept],
    *,
    leave: Callable[[set[str]], set[str]] = lambda there: set(),
) -> int:
    """Write rows in one commit, each in the place of the one of its id; return how many.

    Of equal ids the last counts. `leave` is given those that are there, and says which of them
    stay as they are; it may raise instead.
    """
    last = {row.id: row for row in rows}
    if not last:
        return 0
    with table.changing() as change:
        found = change.find("id", list(last), columns=["id", "created_at"]).to_pylist()
        born = {each["id"]: each["created_at"] for each in found}
        for stays in leave(set(born)):
            last.pop(stays, None)
        if last:
            change.replace(as_records(list(last.values()), table.space.dim, born))
    return len(last)


def as_records(
    rows: Sequence[Kept], dim: int, born: Mapping[str, datetime] | None = None
) -> pa.Table:
    """Return rows as a batch; those in `born` keep the time of their making."""
    now, born = datetime.now(UTC), born or {}
    vectors = np.zeros((len(rows), dim), np.float32)
    metadata = [_metadata(row, vectors[place]) for place, row in enumerate(rows)]
    made = [born.get(row.id) or row.created_at or now for row in rows]
    keys = [_key(row.text, said, vectors[at]) for at, (row, said) in _both(rows, metadata)]
    return records(
        pa.array([row.id for row in rows], pa.string()),
        pa.array([row.text for row in rows], pa.string()),
        vectors,
        scopes={"user_id": pa.array([row.user_id for row in rows], pa.string())},
        metadata_json=pa.array(metadata, pa.string()),
        dedup_keys=pa.array(keys, pa.string()),
        created_at=pa.array(made, pa.timestamp("us", tz="UTC")),
        updated_at=pa.array([now] * len(rows), pa.timestamp("us", tz="UTC")),
    )


def parted(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part a row's metadata into the document's own and what stands there for its framework."""
    own = dict(metadata)
    return own, own.pop(INNER, {})


def checked_vector(vector: Any, dim: int, what: str) -> npt.NDArray[np.float32]:
    """Return float32[dim]. Raises UsageError for another size, or what is no vector."""
    try:
        found = np.asarray(vector, np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} is no vector: {error}") from None
    if len(found) != dim:
        raise UsageError(f"{what} has {len(found)} dimensions, the table has {dim}")
    return found


def delete_ids(table: Table, ids: Iterable[str]) -> None:
    """Delete rows by their ids; one that is not there is no error."""
    if named := [str(each) for each in ids]:
        table.delete({"id": {"in": named}})


def _metadata(row: Kept, vector: npt.NDArray[np.float32]) -> str:
    """Fill in a row's vector, and return its metadata as JSON."""
    if INNER in row.metadata:
        raise UsageError(f"the metadata of {row.id!r} hold {INNER!r}, a name that is kept for rows")
    inner = dict(row.inner)
    given = None
    if row.vector is not None:
        given = checked_vector(row.vector, len(vector), f"the embedding of {row.id!r}")
    if given is None or not given.any():
        inner |= {"vector": False, "zero": given is not None}
        vector[0] = 1.0
    else:
        vector[:] = given
    try:
        return json_text({**row.metadata, **({INNER: inner} if inner else {})})
    except Unsayable as error:
        raise UsageError(f"the metadata of {row.id!r} must be JSON: {error}") from None


def _both(rows: Sequence[Kept], metadata: Sequence[str]) -> Any:
    return enumerate(zip(rows, metadata, strict=True))


def _key(text: str, metadata: str, vector: npt.NDArray[np.float32]) -> str:
    # Of all that a row holds: to the table, rows of equal id and key are the same.
    hashed = hashlib.blake2b(f"{len(text)}:{text}{metadata}".encode(), digest_size=16)
    hashed.update(vector.tobytes())
    return hashed.hexdigest()

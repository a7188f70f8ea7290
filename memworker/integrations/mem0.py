"""Mem0's vector store and embedder, put in place of those that its config made.

::

    memory = mem0.Memory.from_config(config)
    memory.vector_store = MemworkerVectorStore("mem0-db", pool=pool)
    memory.embedding_model = MemworkerEmbedder(pool=pool)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memworker import EmbeddingPool, Table, records, table_names
from memworker.errors import MemoryNotFound, StoreError, UsageError
from memworker.integrations.pools import PoolArguments, PoolSource, TextKind, framework
from memworker.integrations.rows import space_of
from memworker.paths import DatabaseGiven, database_place

with framework("mem0"):
    from mem0.configs.embeddings.base import BaseEmbedderConfig
    from mem0.embeddings.base import EmbeddingBase
    from mem0.vector_stores.base import VectorStoreBase

__all__ = ["MemworkerEmbedder", "MemworkerVectorStore", "Mem0Record"]

Payload = dict[str, Any]
Vector = Sequence[float]

_SCOPES = ("user_id", "agent_id", "run_id")
_TIMES = ("created_at", "updated_at")
_READ = ("id", "text", "metadata")
_EVERY_ROW: dict[str, Any] = {"NOT": {"id": {"in": []}}}
_LOGIC = {"$and": "AND", "$or": "OR", "$not": "NOT", "AND": "AND", "OR": "OR", "NOT": "NOT"}
# A commit a memory makes a fragment a memory, and searches slow with their number.
_COMMITS_BETWEEN_UPKEEP = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mem0Record:
    """A row as Mem0 reads it. `score` is the cosine, at least 0; higher is nearer."""

    id: str
    payload: Payload
    score: float | None = None


# Within the store's class `list` is its method.
Names = list[str]
Memories = list[Mem0Record]
Pages = list[Memories]


class MemworkerEmbedder(EmbeddingBase):
    """Mem0's embedder over a pool: queries apart from memories, batches as batches.

    Give a `pool`, which stays open, or the options of one that this object
    makes at its first use and ends with `close`.
    """

    def __init__(
        self, *, pool: EmbeddingPool | None = None, **options: Unpack[PoolArguments]
    ) -> None:
        super().__init__(BaseEmbedderConfig(model=options.get("model")))
        self._source = PoolSource(pool, options)

    def embed(
        self, text: str, memory_action: Literal["add", "search", "update"] | None = None
    ) -> list[float]:
        """Embed a memory, or a query when `memory_action` is search."""
        return self.embed_batch([text], memory_action)[0]

    def embed_batch(self, texts: list[str], memory_action: str | None = "add") -> list[list[float]]:
        """Embed several at once; one vector a text, in order."""
        kind: TextKind = "query" if memory_action == "search" else "passage"
        return self._source.embed(texts, kind)

    def close(self) -> None:
        """End the pool, unless it was given."""
        self._source.close()


class MemworkerVectorStore(VectorStoreBase):
    """Mem0's vector store in one LanceDB table that memworker's own tools read too.

    A payload's text is the row's `text`, its ids are the scope columns, and all
    of it but the text is the row's `metadata`. With a `pool` the table is bound
    to that pool's model, and refuses vectors of another; without, to
    `embedding_model_dims` alone. Threads may share a store, and processes a table.
    """

    def __init__(
        self,
        db: DatabaseGiven,
        collection_name: str = "mem0",
        *,
        pool: EmbeddingPool | None = None,
        embedding_model_dims: int = 384,
    ) -> None:
        self.db = database_place(db)
        self._space = space_of("mem0", pool, embedding_model_dims, option="embedding_model_dims")
        self.create_col(collection_name)

    def create_col(
        self, name: str, vector_size: int | None = None, distance: str = "cosine"
    ) -> None:
        """Make or open the collection, and use it from now on. Raises TableMismatch."""
        if vector_size not in (None, self._space.dim) or distance != "cosine":
            raise UsageError(
                f"this store compares {self._space.dim} dimensions by cosine, not {vector_size} by"
                f" {distance}; make another MemworkerVectorStore"
            )
        self._table = Table.open_or_create(self.db, name, self._space)
        self._table.maintenance.ensure_index("text")
        self.collection_name = name
        self._commits = itertools.count(1)

    def insert(
        self,
        vectors: Sequence[Vector],
        payloads: Sequence[Payload] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Write memories in one commit; one of a known id takes its place."""
        names = [str(name) for name in ids] if ids else [str(uuid.uuid4()) for _ in vectors]
        rows = _rows(names, vectors, payloads or [{} for _ in vectors], self._space.dim)
        done = self._table.append(rows, on_conflict="update")
        if done.conflicts:
            # Mem0 says of each memory all that is to be there, whose it is as well.
            with self._table.changing() as change:
                change.replace(rows.take(list(done.conflicts)))
        self._upkeep()

    def search(
        self,
        query: str,
        vectors: Vector,
        top_k: int = 5,
        filters: Mapping[str, Any] | None = None,
    ) -> Memories:
        """Return the memories nearest to a vector that meet the filters, best first."""
        del query  # Mem0 has embedded it
        vector = np.asarray(vectors, np.float32).reshape(-1)
        hits = self._table.search(
            vector, limit=top_k, where=_shown(filters), columns=_READ, visible_only=False
        )
        return [
            Mem0Record(hit.id, _payload(hit.text, hit.metadata), max(0.0, hit.score))
            for hit in hits
        ]

    def keyword_search(
        self, query: str, top_k: int = 5, filters: Mapping[str, Any] | None = None
    ) -> Memories:
        """Return the memories that share words with a query, best first by BM25."""
        hits = self._table.search_text(
            query, limit=top_k, where=_shown(filters), columns=_READ, visible_only=False
        )
        return [Mem0Record(hit.id, _payload(hit.text, hit.metadata), hit.score) for hit in hits]

    def delete(self, vector_id: str) -> None:
        """Delete a memory; none of that id is no error."""
        self._table.delete({"id": str(vector_id)})
        self._upkeep()

    def update(
        self, vector_id: str, vector: Vector | None = None, payload: Payload | None = None
    ) -> None:
        """Replace a memory's vector, payload or both in one commit. Raises MemoryNotFound."""
        name = str(vector_id)
        with self._table.changing() as change:
            found = change.find("id", [name])
            if not found.num_rows:
                raise MemoryNotFound(f"no memory has the id {name!r}; it may have been deleted")
            if vector is None:
                vector = found["vector"][0].as_py()
            if payload is None:
                payload = _memories(found)[0].payload
            change.replace(_rows([name], [vector], [payload], self._space.dim))
        self._upkeep()

    def get(self, vector_id: str) -> Mem0Record | None:
        """Return a memory, or None."""
        found = _memories(self._table.rows(_shown({"id": str(vector_id)}), columns=_READ, limit=1))
        return found[0] if found else None

    def list(self, filters: Mapping[str, Any] | None = None, top_k: int | None = None) -> Pages:
        """Return the memories that meet the filters, all without `top_k`, as Mem0 wants: [rows]."""
        return [_memories(self._table.rows(_shown(filters), columns=_READ, limit=top_k))]

    def list_cols(self) -> Names:
        """Return the names of the database's tables."""
        return table_names(self.db)

    def col_info(self) -> dict[str, Any]:
        """Return what the collection is and holds."""
        info = self._table.info()
        return {
            "name": info.name,
            "count": info.rows,
            "dims": info.dim,
            "distance": info.distance,
            "model": info.model,
        }

    def delete_col(self) -> None:
        """Delete every memory; the table stays, since other processes may have it open."""
        self._table.delete(_EVERY_ROW)

    def reset(self) -> None:
        """Delete every memory."""
        self.delete_col()

    def _upkeep(self) -> None:
        if next(self._commits) % _COMMITS_BETWEEN_UPKEEP:
            return
        try:
            self._table.optimize()
        except StoreError as error:
            # What was to be written has been, so the caller's work has not failed.
            _log.warning("upkeep of table %r failed: %s", self.collection_name, error)


def to_where(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return Mem0's filters as memworker's, all of which is pushed down into LanceDB.

    A list means one of its values, ``"*"`` any value. icontains is refused
    with a FilterError by the table.
    """
    clauses = [_clause(key, condition) for key, condition in (filters or {}).items()]
    return {"AND": clauses} if clauses else {}


def _shown(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what a `Memory` of the same table keeps for its history; Mem0 sees to expiry."""
    return {"AND": [to_where(filters), {"superseded_at": None}]}


def _clause(key: str, condition: Any) -> dict[str, Any]:
    if key in _LOGIC:
        return {_LOGIC[key]: [to_where(each) for each in condition]}
    if isinstance(condition, list | tuple | set):
        condition = {"in": list(condition)}
    if condition == "*":
        condition = {"ne": None}
    return {_column(key): condition}


def _column(key: str) -> str:
    if key == "data":
        return "text"
    return key if key in ("id", *_SCOPES, *_TIMES) else f"metadata.{key}"


def _rows(
    ids: Sequence[str], vectors: Sequence[Vector], payloads: Sequence[Payload], dim: int
) -> pa.Table:
    if not len(ids) == len(vectors) == len(payloads):
        raise UsageError(
            f"{len(vectors)} vectors, {len(payloads)} payloads and {len(ids)} ids; each memory"
            " needs one of each"
        )
    if any(len(vector) != dim for vector in vectors):
        sizes = ", ".join(str(size) for size in sorted({len(vector) for vector in vectors}))
        raise UsageError(
            f"the embedder gave vectors of {sizes} dimensions, the store has {dim}; make the"
            " store with embedding_model_dims as the embedder gives them"
        )
    array = np.asarray(vectors, np.float32).reshape(-1, dim)
    metadata = [_metadata(payload) for payload in payloads]
    return records(
        pa.array(ids, pa.string()),
        pa.array([_text(payload) for payload in payloads], pa.string()),
        array,
        scopes={
            scope: pa.array([str(payload.get(scope) or "") for payload in payloads], pa.string())
            for scope in _SCOPES
        },
        metadata_json=pa.array(metadata, pa.string()),
        # Of all that a row holds: to the table, rows of equal id and key are the same.
        dedup_keys=pa.array(map(_key, map(_text, payloads), metadata, array), pa.string()),
        created_at=_times(payloads, "created_at"),
        updated_at=_times(payloads, "updated_at"),
    )


def _text(payload: Payload) -> str:
    data = payload.get("data")
    return data if isinstance(data, str) else ""


def _metadata(payload: Payload) -> str:
    kept = {k: v for k, v in payload.items() if k != "data" or not isinstance(v, str)}
    try:
        return json.dumps(kept, default=str, allow_nan=False)
    except ValueError as error:
        raise UsageError(f"a payload cannot be stored as JSON: {error}; change {kept!r}") from error


def _key(text: str, metadata: str, vector: npt.NDArray[np.float32]) -> str:
    hashed = hashlib.blake2b(f"{len(text)}:{text}{metadata}".encode(), digest_size=16)
    hashed.update(vector.tobytes())
    return hashed.hexdigest()


def _times(payloads: Sequence[Payload], name: str) -> pa.Array:
    now = datetime.now(UTC)
    moments = [_moment(payload.get(name)) or now for payload in payloads]
    return pa.array(moments, pa.timestamp("us", tz="UTC"))


def _moment(value: Any) -> datetime | None:
    """Read one of Mem0's times; anything else there is kept in the metadata alone."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _payload(text: str, metadata: Payload) -> Payload:
    return {**metadata, "data": text} if text else metadata


def _memories(rows: pa.Table) -> Memories:
    return [
        Mem0Record(row["id"], _payload(row["text"], json.loads(row["metadata"] or "{}")))
        for row in rows.select(list(_READ)).to_pylist()
    ]

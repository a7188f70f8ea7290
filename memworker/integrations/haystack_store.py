"""Haystack's document store over one table, and the retriever that asks it by vector."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from memworker import Table
from memworker.errors import FilterError as BadFilter, UsageError
from memworker.integrations.pools import at_least_one, framework
from memworker.integrations.rows import (
    HAS_VECTOR,
    Kept,
    checked_vector,
    delete_ids,
    parted,
    put,
    space_of,
)
from memworker.paths import PathGiven, database_place

with framework("haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.errors import DuplicateDocumentError
    from haystack.document_stores.types import DuplicatePolicy
    from haystack.errors import FilterError

__all__ = ["MemworkerDocumentStore", "MemworkerEmbeddingRetriever"]

_COLUMNS = ("id", "text", "metadata", "vector")
_EVERY_ROW: dict[str, Any] = {"NOT": {"id": {"in": []}}}
_NOTHING: dict[str, Any] = {"id": {"in": []}}
_SIGNS = {"==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_ORDERS = ("gt", "gte", "lt", "lte")


class MemworkerDocumentStore:
    """Haystack's documents in one table, which memworker's own tools read too.

    A document's content is the row's text, its meta the row's metadata; filters are pushed
    down. Documents without an embedding are kept, and found by filters alone. Threads
    and coroutines may share a store, and processes a table.
    """

    def __init__(self, db: PathGiven, *, table: str = "haystack", embedding_dim: int = 384) -> None:
        self._described = {"db": str(db), "table": table, "embedding_dim": embedding_dim}
        space = space_of("haystack", None, embedding_dim)
        self._table = Table.open_or_create(database_place(db), table, space)

    def to_dict(self) -> dict[str, Any]:
        """Write the store down, for a pipeline's YAML."""
        described: dict[str, Any] = default_to_dict(self, **self._described)
        return described

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemworkerDocumentStore:
        """Open the store that `to_dict` wrote down."""
        made: MemworkerDocumentStore = default_from_dict(cls, data)
        return made

    def count_documents(self) -> int:
        """Return how many documents there are."""
        return self._table.count()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the documents that meet Haystack's filters; raises its FilterError."""
        rows = _asked(lambda: self._table.rows(to_where(filters), columns=_COLUMNS))
        return [_document(row) for row in rows.to_pylist()]

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents in one commit, and return how many.

        One of a known id is an error by default (as by FAIL), and then nothing is written.
        """
        rows = [_row(document) for document in _documents(documents)]
        ids = [row.id for row in rows]
        if policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
            _fail({each for each, times in Counter(ids).items() if times > 1})
        written = put(self._table, rows, leave=_LEAVE[policy])
        return len(rows) if policy == DuplicatePolicy.OVERWRITE else written

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by their ids; one that is not there is no error."""
        delete_ids(self._table, document_ids)

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete every document; the table stays, since other processes may have it open."""
        self._table.delete(_EVERY_ROW)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that meet filters, and return how many."""
        where = to_where(filters)
        if not where:
            raise FilterError("an empty filter would delete all; there is delete_all_documents()")
        gone: int = _asked(lambda: self._table.delete(where))
        return gone

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set fields of the meta of the documents that meet filters, and return how many."""
        found = self.filter_documents(filters)
        rows = [_row(document, document.meta | meta) for document in found]
        return put(self._table, rows)

    def search(
        self, query_embedding: Sequence[float], filters: dict[str, Any] | None, top_k: int
    ) -> list[Document]:
        """Return the documents nearest to a vector that meet filters, with their cosines."""
        query = checked_vector(query_embedding, self._table.space.dim, "the query")
        where = {"AND": [to_where(filters), HAS_VECTOR]}
        hits = _asked(lambda: self._table.search(query, limit=top_k, where=where))
        ids = [hit.id for hit in hits]
        rows = self._table.rows({"id": {"in": ids}}, columns=_COLUMNS).to_pylist()
        there = {row["id"]: row for row in rows}
        return [_document(there[hit.id], hit.score) for hit in hits if hit.id in there]

    async def count_documents_async(self) -> int:
        """Do what `count_documents` does without blocking the event loop."""
        return await asyncio.to_thread(self.count_documents)

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Do what `filter_documents` does without blocking the event loop."""
        return await asyncio.to_thread(self.filter_documents, filters)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Do what `write_documents` does without blocking the event loop."""
        return await asyncio.to_thread(self.write_documents, documents, policy)

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """Do what `delete_documents` does without blocking the event loop."""
        await asyncio.to_thread(self.delete_documents, document_ids)

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """Do what `delete_all_documents` does without blocking the event loop."""
        await asyncio.to_thread(self.delete_all_documents, recreate_index)

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """Do what `delete_by_filter` does without blocking the event loop."""
        return await asyncio.to_thread(self.delete_by_filter, filters)

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Do what `update_by_filter` does without blocking the event loop."""
        return await asyncio.to_thread(self.update_by_filter, filters, meta)


@component
class MemworkerEmbeddingRetriever:
    """Finds a store's documents that are nearest to a query's embedding."""

    def __init__(
        self,
        document_store: MemworkerDocumentStore,
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> None:
        if not isinstance(document_store, MemworkerDocumentStore):
            kind = type(document_store).__name__
            raise UsageError(f"document_store= takes a MemworkerDocumentStore, not a {kind}")
        to_where(filters)
        self.document_store, self.filters = document_store, filters
        self.top_k = at_least_one("top_k", top_k)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """Return the nearest documents; what is not given is as the retriever was made."""
        found = self.document_store.search(
            query_embedding, filters or self.filters, top_k or self.top_k
        )
        return {"documents": found}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, Any]:
        """Do what `run` does without blocking the event loop."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)

    def to_dict(self) -> dict[str, Any]:
        """Write the component down, for a pipeline's YAML."""
        store = self.document_store.to_dict()
        described: dict[str, Any] = default_to_dict(
            self, document_store=store, filters=self.filters, top_k=self.top_k
        )
        return described

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemworkerEmbeddingRetriever:
        """Make the component that `to_dict` wrote down."""
        options = dict(data["init_parameters"])
        if isinstance(options["document_store"], dict):
            options["document_store"] = MemworkerDocumentStore.from_dict(options["document_store"])
        made: MemworkerEmbeddingRetriever = default_from_dict(
            cls, {**data, "init_parameters": options}
        )
        return made


def to_where(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return Haystack's filters as memworker's. Raises Haystack's FilterError."""
    if not filters:
        return {}
    if not isinstance(filters, Mapping):
        raise FilterError(f"filters are a mapping, not a {type(filters).__name__}")
    return _comparison(filters) if "field" in filters else _logic(filters)


def _logic(part: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("operator", "conditions"):
        if key not in part:
            raise FilterError(f"a filter has no {key!r}: {dict(part)!r}")
    parts = [_comparison(each) if "field" in each else _logic(each) for each in part["conditions"]]
    if part["operator"] == "NOT":
        # Of several, Haystack's NOT excludes what meets all.
        return {"NOT": {"AND": parts}}
    if part["operator"] not in ("AND", "OR") or not parts:
        raise FilterError(f"an operator joins conditions by AND, OR or NOT, not by {dict(part)!r}")
    return {part["operator"]: parts}


def _comparison(part: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("operator", "value"):
        if key not in part:
            raise FilterError(f"the condition on {part['field']!r} has no {key!r}")
    field, sign, value = _field(part["field"]), part["operator"], part["value"]
    if sign in ("in", "not in"):
        if not isinstance(value, list):
            raise FilterError(f"{sign!r} needs a list, not a {type(value).__name__}")
        return {field: {"in" if sign == "in" else "nin": value}}
    if sign not in _SIGNS:
        raise FilterError(f"unknown operator {sign!r}; there are {', '.join(_SIGNS)}, in, not in")
    operator = _SIGNS[sign]
    if operator in _ORDERS:
        if value is None:
            return _NOTHING
        if isinstance(value, list | dict | bool) or (
            isinstance(value, str) and not _is_time(value)
        ):
            raise FilterError(f"{sign!r} compares numbers and ISO dates, not {value!r}")
    return {field: {operator: value}}


def _field(name: str) -> str:
    if name in ("id", "content"):
        return "text" if name == "content" else "id"
    # Haystack takes a meta field's name without its prefix too.
    return f"metadata.{name.removeprefix('meta.')}"


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except BadFilter as error:
        raise FilterError(str(error)) from error


def _fail(there: set[str]) -> set[str]:
    if there:
        named = ", ".join(map(repr, sorted(there)[:3]))
        told = f"{len(there)} documents are there already, or were given twice: {named}"
        raise DuplicateDocumentError(told)
    return there


_LEAVE: dict[Any, Callable[[set[str]], set[str]]] = {
    DuplicatePolicy.NONE: _fail,
    DuplicatePolicy.FAIL: _fail,
    DuplicatePolicy.SKIP: lambda there: there,
    DuplicatePolicy.OVERWRITE: lambda there: set(),
}


def _documents(given: Any) -> list[Document]:
    if not isinstance(given, list) or not all(isinstance(each, Document) for each in given):
        raise UsageError("write_documents() takes a list of Documents")
    return given


def _row(document: Document, meta: Mapping[str, Any] | None = None) -> Kept:
    inner: dict[str, Any] = {} if document.content is not None else {"content": False}
    if document.blob is not None:
        inner["blob"] = document.blob.to_dict()
    if document.sparse_embedding is not None:
        inner["sparse"] = document.sparse_embedding.to_dict()
    own = document.meta if meta is None else meta
    return Kept(document.id, document.content or "", document.embedding, own, inner)


def _document(row: Mapping[str, Any], score: float | None = None) -> Document:
    meta, inner = parted(json.loads(row["metadata"] or "{}"))
    given = inner.get("vector", True)
    vector = list(row["vector"]) if given else [0.0] * len(row["vector"])
    told = {
        "id": row["id"],
        "content": row["text"] if inner.get("content", True) else None,
        "meta": meta,
        "embedding": vector if given or inner.get("zero") else None,
        "blob": inner.get("blob"),
        "sparse_embedding": inner.get("sparse"),
        "score": score,
    }
    made: Document = Document.from_dict(told)
    return made

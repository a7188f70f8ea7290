"""LangChain's `Embeddings`, and through it LangGraph's store index; a store and a retriever."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Self, Unpack

import numpy as np

from memworker import EmbeddingPool, Table, VectorSpace
from memworker.errors import UsageError
from memworker.integrations.pools import (
    PoolArguments,
    PoolSource,
    at_least_one,
    framework,
    refuse_other,
    refuse_unknown,
)
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

with framework("langchain"):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
    from pydantic import BeforeValidator, ConfigDict

__all__ = [
    "MemworkerEmbeddings",
    "MemworkerRetriever",
    "TableVectorStore",
    "register_provider",
]


class MemworkerEmbeddings(Embeddings):
    """Embeds documents and queries, sync and async, through a pool of worker processes.

    Give a `pool`, which stays open, or the options of one that this object
    makes at its first use and ends with `close` or as a context manager.
    """

    def __init__(
        self, *, pool: EmbeddingPool | None = None, **options: Unpack[PoolArguments]
    ) -> None:
        self._source = PoolSource(pool, options)

    @property
    def dim(self) -> int:
        """How many numbers a vector has; what LangGraph's store index calls `dims`."""
        return self._source.get().dim

    @property
    def pool(self) -> EmbeddingPool:
        """The pool, made now if need be."""
        return self._source.get()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; one vector a text, in order."""
        return self._source.embed(texts, "passage")

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the model's prefix for queries if it has one."""
        return self._source.embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop."""
        return await self._source.embed_async(texts, "passage")

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop."""
        return (await self._source.embed_async([text], "query"))[0]

    def close(self) -> None:
        """End the pool, unless it was given."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemworkerRetriever(BaseRetriever):
    """Finds the rows of a table that are nearest to a question, as documents.

    With `group` each text is given once, by its best chunk. `where` is as for `Table.search`.
    A document's metadata are the row's, with `score` and, of a chunk, where it stands.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    table: Table
    embeddings: MemworkerEmbeddings
    k: Annotated[int, BeforeValidator(lambda given: at_least_one("k", given))] = 4
    where: Mapping[str, Any] | None = None
    group: bool = False

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        vector = np.array(self.embeddings.embed_query(query), np.float32)
        hits = self.table.search(vector, limit=self.k, where=self.where, group=self.group)
        return [Document(hit.text, id=hit.id, metadata=hit.metadata | _place(hit)) for hit in hits]


def _place(hit: Any) -> dict[str, Any]:
    names = ("parent_id", "chunk", "char_start", "char_end") if hit.parent_id is not None else ()
    return {name: getattr(hit, name) for name in ("score", *names)}


class TableVectorStore(VectorStore):
    """LangChain's vector store in one table, which memworker's own tools read too.

    A document's metadata are the row's. `filter` is as `where` of `Table.search`, pushed down. With
    `MemworkerEmbeddings` the table is bound to their model, and refuses vectors of another;
    with other embeddings, to the number of dimensions. One of a known id takes its place.
    """

    def __init__(self, db: PathGiven, embedding: Embeddings, *, table: str = "langchain") -> None:
        if embedding is None:
            raise UsageError("embedding= takes an Embeddings of LangChain's, not None")
        refuse_other("embedding", embedding, Embeddings)
        self._embedding = embedding
        self.table = Table.open_or_create(database_place(db), table, _space(embedding))

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings that texts and queries go through."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **unknown: Any,
    ) -> list[str]:
        """Embed and write texts, in one commit; return their ids, made where none was given."""
        refuse_unknown("add_texts", unknown, ("metadatas", "ids"))
        listed = list(texts)
        return self._write(listed, self._embedding.embed_documents(listed), metadatas, ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **unknown: Any,
    ) -> list[str]:
        """Do what `add_texts` does without blocking the event loop."""
        refuse_unknown("aadd_texts", unknown, ("metadatas", "ids"))
        listed = list(texts)
        vectors = await self._embedding.aembed_documents(listed)
        return await asyncio.to_thread(self._write, listed, vectors, metadatas, ids)

    def delete(self, ids: list[str] | None = None, **unknown: Any) -> bool:
        """Delete documents by their ids, or all with None; one that is not there is no error."""
        refuse_unknown("delete", unknown, ("ids",))
        if ids is None:
            self.table.delete(_EVERY_ROW)
        else:
            delete_ids(self.table, ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids that there are, in their order."""
        rows = self.table.rows({"id": {"in": list(map(str, ids))}}, columns=_DOCUMENT)
        found = {row["id"]: _document(row) for row in rows.to_pylist()}
        return [found[each] for each in dict.fromkeys(map(str, ids)) if each in found]

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """Return the documents nearest to a query; `filter` is as `where` of `Table.search`."""
        return [found for found, _ in self.similarity_search_with_score(query, k, **options)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Do the same, with the cosine of each, higher is nearer."""
        return self._near(self._embedding.embed_query(query), k, options)

    async def asimilarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """Do what `similarity_search` does without blocking the event loop."""
        scored = await self.asimilarity_search_with_score(query, k, **options)
        return [found for found, _ in scored]

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """Do what `similarity_search_with_score` does without blocking the event loop."""
        vector = await self._embedding.aembed_query(query)
        return await asyncio.to_thread(self._near, vector, k, options)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[Document]:
        """Return the documents nearest to a vector."""
        return [found for found, _ in self._near(embedding, k, options)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """Return documents near to a query and unlike each other, out of the `fetch_k` nearest."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(
            vector, k, fetch_k, lambda_mult, **options
        )

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **options: Any,
    ) -> list[Document]:
        """Do the same for a vector."""
        near = [found for found, _ in self._near(embedding, max(k, fetch_k), options)]
        ids = [found.id for found in near]
        rows = self.table.rows({"id": {"in": ids}}, columns=["id", "vector"]).to_pylist()
        vectors = {row["id"]: row["vector"] for row in rows}
        there = [found for found in near if found.id in vectors]
        query = np.asarray(embedding, np.float32)
        chosen = maximal_marginal_relevance(
            query, [vectors[found.id] for found in there], lambda_mult, k
        )
        return [there[place] for place in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Make a store of texts; `db` is where, `table` its name."""
        if "db" not in options:
            raise UsageError("from_texts() needs db=, the folder of the database")
        store = cls(options.pop("db"), embedding, **options)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _write(
        self,
        texts: list[str],
        vectors: list[list[float]],
        metadatas: list[dict[str, Any]] | None,
        ids: list[str] | None,
    ) -> list[str]:
        for name, given in (("metadatas", metadatas), ("ids", ids)):
            if given is not None and len(given) != len(texts):
                raise UsageError(f"{len(texts)} texts, but {len(given)} {name}; give one each")
        known = ids or [""] * len(texts)
        named = [str(each) if each else str(uuid.uuid4()) for each in known]
        parts = zip(named, texts, vectors, metadatas or [{}] * len(texts), strict=True)
        put(self.table, [Kept(*part) for part in parts])
        return named

    def _near(self, vector: Any, k: int, options: dict[str, Any]) -> list[tuple[Document, float]]:
        refuse_unknown("a search", options, ("filter",))
        where = options.get("filter")
        if where is not None and not isinstance(where, Mapping):
            raise UsageError(f"filter= takes a mapping of fields, not a {type(where).__name__}")
        query = checked_vector(vector, self.table.space.dim, "the query")
        both = {"AND": [where or {}, HAS_VECTOR]}
        hits = self.table.search(query, limit=k, where=both, columns=_DOCUMENT)
        return [(_document(asdict(hit)), hit.score) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        # The score is a cosine; LangChain wants 0 to 1.
        return lambda cosine: (1.0 + cosine) / 2.0


_DOCUMENT = ("id", "text", "metadata")
_EVERY_ROW: dict[str, Any] = {"NOT": {"id": {"in": []}}}


def _space(embedding: Embeddings) -> VectorSpace:
    if isinstance(embedding, MemworkerEmbeddings):
        return VectorSpace.of(embedding.pool.identity)
    return space_of("langchain", None, len(embedding.embed_query("dimensions")))


def _document(row: Mapping[str, Any]) -> Document:
    told = row["metadata"]
    own, _ = parted(json.loads(told or "{}") if not isinstance(told, Mapping) else told)
    return Document(row["text"], id=row["id"], metadata=own)


def register_provider() -> None:
    """Have LangChain know the provider: `init_embeddings("memworker:all-MiniLM-L6-v2")`.

    LangChain has no entry point for that, only the table of its own providers, to which this adds
    one line for as long as the process lives. LangGraph's `index={"embed": "memworker:…"}` too.
    """
    with framework("langchain"):
        from langchain.embeddings import base

    made = (__name__, MemworkerEmbeddings.__name__, lambda cls, **options: cls(**options))
    base._BUILTIN_PROVIDERS.setdefault("memworker", made)

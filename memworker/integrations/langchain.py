"""LangChain's `Embeddings`, and through it LangGraph's store index; a retriever over a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Unpack

import numpy as np

from memworker import EmbeddingPool, Table
from memworker.integrations.pools import PoolArguments, PoolSource, framework

with framework("langchain"):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict

__all__ = ["MemworkerEmbeddings", "MemworkerRetriever"]


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
    k: int = 4
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

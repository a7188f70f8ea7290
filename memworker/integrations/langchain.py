"""LangChain's `Embeddings`, and through it LangGraph's store index and Mem0's embedder."""

from __future__ import annotations

from typing import Self, Unpack

from memworker import EmbeddingPool
from memworker.integrations.pools import PoolArguments, PoolSource, framework

with framework("langchain"):
    from langchain_core.embeddings import Embeddings

__all__ = ["MemworkerEmbeddings"]


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

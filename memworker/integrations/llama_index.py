"""LlamaIndex's `BaseEmbedding`."""

from __future__ import annotations

from typing import Any

from memworker import DEFAULT_MODEL, EmbeddingPool
from memworker.integrations.pools import PoolSource, framework

with framework("llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.bridge.pydantic import ConfigDict, PrivateAttr

__all__ = ["MemworkerEmbedding"]


class MemworkerEmbedding(BaseEmbedding):
    """Embeds nodes and queries, sync and async, through a pool of worker processes.

    Give a `pool`, which stays open, or describe one that this object makes at
    its first use and ends with `close`. A pickled copy makes its own.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = DEFAULT_MODEL
    precision: str = "fp32"
    workers: int | None = None
    max_tokens: int | None = None
    dim: int | None = None
    # As much as LlamaIndex allows: the pool cuts batches by tokens itself.
    embed_batch_size: int = 2048

    _source: PoolSource = PrivateAttr()

    def __init__(self, *, pool: EmbeddingPool | None = None, **fields: Any) -> None:
        if pool is not None:
            made_of = {name: fields.pop(name) for name in _OPTIONS if name in fields}
            source = PoolSource(pool, made_of)
            made = pool.identity
            fields |= {"model_name": made.name, "precision": made.precision}
            fields |= {"max_tokens": made.max_tokens or None, "dim": made.dim}
        super().__init__(**fields)
        self._source = source if pool is not None else PoolSource(None, self._options())

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes down."""
        return "MemworkerEmbedding"

    def close(self) -> None:
        """End the pool, unless it was given."""
        self._source.close()

    def _options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in _OPTIONS if name != "model_name"}
        return {"model": self.model_name, **options}

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._source.embed([text], "passage")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._source.embed(texts, "passage")

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._source.embed([query], "query")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._source.embed_async([text], "passage"))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._source.embed_async(texts, "passage")

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._source.embed_async([query], "query"))[0]


_OPTIONS = ("model_name", "precision", "workers", "max_tokens", "dim")

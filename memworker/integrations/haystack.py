"""Haystack's text and document embedders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from memworker import EmbeddingPool
from memworker.errors import UsageError
from memworker.integrations.pools import PoolArguments, PoolSource, framework

with framework("haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict

__all__ = ["MemworkerDocumentEmbedder", "MemworkerTextEmbedder"]


class _PoolComponent:
    """What both embedders share: a pool that was given, or one from `warm_up` to `close`."""

    def __init__(self, pool: EmbeddingPool | None, options: PoolArguments) -> None:
        self._pool, self._options = pool, options
        self._source = PoolSource(pool, options)

    def warm_up(self) -> None:
        """Start the workers; a pipeline does so before its first run."""
        self._source.get().start()

    def close(self) -> None:
        """End the pool, unless it was given; `warm_up` would make another."""
        self._source.close()
        self._source = PoolSource(self._pool, self._options)

    def _described(self, **parameters: Any) -> dict[str, Any]:
        if self._pool is not None:
            raise UsageError(
                "an embedder with a given pool cannot be written down: a pool is of this process;"
                " give it model options instead"
            )
        described: dict[str, Any] = default_to_dict(self, **self._options, **parameters)
        return described


@component
class MemworkerTextEmbedder(_PoolComponent):
    """Embeds a query for a retriever.

    Give a `pool`, which stays open, or the options of one of its own.
    """

    def __init__(
        self, *, pool: EmbeddingPool | None = None, **options: Unpack[PoolArguments]
    ) -> None:
        # Not super(): @component puts another class in this one's place.
        _PoolComponent.__init__(self, pool, options)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed one query."""
        return {"embedding": self._source.embed([_one(text)], "query")[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed one query without blocking the event loop."""
        return {"embedding": (await self._source.embed_async([_one(text)], "query"))[0]}

    def to_dict(self) -> dict[str, Any]:
        """Write the component down, for a pipeline's YAML."""
        return self._described()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemworkerTextEmbedder:
        """Make the component that `to_dict` wrote down."""
        made: MemworkerTextEmbedder = default_from_dict(cls, data)
        return made


@component
class MemworkerDocumentEmbedder(_PoolComponent):
    """Embeds documents for a document store.

    Of a document its content is embedded, after the values of
    `meta_fields_to_embed`, joined by `embedding_separator`. Give a `pool`,
    which stays open, or the options of one of its own.
    """

    def __init__(
        self,
        *,
        pool: EmbeddingPool | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **options: Unpack[PoolArguments],
    ) -> None:
        _PoolComponent.__init__(self, pool, options)
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return the documents, in order, with their embeddings."""
        return _embedded(documents, self._source.embed(self._texts(documents), "passage"))

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Do what `run` does without blocking the event loop."""
        vectors = await self._source.embed_async(self._texts(documents), "passage")
        return _embedded(documents, vectors)

    def to_dict(self) -> dict[str, Any]:
        """Write the component down, for a pipeline's YAML."""
        return self._described(
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemworkerDocumentEmbedder:
        """Make the component that `to_dict` wrote down."""
        made: MemworkerDocumentEmbedder = default_from_dict(cls, data)
        return made

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError("give a list of Documents; MemworkerTextEmbedder embeds a str")
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        values = [document.meta.get(field) for field in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, document.content or ""])


def _one(text: str) -> str:
    if not isinstance(text, str):
        raise TypeError("give one str; MemworkerDocumentEmbedder embeds a list of Documents")
    return text


def _embedded(documents: list[Document], vectors: list[list[float]]) -> dict[str, Any]:
    # Haystack's components change no document of their caller.
    pairs = zip(documents, vectors, strict=True)
    return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

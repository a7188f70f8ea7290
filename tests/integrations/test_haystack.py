"""Haystack's embedders, alone and in pipelines of the real package."""

from __future__ import annotations

import asyncio

import pytest

from tests.integrations.kinds import told

pytest.importorskip("haystack", reason='needs pip install "memworker[haystack]"')

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from memworker.errors import UsageError
from memworker.integrations.haystack import MemworkerDocumentEmbedder, MemworkerTextEmbedder


def test_documents_and_queries_are_told_apart(kinds):
    documents = [Document(content="a"), Document(content="four"), Document()]
    embedded = MemworkerDocumentEmbedder(pool=kinds).run(documents=documents)["documents"]
    assert [told(d.embedding) for d in embedded] == [(1, False), (4, False), (0, False)]
    assert [d.id for d in embedded] == [d.id for d in documents]
    assert documents[0].embedding is None
    assert told(MemworkerTextEmbedder(pool=kinds).run(text="a query")["embedding"]) == (7, True)


def test_chosen_meta_fields_are_embedded_before_the_content(kinds):
    document = Document(content="body", meta={"title": "head", "page": 7, "author": None})
    embedder = MemworkerDocumentEmbedder(
        pool=kinds, meta_fields_to_embed=["title", "page", "author"], embedding_separator=" | "
    )
    (embedded,) = embedder.run(documents=[document])["documents"]
    assert told(embedded.embedding) == (len("head | 7 | body"), False)


def test_coroutines_embed(kinds):
    async def both():
        return await asyncio.gather(
            MemworkerDocumentEmbedder(pool=kinds).run_async(documents=[Document(content="four")]),
            MemworkerTextEmbedder(pool=kinds).run_async(text="a query"),
        )

    documents, query = asyncio.run(both())
    assert told(documents["documents"][0].embedding) == (4, False)
    assert told(query["embedding"]) == (7, True)


def test_what_belongs_to_the_other_is_refused(kinds):
    with pytest.raises(TypeError, match="MemworkerTextEmbedder"):
        MemworkerDocumentEmbedder(pool=kinds).run(documents="a text")
    with pytest.raises(TypeError, match="MemworkerDocumentEmbedder"):
        MemworkerTextEmbedder(pool=kinds).run(text=[Document(content="a")])


def test_pipelines_index_and_find_by_meaning(pool):
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("embedder", MemworkerDocumentEmbedder(pool=pool))
    indexing.add_component("writer", DocumentWriter(document_store=store))
    indexing.connect("embedder.documents", "writer.documents")
    texts = ["the cat sleeps on the sofa", "the invoice is due on Friday", "it rains in Bergen"]
    indexing.run({"embedder": {"documents": [Document(content=text) for text in texts]}})

    asking = Pipeline()
    asking.add_component("embedder", MemworkerTextEmbedder(pool=pool))
    asking.add_component("retriever", InMemoryEmbeddingRetriever(document_store=store, top_k=1))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    found = asking.run({"embedder": {"text": "when must the bill be paid?"}})
    assert found["retriever"]["documents"][0].content == texts[1]


def test_a_pipeline_is_written_down_run_closed_and_run_again():
    written = Pipeline()
    written.add_component("embedder", MemworkerTextEmbedder(model="echo", workers=1))
    pipeline = Pipeline.loads(written.dumps(), allowed_modules=["memworker.integrations.haystack"])
    assert pipeline.run({"embedder": {"text": "four"}})["embedder"]["embedding"][1] == 4.0
    pipeline.close()
    assert pipeline.run({"embedder": {"text": "seventh"}})["embedder"]["embedding"][1] == 7.0
    pipeline.close()


def test_a_document_embedder_keeps_its_options_on_paper():
    embedder = MemworkerDocumentEmbedder(model="echo", meta_fields_to_embed=["title"])
    again = MemworkerDocumentEmbedder.from_dict(embedder.to_dict())
    assert again.to_dict() == embedder.to_dict()
    assert again.meta_fields_to_embed == ["title"]


def test_a_given_pool_cannot_be_written_down(kinds):
    with pytest.raises(UsageError, match="options"):
        MemworkerTextEmbedder(pool=kinds).to_dict()

"""LlamaIndex's embedding, on the real package."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from tests.integrations.kinds import told

pytest.importorskip("llama_index.core", reason='needs pip install "memworker[llama-index]"')

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from memworker.integrations.llama_index import MemworkerEmbedding


def test_texts_and_queries_are_told_apart(kinds):
    embedding = MemworkerEmbedding(pool=kinds)
    assert told(embedding.get_text_embedding("four")) == (4, False)
    assert told(embedding.get_query_embedding("a query")) == (7, True)
    batch = embedding.get_text_embedding_batch(["x" * n for n in range(1, 3000)])
    assert [told(vector) for vector in batch] == [(n, False) for n in range(1, 3000)]


def test_coroutines_embed(kinds):
    embedding = MemworkerEmbedding(pool=kinds, embed_batch_size=2)

    async def each():
        return await asyncio.gather(
            embedding.aget_text_embedding("four"),
            embedding.aget_query_embedding("a query"),
            embedding.aget_text_embedding_batch(["a", "bb", "ccc"]),
        )

    text, query, batch = asyncio.run(each())
    assert told(text) == (4, False) and told(query) == (7, True)
    assert [told(vector) for vector in batch] == [(1, False), (2, False), (3, False)]


def test_an_index_finds_by_meaning(pool):
    embedding = MemworkerEmbedding(pool=pool)
    texts = ["the cat sleeps on the sofa", "the invoice is due on Friday", "it rains in Bergen"]
    index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=embedding)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("when must the bill be paid?")
    assert found.node.get_content() == texts[1]


def test_it_says_what_it_is_made_of(kinds, pool):
    assert MemworkerEmbedding(pool=pool).model_name == pool.identity.name
    assert MemworkerEmbedding(pool=pool).max_tokens == pool.identity.max_tokens
    assert MemworkerEmbedding(precision="int8").to_dict()["precision"] == "int8"
    with pytest.raises(ValueError, match="model_name"):
        MemworkerEmbedding(pool=kinds, model_name="echo")
    with pytest.raises(ValueError, match="presision"):
        MemworkerEmbedding(presision="int8")


def test_a_pickled_copy_makes_a_pool_of_its_own():
    embedding = MemworkerEmbedding(model_name="echo", workers=1)
    copied = pickle.loads(pickle.dumps(embedding))
    assert copied.to_dict() == embedding.to_dict()
    assert copied.get_text_embedding("four") == embedding.get_text_embedding("four")
    copied.close()
    embedding.close()


def test_it_is_made_again_from_what_was_written_down():
    described = MemworkerEmbedding(model_name="echo", workers=1).to_dict()
    embedding = MemworkerEmbedding.from_dict(described)
    assert embedding.get_query_embedding("four")[1] == 4.0
    embedding.close()

"""Haystack's document store, held against Haystack's own tests of document stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

pytest.importorskip("haystack", reason='needs pip install "memworker[haystack]"')

from haystack import Document, Pipeline
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import DocumentStoreBaseExtendedTests

from memworker.errors import UsageError
from memworker.integrations.haystack import MemworkerTextEmbedder
from memworker.integrations.haystack_store import (
    MemworkerDocumentStore,
    MemworkerEmbeddingRetriever,
)


class TestAsHaystackHasIt(DocumentStoreBaseExtendedTests):
    @pytest.fixture
    def document_store(self, tmp_path):
        return MemworkerDocumentStore(tmp_path / "db", embedding_dim=768)

    @staticmethod
    def assert_documents_are_equal(received, expected):
        # A table's vectors have 32 bits, and its rows the order of their commits.
        by_id = sorted(received, key=lambda document: document.id)
        wanted = sorted(expected, key=lambda document: document.id)
        assert [replace(each, embedding=None) for each in by_id] == [
            replace(each, embedding=None) for each in wanted
        ]
        for one, other in zip(by_id, wanted, strict=True):
            assert (one.embedding is None) == (other.embedding is None)
            assert one.embedding is None or one.embedding == pytest.approx(other.embedding)

    def test_write_documents(self, document_store):
        documents = [Document(content="one"), Document(content="two")]
        assert document_store.write_documents(documents) == 2
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents(documents[:1])


@pytest.fixture
def store(tmp_path):
    return MemworkerDocumentStore(tmp_path / "db", embedding_dim=3)


def test_a_document_comes_back_as_it_was(store):
    whole = Document(
        content="text",
        blob=ByteStream(b"\x00\xff", {"page": 1}, "image/png"),
        meta={"list": [1, "a"], "deep": {"er": True}, "none": None, "text": "shadows"},
        embedding=[1.0, 0.0, 0.5],
        sparse_embedding=SparseEmbedding([1, 5], [0.5, 0.25]),
    )
    zero = Document(content="0", embedding=[0.0] * 3)
    others = [Document(id="none"), Document(id="empty", content=""), zero]
    assert store.write_documents([whole, *others]) == 4
    found = {each.id: each for each in store.filter_documents()}
    assert [found[each.id] for each in (whole, *others)] == [whole, *others]


def test_a_retriever_finds_by_meaning_and_filter_what_has_a_vector(store):
    near, far = [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]
    documents = [
        Document(content="near", embedding=near, meta={"tags": ["a", "b"]}),
        Document(content="far", embedding=far, meta={"tags": ["a"]}),
        Document(content="no vector", meta={"tags": ["a"]}),
    ]
    asyncio.run(store.write_documents_async(documents))
    found = MemworkerEmbeddingRetriever(store).run([1.0, 0.0, 0.0])["documents"]
    assert [each.content for each in found] == ["near", "far"]
    assert found[0].score > 0.99 and found[0].embedding == pytest.approx(near)
    retriever = MemworkerEmbeddingRetriever(store, top_k=1)
    where = {"field": "meta.tags", "operator": "in", "value": ["b", "c"]}
    (only,) = asyncio.run(retriever.run_async(far, filters=where))["documents"]
    assert only.content == "near"


def test_what_is_wrong_is_said_in_haystacks_errors(store):
    for wrong in ("meta.a", {"operator": "XOR", "conditions": [{}]}, {"operator": "AND"}):
        with pytest.raises((FilterError, AttributeError)):
            store.filter_documents(wrong)
    with pytest.raises(FilterError, match="delete_all_documents"):
        store.delete_by_filter({})
    with pytest.raises(UsageError, match="3 dimensions, the table|2 dimensions, the table has 3"):
        store.write_documents([Document(content="x", embedding=[1.0, 2.0])])
    assert store.count_documents() == 0
    with pytest.raises(TypeError, match="dims"):
        MemworkerDocumentStore("db", dims=3)
    twice = [Document(content="x")] * 2
    with pytest.raises(DuplicateDocumentError):
        store.write_documents(twice)
    assert store.write_documents(twice, policy=DuplicatePolicy.SKIP) == 1
    assert store.write_documents(twice, policy=DuplicatePolicy.OVERWRITE) == 2


def test_a_pipeline_is_written_down_and_run_again(tmp_path):
    store = MemworkerDocumentStore(tmp_path / "db")
    store.write_documents([Document(content="x", embedding=[1.0] * 384)])
    pipeline = Pipeline()
    pipeline.add_component("embedder", MemworkerTextEmbedder(model="echo", workers=1))
    pipeline.add_component("retriever", MemworkerEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    modules = ["memworker.integrations.haystack", "memworker.integrations.haystack_store"]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=modules)
    assert again.run({"embedder": {"text": "q"}})["retriever"]["documents"][0].content == "x"
    again.close()

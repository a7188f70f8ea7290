"""LangChain's vector store and LangGraph's store over tables, on the real packages.

Where langchain-tests is installed, its own tests of vector stores run too.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tests import PATIENCE_S

pytest.importorskip("langchain_core", reason='needs pip install "memworker[langchain]"')

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from memworker import Table
from memworker.errors import TableMismatch, UsageError
from memworker.integrations.langchain import MemworkerEmbeddings, TableVectorStore
from tests.integrations.test_langchain import FACTS

# In a process of its own: the package brings pytest plugins that ours are not run with.
THEIRS = """
import pytest
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests
from memworker.integrations.langchain import TableVectorStore

class TestOurs(VectorStoreIntegrationTests):
    @pytest.fixture()
    def vectorstore(self, tmp_path):
        yield TableVectorStore(tmp_path, self.get_embeddings())
"""


def test_as_langchain_has_it(tmp_path):
    pytest.importorskip("langchain_tests", reason="needs pip install langchain-tests")
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    command = [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "test_theirs.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and "25 passed" in done.stdout, done.stdout


def test_documents_are_found_by_meaning_and_filter(pool, tmp_path):
    store = TableVectorStore(tmp_path, MemworkerEmbeddings(pool=pool))
    tags = [["pet", "home"], ["money"], ["weather"]]
    documents = [
        Document(fact, metadata={"tags": tag, "n": n})
        for n, (fact, tag) in enumerate(zip(FACTS, tags, strict=True))
    ]
    ids = store.add_documents(documents)
    assert len(set(ids)) == 3
    query = "when must the bill be paid?"
    (found,) = store.similarity_search(query, k=1)
    assert (found.page_content, found.metadata) == (FACTS[1], documents[1].metadata)
    assert found.id == ids[1]
    (other,) = store.similarity_search(query, filter={"tags": "home"})
    assert other.id == ids[0]
    relevant = store.similarity_search_with_relevance_scores(query, k=3)
    assert relevant[0][0].id == ids[1] and all(0 <= score <= 1 for _, score in relevant)
    diverse = store.max_marginal_relevance_search(query, k=2, fetch_k=3, lambda_mult=0.1)
    assert diverse[0].id == ids[1] and len(diverse) == 2
    retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {"n": {"gt": 1}}})
    assert asyncio.run(retriever.ainvoke(query))[0].id == ids[2]
    assert Table.open(tmp_path, "langchain").count({"n": 1}) == 1
    with pytest.raises(TableMismatch):
        TableVectorStore(tmp_path, DeterministicFakeEmbedding(size=6))


def test_what_is_wrong_is_said_and_writes_nothing(tmp_path):
    store = TableVectorStore(tmp_path, DeterministicFakeEmbedding(size=6))
    wrong = [
        lambda: store.add_texts(["a"], batch_size=3),
        lambda: store.add_texts(["a", "b"], ids=["1"]),
        lambda: store.add_texts(["a"], [{"x": 1}, {}]),
        lambda: store.add_texts(["a"], [{"_memworker": 1}]),
        lambda: store.similarity_search("a", where={"x": 1}),
        lambda: store.similarity_search("a", filter=lambda _: True),
        lambda: store.similarity_search_by_vector([1.0]),
        lambda: store.delete(ids=["1"], all=True),
        lambda: TableVectorStore.from_texts(["a"], store.embeddings),
    ]
    for each in wrong:
        with pytest.raises(UsageError):
            each()
    assert store.table.count() == 0
    made = TableVectorStore.from_texts(["a"], store.embeddings, db=tmp_path / "b", ids=["1"])
    assert [found.page_content for found in made.get_by_ids(["1", "2"])] == ["a"]


def test_the_provider_is_known_to_langchain_once_it_is_registered():
    base = pytest.importorskip("langchain.embeddings.base", reason="needs pip install langchain")
    from memworker.integrations.langchain import register_provider

    try:
        register_provider()
        with base.init_embeddings("memworker:echo", workers=1) as embeddings:
            assert embeddings.embed_query("four")[1] == 4.0
        with pytest.raises(UsageError, match="batch_size"):
            base.init_embeddings("memworker:echo", batch_size=3)
    finally:
        base._BUILTIN_PROVIDERS.pop("memworker", None)
        base._get_embeddings_class_creator.cache_clear()

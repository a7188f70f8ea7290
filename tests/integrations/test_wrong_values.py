"""A wrong value is refused when an adapter is made: by what was given, and by what is possible."""

from __future__ import annotations

import re

import pytest
from langchain_core.embeddings import Embeddings

from memworker.errors import MemworkerError
from memworker.integrations.haystack import MemworkerDocumentEmbedder, MemworkerTextEmbedder
from memworker.integrations.haystack_store import (
    MemworkerDocumentStore,
    MemworkerEmbeddingRetriever,
)
from memworker.integrations.lancedb import MemworkerFunction
from memworker.integrations.langchain import (
    MemworkerEmbeddings,
    MemworkerRetriever,
    TableVectorStore,
)
from memworker.integrations.langgraph import MemworkerStore
from memworker.integrations.llama_index import MemworkerEmbedding
from memworker.integrations.mem0 import MemworkerEmbedder, MemworkerVectorStore

POOL_VALUES = {
    "precision": ("fp33", "fp32, int8, bf16"),
    "workers": (-1, "at least 1"),
    "max_tokens": (10_000, "3 to"),
    "dim": (9_999, "1 to 384"),
    "model": ("no-such-model", "memworker models list"),
}
EMBEDDERS = (
    MemworkerEmbeddings,
    MemworkerEmbedding,
    MemworkerTextEmbedder,
    MemworkerDocumentEmbedder,
    MemworkerEmbedder,
    MemworkerFunction,
)
NAMES = {MemworkerEmbedding: {"model": "model_name"}, MemworkerFunction: {"model": "name"}}


# LanceDB's may have the name of a pool that is lent later.
CASES = [
    (made, option)
    for made in EMBEDDERS
    for option in POOL_VALUES
    if (made, option) != (MemworkerFunction, "model")
]


@pytest.mark.parametrize(("made", "option"), CASES)
def test_a_value_that_no_pool_takes_is_refused_when_an_embedder_is_made(made, option):
    value, possible = POOL_VALUES[option]
    with pytest.raises(MemworkerError, match=rf"(?s)(?=.*{value})(?=.*{possible})"):
        made(**{NAMES.get(made, {}).get(option, option): value})


@pytest.mark.parametrize("value", [{"batch_tokens": "x"}, {"memory": "much"}, {"precision": 8}])
def test_so_are_values_of_another_type(value):
    (given,) = value.values()
    with pytest.raises(MemworkerError, match=str(given)):
        MemworkerEmbeddings(**value)


def test_a_repository_that_is_not_here_is_looked_up_at_the_first_use_alone():
    assert MemworkerEmbeddings(model="nobody-we-know/nothing-at-all", precision="int8")


class Dims(Embeddings):
    def embed_documents(self, texts):
        return [[1.0, 0.0] for _ in texts]

    def embed_query(self, text):
        return [1.0, 0.0]


STORES = {
    "langchain": lambda db, **told: TableVectorStore(db, MemworkerEmbeddings(model="echo"), **told),
    "langgraph": lambda db, **told: MemworkerStore(db, **told),
    "haystack": lambda db, **told: MemworkerDocumentStore(db, **told),
    "mem0": lambda db, **told: MemworkerVectorStore(db, **told),
}


@pytest.mark.parametrize("made", STORES.values(), ids=STORES)
@pytest.mark.parametrize("db", ["http://example.org/x", "s4://bucket/x", 5, None])
def test_a_database_that_cannot_be_one_is_refused_by_every_store(made, db):
    with pytest.raises(MemworkerError, match=r"(?s)(?=.*s3://)(?=.*" + re.escape(str(db)) + ")"):
        made(db)


@pytest.mark.parametrize("made", STORES.values(), ids=STORES)
@pytest.mark.parametrize("name", ["a b/c", "", 5])
def test_so_is_a_name_that_no_table_can_have(made, name, tmp_path):
    key = "collection_name" if made is STORES["mem0"] else "table"
    with pytest.raises(MemworkerError, match=re.escape(repr(name))):
        made(tmp_path, **{key: name})


def test_other_wrong_values_of_stores_and_retrievers(tmp_path):
    store = MemworkerDocumentStore(tmp_path / "a")
    made = MemworkerEmbeddings(model="echo")
    table = TableVectorStore(tmp_path / "b", made).table
    for value in (0, -1, "x", True):
        wrong = [
            lambda value=value: MemworkerDocumentStore(tmp_path, embedding_dim=value),
            lambda value=value: MemworkerVectorStore(tmp_path, embedding_model_dims=value),
            lambda value=value: MemworkerStore(tmp_path, index={"embed": Dims(), "dims": value}),
            lambda value=value: MemworkerEmbeddingRetriever(store, top_k=value),
            lambda value=value: MemworkerRetriever(table=table, embeddings=made, k=value),
        ]
        for make in wrong:
            with pytest.raises((MemworkerError, ValueError), match=f"at least 1, not .*{value}"):
                make()
    for make in (
        lambda: TableVectorStore(tmp_path, "minilm"),
        lambda: MemworkerStore(tmp_path, index={"embed": 5}),
        lambda: MemworkerVectorStore(tmp_path, pool="minilm"),
        lambda: MemworkerStore(tmp_path, index={"embed": Dims(), "dims": 2, "fields": "text"}),
    ):
        with pytest.raises(MemworkerError, match="minilm|not 5|'text'"):
            make()

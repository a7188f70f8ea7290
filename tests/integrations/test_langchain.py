"""LangChain's embeddings and LangGraph's store, on the real packages."""

from __future__ import annotations

import asyncio

import pytest

from tests.integrations.kinds import told

pytest.importorskip("langchain_core", reason='needs pip install "memworker[langchain]"')

from langchain_core.vectorstores import InMemoryVectorStore

from memworker import EmbeddingPool, Table, ingest
from memworker.integrations.langchain import MemworkerEmbeddings, MemworkerRetriever

FACTS = ["the cat sleeps on the sofa", "the invoice is due on Friday", "it rains in Bergen"]


def test_documents_and_queries_are_told_apart(kinds):
    embeddings = MemworkerEmbeddings(pool=kinds)
    assert [told(v) for v in embeddings.embed_documents(["a", "four"])] == [(1, False), (4, False)]
    assert told(embeddings.embed_query("a query")) == (7, True)
    assert embeddings.embed_documents([]) == []


def test_vectors_are_lists_of_python_floats(kinds):
    (vector,) = MemworkerEmbeddings(pool=kinds).embed_documents(["a"])
    assert type(vector) is list and {type(x) for x in vector} == {float}


def test_coroutines_embed_at_once(kinds):
    embeddings = MemworkerEmbeddings(pool=kinds)

    async def both():
        return await asyncio.gather(
            embeddings.aembed_documents(["a", "four"]), embeddings.aembed_query("a query")
        )

    documents, query = asyncio.run(both())
    assert [told(v) for v in documents] == [(1, False), (4, False)] and told(query) == (7, True)


def test_the_event_loop_goes_on_meanwhile(kinds):
    embeddings = MemworkerEmbeddings(pool=kinds)

    async def ticks():
        work = asyncio.ensure_future(embeddings.aembed_documents(["x" * 200] * 5000))
        count = 0
        while not work.done():
            await asyncio.sleep(0)
            count += 1
        return count, len(await work)

    count, rows = asyncio.run(ticks())
    assert rows == 5000 and count > 3


def test_an_own_pool_lives_as_long_as_the_block():
    with MemworkerEmbeddings(model="echo", workers=1) as embeddings:
        assert embeddings.dim == len(embeddings.embed_query("a"))


def test_a_vector_store_finds_by_meaning(pool):
    store = InMemoryVectorStore(MemworkerEmbeddings(pool=pool))
    store.add_texts(FACTS)
    (found,) = store.similarity_search("when must the bill be paid?", k=1)
    assert found.page_content == FACTS[1]


def test_a_langgraph_store_finds_by_meaning(pool):
    pytest.importorskip("langgraph", reason='needs pip install "memworker[langgraph]"')
    from langgraph.store.memory import InMemoryStore

    embeddings = MemworkerEmbeddings(pool=pool)
    store = InMemoryStore(index={"embed": embeddings, "dims": embeddings.dim, "fields": ["text"]})
    for number, fact in enumerate(FACTS):
        store.put(("alice", "memories"), str(number), {"text": fact})

    async def ask():
        return await store.asearch(("alice", "memories"), query="what is the pet doing?", limit=1)

    (found,) = store.search(("alice", "memories"), query="what is the pet doing?", limit=1)
    assert found.value == {"text": FACTS[0]}
    (awaited,) = asyncio.run(ask())
    assert awaited.key == found.key and awaited.score == pytest.approx(found.score, abs=1e-5)


def test_a_retriever_gives_chunks_or_each_text_once(tmp_path):
    rows = [{"id": f"d{i}", "text": f"{fact}. " * 20, "n": i} for i, fact in enumerate(FACTS)]
    with EmbeddingPool("echo", workers=1) as pool:
        ingest(rows, db=tmp_path, table="t", pool=pool, chunk=20)
        table, embeddings = Table.open(tmp_path, "t"), MemworkerEmbeddings(pool=pool)
        chunks = MemworkerRetriever(table=table, embeddings=embeddings, k=9).invoke("cat")
        grouped = MemworkerRetriever(table=table, embeddings=embeddings, k=9, group=True)
        found = grouped.invoke("cat")
        some = MemworkerRetriever(table=table, embeddings=embeddings, where={"parent_id": "d1"})
        assert {each.metadata["n"] for each in some.invoke("cat")} == {1}
        assert asyncio.run(grouped.ainvoke("cat")) == found
        with pytest.raises(ValueError, match="top_k"):
            MemworkerRetriever(table=table, embeddings=embeddings, top_k=9)
    assert len(chunks) == 9
    assert sorted(each.metadata["parent_id"] for each in found) == ["d0", "d1", "d2"]
    first = found[0].metadata
    text = rows[first["n"]]["text"][first["char_start"] : first["char_end"]]
    assert found[0].page_content == text and found[0].id

"""Mem0's own flows with memworker as its vector store and its embedder."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from tests.integrations.served import serving

pytest.importorskip("mem0", reason='needs pip install "memworker[mem0]"')

import mem0

from memworker import Table
from memworker.integrations.mem0 import MemworkerEmbedder, MemworkerVectorStore

KEY = "a-key-for-the-tests"
FACTS = ["I am allergic to peanuts", "my sister lives in Bergen", "the invoice is due on Friday"]


def config(folder, embedder):
    """As docs/INTEGRATIONS.md has it; the language model is named and never asked."""
    return {
        "embedder": embedder,
        "llm": {"provider": "openai", "config": {"api_key": "unused"}},
        "vector_store": {
            "provider": "qdrant",
            "config": {"path": str(folder / "qdrant"), "embedding_model_dims": 384},
        },
        "history_db_path": str(folder / "history.db"),
    }


def lmstudio(url="http://127.0.0.1:9/v1"):
    return {
        "provider": "lmstudio",
        "config": {"model": "all-MiniLM-L6-v2", "lmstudio_base_url": url, "api_key": KEY},
    }


def openai(url):
    return {
        "provider": "openai",
        "config": {"model": "all-MiniLM-L6-v2", "openai_base_url": url, "api_key": KEY},
    }


def langchain(pool):
    pytest.importorskip("langchain", reason="Mem0's langchain provider needs pip install langchain")
    from memworker.integrations.langchain import MemworkerEmbeddings

    return {"provider": "langchain", "config": {"model": MemworkerEmbeddings(pool=pool)}}


@pytest.fixture(scope="module")
def url():
    with serving(key=KEY) as address:
        yield address


@pytest.fixture
def memory(pool, tmp_path):
    with mem0.Memory.from_config(config(tmp_path, lmstudio())) as made:
        made.vector_store = MemworkerVectorStore(tmp_path / "db", pool=pool)
        made.embedding_model = MemworkerEmbedder(pool=pool)
        yield made


def said(answer):
    return [each["memory"] for each in answer["results"]]


def add(memory, text, **given):
    (added,) = memory.add(text, infer=False, **{"user_id": "alice", **given})["results"]
    return added["id"]


def test_add_then_get(memory, tmp_path):
    made = add(memory, FACTS[0], metadata={"tag": "health", "n": 3}, agent_id="cook")
    found = memory.get(made)
    assert (found["memory"], found["user_id"], found["agent_id"]) == (FACTS[0], "alice", "cook")
    assert found["metadata"] == {"tag": "health", "n": 3} and found["created_at"]
    (row,) = Table.open(tmp_path / "db", "mem0").rows({"user_id": "alice"}).to_pylist()
    assert (row["id"], row["text"], row["agent_id"]) == (made, FACTS[0], "cook")
    assert row["created_at"].isoformat() == found["created_at"]
    assert memory.get("no such id") is None


def test_search_ranks_by_meaning_and_stays_in_its_scope(memory):
    for fact in FACTS:
        add(memory, fact)
    add(memory, "peanuts are bob's favourite", user_id="bob")
    found = memory.search("which food is dangerous?", filters={"user_id": "alice"}, top_k=3)
    assert said(found)[0] == FACTS[0]
    assert set(said(found)) <= set(FACTS)
    scores = [each["score"] for each in found["results"]]
    assert scores == sorted(scores, reverse=True) and 0 < scores[0] <= 1


def test_words_count_too(memory):
    for fact in FACTS:
        add(memory, fact)
    found = memory.search("Bergen", filters={"user_id": "alice"}, explain=True)
    assert said(found)[0] == FACTS[1]
    assert found["results"][0]["score_details"]["bm25_score"] > 0


def test_get_all(memory):
    for number in range(70):
        add(memory, f"fact {number}", run_id="even" if number % 2 == 0 else "odd")
    everything = memory.get_all(filters={"user_id": "alice"}, top_k=1000)
    assert sorted(said(everything)) == sorted(f"fact {number}" for number in range(70))
    assert len(said(memory.get_all(filters={"run_id": "odd"}, top_k=10))) == 10
    assert said(memory.get_all(filters={"user_id": "bob"})) == []


def test_update_and_history(memory):
    made = add(memory, FACTS[0], metadata={"tag": "health"})
    first = memory.get(made)
    memory.update(made, text="I am allergic to shellfish")
    memory.update(made, metadata={"tag": "diet"})
    found = memory.get(made)
    assert found["memory"] == "I am allergic to shellfish" and found["metadata"]["tag"] == "diet"
    assert found["created_at"] == first["created_at"] < found["updated_at"]
    assert said(memory.search("crabs and lobsters", filters={"user_id": "alice"}))
    assert len(said(memory.get_all(filters={"user_id": "alice"}))) == 1
    events = [(each["event"], each["new_memory"]) for each in memory.history(made)]
    assert events[:2] == [("ADD", FACTS[0]), ("UPDATE", "I am allergic to shellfish")]


def test_delete_and_delete_all(memory):
    made = [add(memory, fact) for fact in FACTS]
    other = add(memory, "bob's memory", user_id="bob")
    memory.delete(made[0])
    assert memory.get(made[0]) is None
    with pytest.raises(ValueError, match="not found"):
        memory.delete(made[0])
    memory.delete_all(user_id="alice")
    assert said(memory.get_all(filters={"user_id": "alice"})) == []
    assert memory.get(other)["memory"] == "bob's memory"
    assert memory.history(made[1])[-1]["event"] == "DELETE"


def test_reset_leaves_an_empty_store(memory):
    add(memory, FACTS[0])
    memory.reset()
    assert isinstance(memory.vector_store, MemworkerVectorStore)
    assert said(memory.get_all(filters={"user_id": "alice"})) == []
    assert memory.get(add(memory, FACTS[1]))["memory"] == FACTS[1]


@pytest.mark.parametrize(
    "filters, wanted",
    [
        ({"n": 2}, "2"),
        ({"n": {"gte": 2}}, "23"),
        ({"n": {"ne": 2}}, "13"),
        ({"tag": ["a", "b"]}, "12"),
        ({"tag": {"nin": ["a"]}}, "23"),
        ({"tag": "*"}, "12"),
        ({"tag": {"contains": "b"}}, "2"),
        ({"OR": [{"n": 1}, {"tag": "b"}]}, "12"),
        ({"NOT": [{"n": 1}, {"tag": "b"}]}, "3"),
        ({"AND": [{"n": {"gt": 1}}, {"tag": "*"}]}, "2"),
        ({"created_at": {"gt": "2020-01-01"}}, "123"),
        ({"created_at": {"lt": "2020-01-01T00:00:00+00:00"}}, ""),
        ({"tag": "x' OR '1'='1"}, ""),
    ],
    ids=str,
)
def test_filters_reach_the_table(memory, filters, wanted):
    add(memory, "1", metadata={"n": 1, "tag": "a"})
    add(memory, "2", metadata={"n": 2, "tag": "b"})
    add(memory, "3", metadata={"n": 3})
    scoped = {"user_id": "alice", **filters}
    assert "".join(sorted(said(memory.get_all(filters=scoped)))) == wanted
    found = memory.search("a number", filters=scoped, threshold=0.0)
    assert "".join(sorted(said(found))) == wanted


def test_the_async_memory_adds_at_once(pool, tmp_path):
    async def flow():
        memory = mem0.AsyncMemory.from_config(config(tmp_path, lmstudio()))
        memory = await memory if asyncio.iscoroutine(memory) else memory
        memory.vector_store = MemworkerVectorStore(tmp_path / "db", pool=pool)
        memory.embedding_model = MemworkerEmbedder(pool=pool)
        async with memory:
            adds = (memory.add(f"{fact}!", user_id="alice", infer=False) for fact in FACTS * 5)
            added = await asyncio.gather(*adds)
            found = await memory.search("is there an allergy?", filters={"user_id": "alice"})
            return added, said(found), said(await memory.get_all(filters={"user_id": "alice"}))

    added, found, everything = asyncio.run(flow())
    assert len({each["results"][0]["id"] for each in added}) == 15
    assert found[0] == f"{FACTS[0]}!" and len(everything) == 15


@pytest.mark.parametrize("provider", [openai, lmstudio])
def test_it_embeds_through_the_server(provider, url, pool, tmp_path):
    with mem0.Memory.from_config(config(tmp_path, provider(url))) as memory:
        memory.vector_store = MemworkerVectorStore(tmp_path / "db")
        for fact in FACTS:
            add(memory, fact)
        assert said(memory.search("food", filters={"user_id": "alice"}))[0] == FACTS[0]
        batch = memory.embedding_model.embed_batch([f"text {n}" for n in range(150)])
        expected = pool.embed([f"text {n}" for n in range(150)])
        assert abs(expected - batch).max() < 1e-5
        memory.embedding_model.client.close()


def test_it_embeds_through_langchain(pool, tmp_path):
    with mem0.Memory.from_config(config(tmp_path, langchain(pool))) as memory:
        memory.vector_store = MemworkerVectorStore(tmp_path / "db", pool=pool)
        for fact in FACTS:
            add(memory, fact)
        assert said(memory.search("food", filters={"user_id": "alice"}))[0] == FACTS[0]


def test_with_mem0s_own_store_it_is_the_embedder_alone(url, tmp_path, monkeypatch):
    # With fastembed, Mem0's Qdrant store would fetch a model for keywords.
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with mem0.Memory.from_config(config(tmp_path, openai(url))) as memory:
        add(memory, FACTS[0])
        assert said(memory.search("food", filters={"user_id": "alice"})) == [FACTS[0]]
        memory.vector_store.client.close()
        memory.embedding_model.client.close()


def test_nothing_calls_home():
    assert os.environ["MEM0_TELEMETRY"] == "false"
    assert mem0.memory.telemetry.MEM0_TELEMETRY is False

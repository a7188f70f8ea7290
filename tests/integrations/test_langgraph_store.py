"""LangGraph's store over a table, beside the one that LangGraph keeps in memory."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langgraph", reason='needs pip install "memworker[langgraph]"')

from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from memworker.errors import UsageError
from memworker.integrations.langchain import MemworkerEmbeddings
from memworker.integrations.langgraph import MemworkerStore

ITEMS = [
    (("users", "alice"), "tea", {"text": "likes green tea", "tags": ["drink"], "n": 1}),
    (("users", "alice"), "nuts", {"text": "is allergic to peanuts", "tags": ["food"], "n": 2}),
    (("users", "alice", "work"), "job", {"text": "is a painter", "deep": {"er": True}}),
    (("users", "bob"), "tea", {"text": "likes black tea", "n": 1.0, "on": None}),
    (("usersX",), "x", {"text": "another prefix", "n": "1"}),
]


@pytest.fixture
def index(kinds):
    return {"embed": MemworkerEmbeddings(pool=kinds), "dims": kinds.dim, "fields": ["text"]}


@pytest.fixture
def both(tmp_path, index):
    stores = MemworkerStore(tmp_path, index=index), InMemoryStore(index=index)
    for store in stores:
        store.batch([PutOp(*item) for item in ITEMS])
    return stores


def told(found):
    scored = ((item, None if item.score is None else round(item.score, 4)) for item in found)
    return {(item.namespace, item.key): (item.value, score) for item, score in scored}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"filter": {"n": 1}},
        {"filter": {"n": "1"}},
        {"filter": {"n": {"$ne": 1}}},
        {"filter": {"tags": ["drink"]}},
        {"filter": {"deep": {"er": True}}},
        {"filter": {"on": None, "text": "likes black tea"}},
        {"filter": {"tags": "drink"}},
        {"query": "green"},
        {"query": "green", "filter": {"n": 2}},
        {"query": "green", "limit": 2, "offset": 1},
        {"limit": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", [("users",), ("users", "alice"), ("user",), ()], ids=str)
def test_it_answers_as_the_one_in_memory(both, prefix, asked):
    ours, theirs = (store.search(prefix, **{"limit": 100} | asked) for store in both)
    if "offset" in asked:
        assert len(ours) == len(theirs)
        return
    assert told(ours) == told(theirs)


def test_operators_leave_out_what_is_no_number(both):
    # The store in memory raises TypeError where an item has no such field.
    found = both[0].search((), filter={"n": {"$gte": 1, "$lt": 2}})
    assert {item.key for item in found} == {"tea", "x"} and len(found) == 3


def test_namespaces_are_listed(both):
    for asked in (
        {},
        {"prefix": ("users",)},
        {"suffix": ("work",)},
        {"prefix": ("users", "*"), "max_depth": 2},
        {"limit": 2, "offset": 1},
    ):
        ours, theirs = (store.list_namespaces(**asked) for store in both)
        assert ours == theirs and ours


def test_a_put_replaces_all_of_an_item_and_keeps_its_birth(tmp_path, index):
    store = MemworkerStore(tmp_path, index={**index, "fields": ["facts[*]"]})
    store.put(("a",), "k", {"facts": ["one", "seventh", "x" * 20]})
    before = store.get(("a",), "k")
    assert store.search(("a",), query="x" * 20)[0].score == pytest.approx(1.0)
    assert len(store.search(("a",), query="x" * 20)) == 1
    assert store.table.count() == 3
    store.put(("a",), "k", {"facts": ["one"]})
    after = store.get(("a",), "k")
    assert store.table.count() == 1 and after.value == {"facts": ["one"]}
    assert after.created_at == before.created_at and after.updated_at > before.updated_at
    again = MemworkerStore(tmp_path, index={**index, "fields": ["facts[*]"]})
    assert again.get(("a",), "k").value == after.value
    store.delete(("a",), "k")
    assert again.get(("a",), "k") is None and again.table.count() == 0


def test_coroutines_read_before_they_write_as_every_batch_does(tmp_path, index):
    async def talk(store):
        await store.aput(("a",), "k", {"text": "first"})
        return await store.abatch(
            [
                PutOp(("a",), "k", {"text": "second"}),
                GetOp(("a",), "k"),
                SearchOp(("a",), query="first"),
                ListNamespacesOp(),
                PutOp(("a",), "gone", None),
            ]
        )

    store = MemworkerStore(tmp_path, index=index)
    put, got, found, spaces, gone = asyncio.run(talk(store))
    assert put is None and gone is None and spaces == [("a",)]
    assert got.value == found[0].value == {"text": "first"}
    assert store.get(("a",), "k").value == {"text": "second"}


def test_without_an_index_nothing_is_embedded_and_a_query_does_not_count(tmp_path):
    store = MemworkerStore(tmp_path)
    store.put(("a",), "k", {"text": "x"})
    (found,) = store.search(("a",), query="anything")
    assert found.key == "k" and found.score is None


def test_what_is_wrong_is_said(tmp_path, index):
    with pytest.raises(UsageError, match="feilds"):
        MemworkerStore(tmp_path, index={**index, "feilds": ["text"]})
    with pytest.raises(UsageError, match="dims"):
        MemworkerStore(tmp_path, index={**index, "dims": 7})
    store = MemworkerStore(tmp_path, index=index)
    with pytest.raises(UsageError, match="no dot"):
        store.batch([PutOp(("a.b",), "k", {"x": 1})])
    with pytest.raises(UsageError, match="empty"):
        store.batch([PutOp((), "k", {"x": 1})])
    with pytest.raises(UsageError, match="near"):
        store.search(("a",), filter={"x": {"$near": 1}}) or store.put(("a",), "k", {"x": 1})
        store.search(("a",), filter={"x": {"$near": 1}})
    with pytest.raises(NotImplementedError):
        store.put(("a",), "k", {"x": 1}, ttl=5)


def test_a_ttl_is_refused_in_a_batch_too_and_nothing_of_it_is_written(tmp_path):
    store = MemworkerStore(tmp_path)
    assert not store.supports_ttl
    ops = [PutOp(("a",), "k", {"x": 1}), PutOp(("a",), "short", {"x": 1}, ttl=5)]
    with pytest.raises(NotImplementedError, match=r"'short' has ttl=5"):
        store.batch(ops)
    with pytest.raises(NotImplementedError, match=r"'short' has ttl=5"):
        asyncio.run(store.abatch(ops))
    assert store.get(("a",), "k") is None

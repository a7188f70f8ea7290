"""The contract of Mem0's `VectorStoreBase`, which its flows use only in part."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mem0", reason='needs pip install "memworker[mem0]"')

from mem0.vector_stores.base import VectorStoreBase

from memworker import Memory, Table
from memworker.errors import FilterError, MemoryNotFound, TableMismatch, UsageError
from memworker.integrations.mem0 import MemworkerVectorStore

DIMS = 8


def axis(number):
    return [float(number == place) for place in range(DIMS)]


@pytest.fixture
def store(tmp_path):
    made = MemworkerVectorStore(tmp_path, embedding_model_dims=DIMS)
    payloads = [
        {"data": f"fact {n}", "user_id": "alice", "n": n, "deep": {"list": [n, None]}}
        for n in range(3)
    ]
    made.insert([axis(n) for n in range(3)], payloads, ["a", "b", "c"])
    return made


def ids(found):
    return [each.id for each in found]


def test_it_is_a_store_of_mem0s_without_a_client(store):
    assert isinstance(store, VectorStoreBase) and not hasattr(store, "client")


def test_a_payload_comes_back_as_it_was(store):
    payload = {"data": "ünï 'quoted' \\ \n text", "user_id": "bob", "n": 2**60, "x": 0.1, "": None}
    store.insert([axis(5)], [payload], ["d"])
    assert store.get("d").payload == payload
    assert store.list({"user_id": "bob"})[0][0].payload == payload
    assert store.search("", axis(5), top_k=1)[0].payload == payload


def test_scores_are_cosines_from_0_to_1(store):
    store.insert([[-1.0, *axis(9)[1:]]], [{"data": "opposite"}], ["d"])
    found = store.search("", axis(0), top_k=4)
    assert ids(found)[0] == "a" and found[0].score == pytest.approx(1.0)
    assert {each.score for each in found[1:]} == {0.0}


def test_several_searches_at_once(store):
    found = store.search_batch(["", ""], [axis(2), axis(1)], top_k=1, filters={"user_id": "alice"})
    assert [ids(each) for each in found] == [["c"], ["b"]]


def test_a_list_in_a_payload_meets_what_one_of_its_values_meets(store):
    payload = {"data": "lunch", "user_id": "carol", "tags": ["food", "noon"], "by": {"car": "no"}}
    store.insert([axis(4)], [payload], ["e"])
    for condition in ("food", {"contains": "foo"}, ["rent", "noon"], {"in": ["food"]}, "*"):
        assert ids(store.list({"user_id": "carol", "tags": condition})[0]) == ["e"]
    assert ids(store.list({"user_id": "carol", "by.car": "no"})[0]) == ["e"]
    assert ids(store.list({"user_id": "carol", "tags": "fo"})[0]) == []
    store.delete("e")


def test_words_are_ranked(store):
    store.insert([axis(4)], [{"data": "a rare word", "user_id": "alice"}], ["d"])
    (found,) = store.keyword_search("rare", filters={"user_id": "alice"})
    assert found.id == "d" and found.score > 0
    assert store.keyword_search("rare", filters={"user_id": "bob"}) == []


def test_a_known_id_takes_the_others_place(store):
    store.insert([axis(5), axis(6)], [{"data": "new a"}, {"data": "new d"}], ["a", "d"])
    assert sorted(ids(store.list()[0])) == ["a", "b", "c", "d"]
    assert store.get("a").payload == {"data": "new a"}
    assert ids(store.search("", axis(5), top_k=1)) == ["a"]


def test_without_ids_and_payloads_they_are_made(tmp_path):
    store = MemworkerVectorStore(tmp_path, embedding_model_dims=DIMS)
    store.insert([axis(0), axis(1)])
    assert len(set(ids(store.list()[0]))) == 2


def test_vector_and_payload_are_updated_apart(store):
    before = store.get("a").payload
    store.update("a", vector=axis(7))
    assert store.get("a").payload == before
    assert ids(store.search("", axis(7), top_k=1)) == ["a"]
    store.update("a", payload={**before, "n": 9})
    assert store.get("a").payload["n"] == 9
    assert ids(store.search("", axis(7), top_k=1)) == ["a"]
    with pytest.raises(MemoryNotFound, match="'gone'"):
        store.update("gone", payload={})


def test_delete(store):
    store.delete("a")
    store.delete("a")
    assert store.get("a") is None and sorted(ids(store.list()[0])) == ["b", "c"]


def test_collections(store, tmp_path):
    store.create_col("other", DIMS, "cosine")
    store.insert([axis(0)], [{"data": "elsewhere"}], ["z"])
    assert store.list_cols() == ["mem0", "other"]
    assert store.col_info() == {
        "name": "other",
        "count": 1,
        "dims": DIMS,
        "distance": "cosine",
        "model": "mem0",
    }
    store.delete_col()
    assert store.list() == [[]]
    assert Table.open(tmp_path, "mem0").count() == 3
    with pytest.raises(UsageError, match="another MemworkerVectorStore"):
        store.create_col("third", 1536, "cosine")


def test_vectors_of_another_size_are_refused(store):
    with pytest.raises(UsageError, match="1536 dimensions, the store has 8"):
        store.insert([[0.1] * 1536], [{"data": "x"}], ["x"])
    with pytest.raises(UsageError, match="each memory"):
        store.insert([axis(0)], [], ["x", "y"])


def test_a_table_of_another_model_is_refused(store, kinds, tmp_path):
    with pytest.raises(TableMismatch, match="another table"):
        MemworkerVectorStore(tmp_path, pool=kinds)


def test_what_cannot_be_pushed_down_is_refused(store):
    with pytest.raises(FilterError, match="icontains"):
        store.list({"data": {"icontains": "FACT"}})
    with pytest.raises(UsageError, match="JSON"):
        store.insert([axis(0)], [{"data": "x", "n": float("nan")}], ["x"])


def test_many_commits_do_not_leave_as_many_files(store, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(300):
        store.insert([rng.normal(size=DIMS).tolist()], [{"data": f"memory {number}"}])
    info = Table.open(tmp_path, "mem0").info()
    assert info.rows == 303 and info.fragments < 100


def test_what_a_memory_of_the_same_table_replaced_or_deleted_does_not_show(kinds, tmp_path):
    store = MemworkerVectorStore(tmp_path, pool=kinds)
    vectors = kinds.embed(["first", "second"])
    payloads = [{"data": text, "user_id": "alice"} for text in ("first", "second")]
    store.insert(list(vectors), payloads, ["a", "b"])
    with Memory(tmp_path, table="mem0", pool=kinds) as memory:
        memory.update("a", "changed")
        memory.delete("b")
    assert store.get("a").payload["data"] == "changed" and store.get("b") is None
    assert ids(store.list({"user_id": "alice"})[0]) == ["a"]
    assert ids(store.search("", vectors[0], top_k=5)) == ["a"]
    assert ids(store.keyword_search("first second changed")) == ["a"]

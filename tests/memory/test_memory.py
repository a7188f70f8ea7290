"""What each method of a Memory promises, on a real table."""

from __future__ import annotations

import pytest

from memworker import EmbeddingPool, Memory


@pytest.fixture(scope="module")
def echo():
    with EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def memory(echo, tmp_path):
    with Memory(tmp_path / "db", pool=echo) as memory:
        yield memory


def test_what_was_added_is_found_listed_and_counted(memory):
    (added,) = memory.add("likes tea", user_id="alice", metadata={"n": 1})["results"]
    assert (added["memory"], added["event"], added["user_id"]) == ("likes tea", "ADD", "alice")
    (found,) = memory.search("likes tea", filters={"user_id": "alice"})["results"]
    assert found["id"] == added["id"] and found["score"] > 0.99
    assert memory.get(added["id"])["metadata"] == {"n": 1}
    assert memory.get_all(filters={"user_id": "alice"})["results"] == [memory.get(added["id"])]
    assert memory.count() == 1

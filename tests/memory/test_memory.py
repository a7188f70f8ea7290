"""What each method of a Memory promises, on a real table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memworker import Memory
from memworker.errors import (
    BadVector,
    FilterError,
    MemoryNotFound,
    ScopeMissing,
    TextFailed,
    TextTooLarge,
    UsageError,
)
from memworker.memory import reads
from memworker.store import MAX_LIMIT
from tests.memory.helpers import ALICE, Picky, all_rows, all_texts, one, texts

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def test_what_was_added_is_found_listed_and_counted(memory):
    added = one(memory.add("likes tea", **ALICE, metadata={"n": 1}))
    assert (added["memory"], added["event"], added["user_id"]) == ("likes tea", "ADD", "alice")
    found = one(memory.search("likes tea", filters=ALICE))
    assert found["id"] == added["id"] and found["score"] > 0.99
    assert memory.get(added["id"])["metadata"] == {"n": 1}
    assert memory.get_all(filters=ALICE)["results"] == [memory.get(added["id"])]
    assert memory.count() == 1


def test_a_record_has_the_shape_that_callers_know(memory):
    before = datetime.now(UTC)
    added = one(
        memory.add("x", user_id="a", agent_id="b", run_id="c", expires_at="2999-01-31T12:00:00Z")
    )
    record = memory.get(added["id"])
    assert set(record) == {
        *("id", "memory", "metadata", "created_at", "updated_at", "expires_at"),
        *("user_id", "agent_id", "run_id"),
    }
    assert (record["user_id"], record["agent_id"], record["run_id"]) == ("a", "b", "c")
    assert record["expires_at"] == "2999-01-31T12:00:00.000000+00:00"
    assert record["created_at"] == record["updated_at"]
    moment = datetime.fromisoformat(record["created_at"])
    assert before - timedelta(seconds=1) < moment < datetime.now(UTC) + timedelta(seconds=1)
    assert added == record | {"event": "ADD"}
    found = one(memory.search("x", filters={"user_id": "a"}))
    assert found == record | {"score": found["score"]}


def test_messages_keep_their_role_and_name_and_systems_words_are_left_out(memory):
    said = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "I like tea"},
        {"role": "assistant", "content": "So do I", "name": "bot"},
    ]
    results = memory.add(said, **ALICE, metadata={"n": 1})
    assert texts(results) == ["I like tea", "So do I"]
    assert results["results"][1]["metadata"] == {"n": 1, "role": "assistant", "actor_id": "bot"}
    assert results["results"][1]["role"] == "assistant"
    assert texts(memory.get_all(filters={**ALICE, "role": "user"})) == ["I like tea"]
    assert one(memory.add({"role": "user", "content": "alone"}, **ALICE))["role"] == "user"
    assert memory.add([said[0]], **ALICE) == {"results": []}


@pytest.mark.parametrize("text", ["nul\x00in", "\u202ebidi", "日本語 🙂", "  padded ", "it's; --"])
def test_texts_and_scopes_come_back_as_they_were(memory, text):
    added = one(memory.add(text, user_id=text, metadata={text: [text, None, 1.5, True, {}]}))
    record = one(memory.get_all(filters={"user_id": text}))
    assert (record["id"], record["memory"], record["user_id"]) == (added["id"], text, text)
    assert record["metadata"] == {text: [text, None, 1.5, True, {}]}


@pytest.mark.parametrize(
    "content, error",
    [
        ("", UsageError),
        (" \n\t", UsageError),
        (None, UsageError),
        (b"bytes", UsageError),
        (["a", "b"], UsageError),
        ({"role": "user"}, UsageError),
        ({"role": "user", "content": ["parts"]}, UsageError),
        ("x" * (2 << 20), TextTooLarge),
        ("lone \ud800", TextFailed),
    ],
)
def test_bad_content_is_refused_and_nothing_is_written(memory, content, error):
    with pytest.raises(error):
        memory.add(content, **ALICE)
    # A message without content says nothing, and is passed over.
    if content is not None:
        message = content if isinstance(content, dict) else {"role": "user", "content": content}
        with pytest.raises(error):
            memory.add([{"role": "user", "content": "good"}, message], **ALICE)
    assert memory.count() == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"n": float("nan")},
        {"n": float("inf")},
        {"n": {1, 2}},
        {"n": 2**64},
        {1: "n"},
        {"deep": {1: "n"}},
        {"s": "\ud800"},
        ["n"],
        "n",
    ],
)
def test_metadata_that_json_cannot_say_is_refused(memory, metadata):
    with pytest.raises(UsageError, match="metadata must be"):
        memory.add("x", **ALICE, metadata=metadata)
    good = one(memory.add("x", **ALICE))
    with pytest.raises(UsageError, match="metadata must be"):
        memory.update(good["id"], "y", metadata=metadata)
    assert memory.get(good["id"])["memory"] == "x"


def test_endlessly_nested_metadata_is_refused(memory):
    endless = {}
    endless["again"] = endless
    with pytest.raises(UsageError, match="nested deeper"):
        memory.add("x", **ALICE, metadata=endless)


def test_a_batch_keeps_its_order_and_each_bad_item_costs_itself(memory):
    contents = ["a", "", 3, "b", "lone \ud800", "a", {"role": "user", "content": "c"}, "d"]
    metadata = [{"n": 0}, {}, {}, {"n": 3}, {}, {"n": 5}, {"n": 6}, {"n": float("nan")}]
    results = memory.add_batch(contents, **ALICE, metadata=metadata)["results"]
    assert [r.get("memory", r.get("index")) for r in results] == ["a", 1, 2, "b", 4, "a", "c", 7]
    assert [r["event"] for r in results if "error" not in r] == ["ADD", "ADD", "NONE", "ADD"]
    assert set(results[1]) == {"error", "index"} and "blank" in results[1]["error"]
    assert results[0]["id"] == results[5]["id"]
    assert all_texts(memory, user_id="alice") == ["a", "b", "c"]


def test_a_batch_is_one_commit_and_one_metadata_serves_all(memory):
    version = memory._core.table.version
    memory.add_batch([f"text {n}" for n in range(300)], **ALICE, metadata={"k": "v"})
    assert memory._core.table.version == version + 1
    assert memory.count({"k": "v"}) == 300


def test_a_batch_of_nothing_or_of_nothing_good_is_answered(memory):
    assert memory.add_batch([], **ALICE) == {"results": []}
    assert [r["index"] for r in memory.add_batch(["", None], **ALICE)["results"]] == [0, 1]


@pytest.mark.parametrize("contents", ["text", {"role": "user", "content": "x"}, None, 7])
def test_a_batch_must_be_a_list(memory, contents):
    with pytest.raises(UsageError, match="list of contents"):
        memory.add_batch(contents, **ALICE)


def test_a_batchs_metadata_must_be_as_many(memory):
    with pytest.raises(UsageError, match="2 contents, but metadata for 1"):
        memory.add_batch(["a", "b"], **ALICE, metadata=[{}])


def test_the_same_memory_is_there_once_in_each_scope(memory):
    first = one(memory.add("x", **ALICE))
    again = one(memory.add("x", **ALICE, metadata={"n": 1}))
    assert (again["id"], again["event"], again["metadata"]) == (first["id"], "NONE", {})
    assert one(memory.add("x", **ALICE, run_id="r"))["event"] == "ADD"
    assert one(memory.add("x", user_id="bob"))["event"] == "ADD"
    assert memory.count() == 3


def test_a_duplicate_may_update_what_is_there(memory):
    first = one(memory.add("x", **ALICE, metadata={"n": 1}, expires_at="2999-01-01"))
    given = {"metadata": {"n": 2}, "expires_at": datetime(2998, 1, 1)}
    again = one(memory.add("x", **ALICE, **given, on_duplicate="update"))
    assert (again["id"], again["event"]) == (first["id"], "UPDATE")
    kept = one(memory.add("x", **ALICE, on_duplicate="update"))
    assert kept["metadata"] == {"n": 2} and kept["expires_at"].startswith("2998")
    assert kept["created_at"] == first["created_at"] < again["updated_at"] < kept["updated_at"]
    assert memory.get(first["id"]) == {k: v for k, v in kept.items() if k != "event"}
    assert [event["event"] for event in memory.history(first["id"])] == ["ADD", "UPDATE", "UPDATE"]
    assert memory.count() == 1


def test_duplicates_may_be_allowed(memory):
    ids = {one(memory.add("x", **ALICE, on_duplicate="allow"))["id"] for _ in range(3)}
    assert len(ids) == memory.count() == 3
    # The oldest stands for the text.
    assert one(memory.add("x", **ALICE))["id"] == min(ids)
    with pytest.raises(UsageError, match="on_duplicate"):
        memory.add("x", **ALICE, on_duplicate="ignore")


def test_an_update_keeps_the_id_and_frees_the_text(memory):
    first = one(memory.add("A", **ALICE, metadata={"n": 1}))
    assert memory.update(first["id"], "B") == {"message": "Memory updated successfully!"}
    record = memory.get(first["id"])
    assert (record["memory"], record["metadata"]) == ("B", {"n": 1})
    assert record["created_at"] == first["created_at"] < record["updated_at"]
    assert one(memory.search("B", filters=ALICE))["score"] > 0.999
    assert one(memory.add("B", **ALICE))["event"] == "NONE"
    assert one(memory.add("A", **ALICE))["event"] == "ADD"
    assert all_texts(memory, user_id="alice") == ["A", "B"]
    memory.update(first["id"], "C", metadata={})
    assert memory.get(first["id"])["metadata"] == {}


def test_an_update_of_metadata_alone_leaves_text_and_vector(memory):
    first = one(memory.add("A", **ALICE, metadata={"n": 1, "deep": {"a": 1}}))
    memory.update(first["id"], metadata={"m": None, "deep": {"b": 2}}, merge=True)
    record = memory.get(first["id"])
    # As Mem0: a field of the same name is replaced as a whole.
    assert record["metadata"] == {"n": 1, "m": None, "deep": {"b": 2}}
    assert record["memory"] == "A" and record["updated_at"] > first["updated_at"]
    memory.update(first["id"], metadata={"k": "v"})
    assert memory.get(first["id"])["metadata"] == {"k": "v"}
    memory.update(first["id"], "B", metadata={"more": True}, merge=True)
    record = memory.get(first["id"])
    assert (record["memory"], record["metadata"]) == ("B", {"k": "v", "more": True})
    assert one(memory.search("B", filters=ALICE))["score"] > 0.999
    assert one(memory.add("B", **ALICE))["event"] == "NONE"
    told = memory.history(first["id"])
    assert [event["new_memory"] for event in told] == ["A", "A", "A", "B"]


def test_an_update_merges_into_no_metadata(memory):
    first = one(memory.add("A", **ALICE))
    memory.update(first["id"], metadata={"n": 1}, merge=True)
    assert memory.get(first["id"])["metadata"] == {"n": 1}


@pytest.mark.parametrize(
    "given", [{}, {"merge": True}, {"content": "B", "merge": True}, {"metadata": {"x": {1}}}]
)
def test_an_update_that_says_nothing_or_nonsense_is_refused(memory, given):
    first = one(memory.add("A", **ALICE))
    with pytest.raises(UsageError):
        memory.update(first["id"], **given)
    assert memory.get(first["id"])["updated_at"] == first["updated_at"]


def test_an_update_of_an_unknown_memorys_metadata_is_refused(memory):
    with pytest.raises(MemoryNotFound):
        memory.update("nobody", metadata={})


def test_a_search_gives_what_stands_beside_a_hit(memory):
    turns = ["Ann: where were you?", "Bob: in Oslo", "Ann: how was it?", "Bob: cold"]
    memory.add([{"role": "user", "content": turn} for turn in turns], **ALICE)
    memory.add("Oslo is a town", user_id="bob")
    for mode in ("vector", "text", "hybrid"):
        found = memory.search(turns[1], filters=ALICE, mode=mode, limit=1, context=1)
        record = one(found)
        assert record["memory"] == turns[1]
        assert [beside["memory"] for beside in record["before"]] == turns[:1]
        assert [beside["memory"] for beside in record["after"]] == turns[2:3]
        assert "score" not in record["after"][0]
        assert "before" not in one(memory.search(turns[1], filters=ALICE, mode=mode, limit=1))
    with pytest.raises(UsageError, match="context"):
        memory.search("Oslo", filters=ALICE, context=-1)
    with pytest.raises(UsageError, match="recency_half_life"):
        memory.search("Oslo", filters=ALICE, recency_half_life=0)


def test_an_update_is_one_commit(memory):
    first = one(memory.add("A", **ALICE))
    version = memory._core.table.version
    memory.update(first["id"], "B")
    assert memory._core.table.version == version + 1


def test_history_tells_everything_oldest_first(memory):
    memory_id = one(memory.add("A", **ALICE))["id"]
    memory.update(memory_id, "B")
    memory.update(memory_id, "C")
    assert memory.delete(memory_id) == {"message": "Memory deleted successfully!"}
    told = memory.history(memory_id)
    assert [(e["event"], e["old_memory"], e["new_memory"]) for e in told] == [
        ("ADD", None, "A"),
        ("UPDATE", "A", "B"),
        ("UPDATE", "B", "C"),
        ("DELETE", "C", None),
    ]
    assert [event["is_deleted"] for event in told] == [False, False, False, True]
    assert {event["memory_id"] for event in told} == {memory_id}
    assert len({event["id"] for event in told}) == 4 == len({e["updated_at"] for e in told})
    assert [e["updated_at"] for e in told] == sorted(e["updated_at"] for e in told)
    assert memory.history("unknown") == []


def test_histories_of_like_ids_do_not_mix(memory):
    ids = [one(memory.add(text, **ALICE))["id"] for text in ("A", "B", "C")]
    for memory_id in ids:
        memory.update(memory_id, f"new {memory_id}")
    assert [len(memory.history(memory_id)) for memory_id in ids] == [2, 2, 2]
    assert memory.history(ids[0][:-1]) == []


def test_a_deleted_memory_shows_in_its_history_only(memory):
    memory_id = one(memory.add("A", **ALICE))["id"]
    memory.delete(memory_id)
    assert memory.get(memory_id) is None and memory.count() == 0
    assert memory.search("A", filters=ALICE) == memory.get_all(filters=ALICE) == {"results": []}
    assert memory.history(memory_id)[-1]["event"] == "DELETE"
    again = one(memory.add("A", **ALICE))
    assert again["event"] == "ADD" and again["id"] != memory_id


def test_erasing_leaves_nothing(memory):
    kept = one(memory.add("kept", **ALICE))["id"]
    gone, deleted = (one(memory.add(text, **ALICE))["id"] for text in ("A", "D"))
    memory.update(gone, "B")
    memory.delete(deleted)
    memory.delete(gone, erase=True)
    memory.delete(deleted, erase=True)
    assert memory.history(gone) == memory.history(deleted) == []
    assert [row["id"] for row in all_rows(memory)] == [kept]


@pytest.mark.parametrize("act", ["update", "delete", "erase"])
def test_an_unknown_id_is_said_so(memory, act):
    deeds = {
        "update": lambda: memory.update("nobody", "x"),
        "delete": lambda: memory.delete("nobody"),
        "erase": lambda: memory.delete("nobody", erase=True),
    }
    with pytest.raises(MemoryNotFound, match="'nobody'"):
        deeds[act]()


def test_a_deleted_memory_cannot_be_changed(memory):
    memory_id = one(memory.add("A", **ALICE))["id"]
    memory.update(memory_id, "B")
    version = next(row["id"] for row in all_rows(memory) if "@" in row["id"])
    memory.delete(memory_id)
    for which in (memory_id, version):
        assert memory.get(which) is None
        with pytest.raises(MemoryNotFound):
            memory.delete(which)
        with pytest.raises(MemoryNotFound):
            memory.update(which, "C")


@pytest.mark.parametrize("bad", [None, "", 7, "\ud800"])
def test_a_bad_id_is_refused(memory, bad):
    for deed in (memory.get, memory.history, memory.delete, lambda i: memory.update(i, "x")):
        with pytest.raises(UsageError):
            deed(bad)


def test_delete_all_takes_what_carries_all_the_ids(memory):
    memory.add("1", **ALICE)
    memory.add("2", **ALICE, run_id="r")
    other = one(memory.add("3", user_id="bob", run_id="r"))["id"]
    first = one(memory.get_all(filters={**ALICE, "run_id": "r"}))["id"]
    done = memory.delete_all(user_id="alice", run_id="r")
    assert done == {"message": "Memories deleted successfully!", "deleted": 1}
    assert memory.count(ALICE) == 1
    assert memory.history(first)[-1]["event"] == "DELETE"
    memory.delete_all(user_id="alice", erase=True)
    assert [row["id"] for row in all_rows(memory)] == [other]
    memory.delete_all(user_id="nobody")
    with pytest.raises(ScopeMissing):
        memory.delete_all()


def test_deleting_all_keeps_when_others_were_deleted(memory):
    memory_id = one(memory.add("1", **ALICE))["id"]
    memory.delete(memory_id)
    told = memory.history(memory_id)
    memory.delete_all(**ALICE)
    assert memory.history(memory_id) == told


def test_reset_empties_everything(memory):
    memory_id = one(memory.add("1", **ALICE))["id"]
    memory.update(memory_id, "2")
    memory.reset()
    assert (memory.count(), memory.history(memory_id), all_rows(memory)) == (0, [], [])
    assert one(memory.add("1", **ALICE))["event"] == "ADD"


@pytest.mark.parametrize("expiry", [LONG_AGO, LONG_AGO.isoformat(), "2001-01-01"])
def test_an_expired_memory_shows_nowhere(memory, expiry):
    expired = one(memory.add("x", **ALICE, expires_at=expiry))["id"]
    lasting = one(memory.add("x", **ALICE))
    assert lasting["event"] == "ADD"
    assert memory.get(expired) is None and memory.count() == memory.count(ALICE) == 1
    assert one(memory.search("x", filters=ALICE))["id"] == lasting["id"]
    assert one(memory.get_all(filters=ALICE))["id"] == lasting["id"]
    assert memory.history(expired)[0]["event"] == "ADD"
    with pytest.raises(MemoryNotFound):
        memory.update(expired, "y")


@pytest.mark.parametrize("expiry", ["tomorrow", 7, ""])
def test_a_bad_expiry_is_refused(memory, expiry):
    with pytest.raises(UsageError, match="expires_at"):
        memory.add("x", **ALICE, expires_at=expiry)


@pytest.mark.parametrize("times", [1, 100])
def test_get_all_is_of_one_moment(memory, times):
    """While it is read, a memory is added and then the other one deleted: one is always there."""

    class Busy:
        """The table, with other callers at work between a read and the next."""

        left = times
        last = memory.add("0", **ALICE)["results"][0]["id"]

        def rows(self, *args, **options):
            found = memory._core.table.rows(*args, **options)
            if self.left:
                self.left -= 1
                added = memory.add(str(self.left + 1), **ALICE)["results"][0]["id"]
                memory.delete(self.last)
                self.last = added
            return found

        def __getattr__(self, name):
            return getattr(memory._core.table, name)

    assert len(reads.get_all(Busy(), ALICE, 10)["results"]) == 1


def test_get_all_gives_the_newest_first(memory):
    for number in range(30):
        memory.add(f"text {number}", **ALICE)
    memory.add("other", user_id="bob")
    newest = [f"text {number}" for number in reversed(range(30))]
    assert texts(memory.get_all(filters=ALICE)) == newest
    assert texts(memory.get_all(filters=ALICE, limit=7)) == newest[:7]
    assert texts(memory.get_all(filters=ALICE, limit=5000)) == newest
    assert texts(memory.get_all(filters=ALICE, limit=None)) == newest


def test_filters_reach_scopes_metadata_and_times(memory):
    for number in range(6):
        memory.add(f"text {number}", **ALICE, metadata={"n": number, "odd": number % 2 == 1})
    where = {"AND": [ALICE, {"n": {"gte": 2}}], "NOT": {"odd": True}}
    assert texts(memory.get_all(filters=where)) == ["text 4", "text 2"]
    assert sorted(texts(memory.search("text", filters=where))) == ["text 2", "text 4"]
    assert memory.count({"n": {"in": [1, 2]}}) == 2
    assert memory.count({**ALICE, "created_at": {"lt": LONG_AGO}}) == 0
    with pytest.raises(FilterError):
        memory.count({"n": {"near": 1}})


def test_search_is_ranked_and_cut_by_limit_and_threshold(memory):
    memory.add_batch([f"{'long ' * number}text" for number in range(1, 20)], **ALICE)
    found = memory.search("long text", filters=ALICE, limit=5)["results"]
    scores = [record["score"] for record in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True)
    over = memory.search("long text", filters=ALICE, limit=5, threshold=scores[2])["results"]
    assert [record["score"] for record in over] == [s for s in scores if s >= scores[2]]


def test_search_by_words_and_by_both(memory):
    memory.add_batch(["the cat sleeps", "a dog barks", "rain tomorrow"], **ALICE)
    memory.add("my cat", user_id="bob")
    assert texts(memory.search("cat", filters=ALICE, mode="text")) == ["the cat sleeps"]
    assert texts(memory.search("cat", filters=ALICE, mode="hybrid"))[0] == "the cat sleeps"
    best = one(memory.search("cat", filters=ALICE, mode="text"))["score"]
    assert memory.search("cat", filters=ALICE, mode="text", threshold=best + 1)["results"] == []
    with pytest.raises(UsageError, match="mode"):
        memory.search("cat", filters=ALICE, mode="magic")


@pytest.mark.parametrize("query", ["", "  ", None, 7])
def test_a_blank_query_is_refused(memory, query):
    with pytest.raises(UsageError, match="query"):
        memory.search(query, filters=ALICE)


@pytest.mark.parametrize("limit", [0, -1, True, "10", 1.5])
def test_a_bad_limit_is_refused(memory, limit):
    for deed in (memory.get_all, lambda **given: memory.search("x", **given)):
        with pytest.raises(UsageError, match="limit"):
            deed(filters=ALICE, limit=limit)


def test_a_text_that_cannot_be_embedded_costs_itself_only(db):
    with Memory(db, model=Picky(), workers=1) as memory:
        results = memory.add_batch(["good", "poison", "", "nothing", "fine"], **ALICE)["results"]
        assert [r.get("memory", r.get("index")) for r in results] == ["good", 1, 2, 3, "fine"]
        assert "it is poison" in results[1]["error"] and "all zeros" in results[3]["error"]
        good = results[0]["id"]
        for bad in ("poison", "nothing"):
            message = [{"role": "user", "content": text} for text in ("x", bad)]
            with pytest.raises(TextFailed):
                memory.add(message, **ALICE)
            with pytest.raises(TextFailed):
                memory.update(good, bad)
            with pytest.raises((TextFailed, BadVector)):
                memory.search(bad, filters=ALICE)
        assert all_texts(memory, **ALICE) == ["fine", "good"]


@pytest.mark.parametrize("threshold", ["0.5", True, float("nan"), float("inf"), [0.5]])
def test_a_threshold_that_is_no_number_is_refused(memory, threshold):
    memory.add("x", **ALICE)
    with pytest.raises(UsageError, match="threshold must be a finite number"):
        memory.search("x", filters=ALICE, threshold=threshold)
    assert texts(memory.search("x", filters=ALICE, threshold=0)) == ["x"]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_as_many_as_can_be_may_be_asked_for_and_no_more(memory, mode):
    memory.add("x", **ALICE)
    assert texts(memory.search("x", filters=ALICE, limit=MAX_LIMIT, mode=mode)) == ["x"]
    assert texts(memory.get_all(filters=ALICE, limit=MAX_LIMIT)) == ["x"]
    for limit in (MAX_LIMIT + 1, 2**63, 2**70):
        with pytest.raises(UsageError, match="limit must be a whole number from 1"):
            memory.search("x", filters=ALICE, limit=limit, mode=mode)
        with pytest.raises(UsageError, match="limit must be a whole number from 1"):
            memory.get_all(filters=ALICE, limit=limit)


@pytest.mark.parametrize(
    "options",
    [
        {"db": None},
        {"db": 5},
        {"db": ""},
        {"db": "nul\0in"},
        {"table": None},
        {"table": 5},
        {"pool": "echo"},
        {"model": None},
        {"model": 5},
        {"model": "echo", "max_tokens": "64"},
    ],
)
def test_what_cannot_be_opened_is_told_as_a_usage_error(db, options):
    given = {"db": db, "model": "echo"} | options
    with pytest.raises(UsageError):
        Memory(given.pop("db"), **given)


def test_messages_of_a_tool_using_agent_can_be_added_as_they_are(memory):
    said = [
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "image_url"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert texts(memory.add(said, **ALICE)) == ["two", "a b"]
    (told,) = memory.history(memory.get_all(filters=ALICE)["results"][0]["id"])
    assert (told["role"], "actor_id" in told) == ("user", False)
    for content in ([{"type": "text"}], [{"type": "text", "text": 5}], ["a"], {"type": "text"}, ""):
        with pytest.raises(UsageError):
            memory.add({"role": "user", "content": content}, **ALICE)
    assert memory.count() == 2


def test_each_item_of_a_batch_has_a_result(memory):
    contents = [
        {"role": "system", "content": "be kind"},
        "a",
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ]
    results = memory.add_batch(contents, **ALICE)["results"]
    assert [r.get("memory", r.get("index")) for r in results] == [0, "a", 2, "b"]
    assert "is not stored" in results[0]["error"]

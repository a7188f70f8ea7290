"""Search by words, and by words and meaning together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from memworker.errors import UsageError
from memworker.store import Table
from tests.store.helpers import SPACE, batch, numbered, vector_of


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE)


def found(table, text, **options):
    return [hit.id for hit in table.search_text(text, **options)]


def test_finds_words_in_many_scripts_whatever_their_case_and_accents(table):
    rows = [
        ("run", "Alice likes running in Zürich"),
        ("zh", "我喜欢北京烤鸭"),
        ("ja", "東京タワーに行きました"),
        ("th", "สวัสดีชาวโลก"),
        ("ru", "Анна живёт в Москве"),
        ("code", "write to user@example.com about foo_bar v1.2.3"),
    ]
    table.append(batch(rows))
    asked = {
        "run": ["ALICE", "zurich", "Zürich", "runs", "who is Alice?"],
        "zh": ["北京", "烤鸭"],
        "ja": ["東京", "タワー"],
        "th": ["โลก"],
        "ru": ["москве"],
        "code": ["example", "foo_bar", "1.2.3", "user@example.com"],
    }
    for wanted, texts in asked.items():
        for text in texts:
            assert found(table, text) == [wanted], text


@pytest.mark.parametrize("text", ["", " ", "... !?", "the", "and of the", "🎉", "\0", "xyzzy"])
def test_a_text_without_known_words_finds_nothing(table, text):
    assert found(table, text) == []
    table.append(numbered(0, 3))
    assert found(table, text) == []


@pytest.mark.parametrize(
    "text",
    [
        '"blue',
        "blue AND",
        "blue:",
        "blue*",
        "-blue",
        "(blue",
        "text:blue",
        "blue' OR '1'='1",
        "+blue~2^",
    ],
)
def test_a_query_is_words_and_no_syntax(table, text):
    table.append(batch([("a", "the sky is blue"), ("b", "grass is green")]))
    assert found(table, text) == ["a"]


def test_what_is_no_text_is_refused(table):
    for text in (None, 3, "a\ud800b"):
        with pytest.raises(UsageError):
            table.search_text(text)
    with pytest.raises(UsageError, match="limit"):
        table.search_text("a", limit=0)
    with pytest.raises(UsageError, match="limit"):
        table.search_hybrid("a", vector_of("a"), limit=0)


def test_of_a_very_long_query_the_beginning_counts(table):
    table.append(batch([("a", "first apple"), ("b", "last pear")]))
    assert found(table, "apple " + "word " * 200_000 + "pear") == ["a"]


def test_ranks_by_bm25_and_gives_the_asked_columns(table):
    rows = [("both", "red apple"), ("one", "red car on a long road"), ("none", "green tea")]
    table.append(batch(rows, metadata_json=pa.array(['{"n": 1}', None, None])))
    hits = table.search_text("red apple")
    assert [hit.id for hit in hits] == ["both", "one"]
    assert hits[0].score > hits[1].score > 0 and hits[0].metadata == {"n": 1}
    assert table.search_text("red", limit=1, columns=["user_id"])[0].text == ""


def test_rows_are_found_whenever_they_came(table):
    table.append(batch([("a", "first apple")]))
    assert found(table, "apple") == ["a"]
    table.append(batch([("b", "apple apple")]))
    assert set(found(table, "apple")) == {"a", "b"}
    with table.changing() as change:
        change.replace(batch([("a", "now a pear")]))
    for _ in range(2):
        assert found(table, "apple") == ["b"] and found(table, "pear") == ["a"]
        table.optimize(keep_versions=timedelta(milliseconds=1))
    assert table.delete({"id": "b"}) == 1 and found(table, "apple") == []


def test_a_filter_is_applied_before_the_ranking(table):
    users = pa.array(["ann"] * 30 + ["bob"])
    table.append(batch([(f"{i}", "apple") for i in range(31)], scopes={"user_id": users}))
    for _ in range(2):
        assert found(table, "apple", limit=1, where={"user_id": "bob"}) == ["30"]
        near = table.search_hybrid("apple", vector_of("x"), limit=1, where={"user_id": "bob"})
        assert [hit.id for hit in near] == ["30"]
        table.optimize()


def test_expired_and_superseded_rows_are_hidden(table):
    now = datetime.now(UTC)
    table.append(batch([("plain", "apple")]))
    table.append(batch([("old", "apple")], superseded_at=now))
    table.append(batch([("gone", "apple")], expires_at=now - timedelta(hours=1)))
    assert found(table, "apple") == ["plain"]
    assert len(found(table, "apple", visible_only=False)) == 3
    assert [hit.id for hit in table.search_hybrid("apple", vector_of("x"))] == ["plain"]


def test_the_text_index_is_built_once_and_shared(table):
    other = Table.open(table.db, "t")
    assert table.maintenance.ensure_index("text") and not table.maintenance.ensure_index("text")
    assert not other.maintenance.ensure_index("text")
    assert [index.columns for index in table.info().indices] == [("text",)]


def test_hybrid_search_finds_by_meaning_and_by_words(table):
    table.append(batch([(f"n{i}", f"filler {i}") for i in range(80)] + [("word", "zanzibar")]))
    near = vector_of("filler 7")
    hits = table.search_hybrid("zanzibar", near, limit=2)
    # The word's own row is in both rankings unless its vector is far off.
    assert {hit.id for hit in hits} == {"n7", "word"}
    (best,) = table.search_hybrid("filler 7", near, limit=1)
    assert best.id == "n7" and 0.5 < best.score <= 1
    assert len(table.search_hybrid("...", near, limit=5)) == 5

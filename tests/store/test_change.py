"""Looking up and then writing in one commit, with nobody in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import BadVector, FilterError, UsageError
from memworker.store import Table
from tests.store.helpers import DIM, SPACE, batch, numbered, texts_by_id, vector_of


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(numbered(0, 5))
    return table


def test_what_was_told_is_one_commit(table):
    before = table.version
    with table.changing() as change:
        assert change.version == before
        change.insert(batch([("a", "one")]))
        change.replace(batch([("id-1", "other"), ("id-2", "another")]))
        change.insert(batch([("b", "two")]))
        assert table.version == before
    assert change.version == table.version == before + 1
    told = {"a": "one", "b": "two", "id-1": "other", "id-2": "another"}
    assert texts_by_id(table) == {f"id-{i}": f"text {i}" for i in range(5)} | told


def test_inserts_alone_are_one_commit_and_known_afterwards(table):
    before = table.version
    with table.changing() as change:
        change.insert(batch([("a", "one")]))
        change.insert(batch([("b", "two")]))
    assert change.version == table.version == before + 1
    assert table.append(batch([("a", "one"), ("b", "2"), ("id-1", "text 1")])).conflicts == (1,)


def test_nothing_told_is_no_commit(table):
    before = table.version
    with table.changing() as change:
        change.insert(numbered(0, 0))
    assert change.version == table.version == before


def test_an_exception_leaves_the_table_as_it_was_and_passes_unchanged(table):
    before = table.version
    with pytest.raises(KeyError, match="mine"), table.changing() as change:
        change.insert(batch([("a", "one")]))
        change.replace(batch([("id-1", "other")]))
        raise KeyError("mine")
    assert table.version == before
    assert table.append(numbered(0, 6)).written == 1


def test_bad_vectors_and_ids_given_twice_are_refused_before_anything_is_written(table):
    bad = batch([("bad", "x")])
    zero = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(DIM, np.float32)), DIM)
    bad = bad.set_column(3, bad.schema.field("vector"), zero)
    before = table.version
    with pytest.raises(BadVector, match="'bad'"), table.changing() as change:
        change.insert(batch([("a", "one")]))
        change.replace(bad)
    with pytest.raises(UsageError, match="'a' was given"), table.changing() as change:
        change.insert(batch([("a", "one")]))
        change.replace(batch([("b", "x"), ("a", "two")]))
    with pytest.raises(UsageError, match="'c' was given"), table.changing() as change:
        change.insert(batch([("b", "x"), ("c", "y"), ("c", "z")]))
    assert table.version == before


def test_finds_rows_by_key_hidden_ones_too(table):
    now = datetime.now(UTC)
    table.append(batch([("old", "same")], superseded_at=now))
    table.append(batch([("gone", "same")], expires_at=now - timedelta(hours=1)))
    table.append(batch([("here", "same")], expires_at=now + timedelta(hours=1)))
    (key,) = set(table.rows({"text": "same"})["dedup_key"].to_pylist())
    with table.changing() as change:
        found = change.find("dedup_key", [key, "f" * 32], columns=["id"])
        assert found.column_names == ["id"]
        assert set(found["id"].to_pylist()) == {"old", "gone", "here"}
        assert change.find("dedup_key", [key], visible_only=True)["id"].to_pylist() == ["here"]
        assert change.find("id", ["id-1", "x' OR '1'='1"])["text"].to_pylist() == ["text 1"]
        assert change.find("id", []).num_rows == 0
        many = [f"id-{i}" for i in range(2, 400)] + ["gone"]
        assert set(change.find("id", many)["id"].to_pylist()) == {"id-2", "id-3", "id-4", "gone"}
        alive = change.find("id", many, columns=["text"], visible_only=True)
        assert alive.column_names == ["text"] and alive.num_rows == 3


def test_times_are_set_and_rows_erased_by_a_filter(table):
    now = datetime.now(UTC)
    with table.editing() as edit:
        assert edit.set({"id": {"in": ["id-1", "id-2"]}}, {"superseded_at": now}) == 2
    assert edit.version == table.version
    assert {hit.id for hit in table.search(vector_of("x"))} == {"id-0", "id-3", "id-4"}
    assert table.rows({"id": "id-1"})["superseded_at"].to_pylist() == [now]
    assert table.count(visible_only=True) == 3 and table.count() == 5
    assert table.rows({"id": {"ne": "id-0"}}, visible_only=True).num_rows == 2
    with table.editing() as edit:
        assert edit.set({"id": "id-1"}, {"superseded_at": None}) == 1
    with table.editing() as edit:
        assert edit.erase({"superseded_at": {"ne": None}}) == 1
    assert texts_by_id(table).keys() == {"id-0", "id-1", "id-3", "id-4"}
    assert table.append(numbered(0, 5)).written == 1


def test_an_edit_names_the_rows_and_sets_nothing_but_times(table):
    with pytest.raises(UsageError, match="every row"), table.editing() as edit:
        edit.erase({})
    with pytest.raises(UsageError, match="delete every row"):
        table.delete({})
    with pytest.raises(UsageError, match="every row"), table.editing() as edit:
        edit.set({}, {"expires_at": None})
    with pytest.raises(FilterError, match="text"), table.editing() as edit:
        edit.set({"id": "id-1"}, {"text": "x"})
    assert len(texts_by_id(table)) == 5


def test_a_write_past_an_open_change_is_refused_and_not_waited_for(table):
    with pytest.raises(UsageError, match="open"), table.changing() as change:
        change.insert(batch([("a", "one")]))
        table.append(numbered(5, 6))
    for within in (table.changing, table.editing):
        with pytest.raises(UsageError, match="open"), table.changing(), within():
            pass
    assert len(texts_by_id(table)) == 5


def test_other_handles_notice_rows_replaced_in_place(table):
    other = Table.open(table.db, "t")
    assert other.append(numbered(0, 5)).duplicates == 5
    with table.changing() as change:
        change.replace(batch([("id-1", "other")]))
    rows = batch([("id-1", "other"), ("id-2", "text 2"), ("id-3", "new")])
    for each in (table, other, Table.open(table.db, "t")):
        done = each.append(rows)
        assert (done.duplicates, done.conflicts) == (2, (2,))


def test_columns_beyond_ours_are_left_null_and_a_replaced_row_loses_its_own(table):
    extra = pa.field("vector_next", pa.list_(pa.float32(), 4))
    table._handle.add_columns(extra)
    value = "arrow_cast([1.0, 2.0, 3.0, 4.0], 'FixedSizeList(4, Float32)')"
    table._handle.update(values_sql={"vector_next": value})
    with table.changing() as change:
        change.insert(batch([("a", "one")]))
    with table.changing() as change:
        change.replace(batch([("id-1", "other")]))
    table.append(batch([("b", "two"), ("id-2", "third")]), on_conflict="update")
    table.append(batch([("c", "three")]))
    rows = table._handle.search().select(["id", "vector_next"]).to_arrow().to_pylist()
    kept = {row["id"] for row in rows if row["vector_next"] is not None}
    assert kept == {"id-0", "id-3", "id-4"} and len(rows) == 8
    assert "vector_next" not in table.rows().column_names

"""Chunks of texts: replaced in one commit, told apart from what is there, searched by text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from memworker.chunking import Chunking
from memworker.errors import StoreError, TableMismatch, UsageError
from memworker.store import Table, VectorSpace, dedup_keys, json_column, records
from memworker.store.chunks import TextStatus
from memworker.store.read import IN_LIST_MAX
from memworker.store.schema import CHUNK_FIELDS
from memworker.store.sync import KnownRows

SPACE = VectorSpace("echo", "fp32", 0, 8, "echo-8")
CUT = Chunking(16)


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path, "t", SPACE, chunking=CUT)


def vectors(texts):
    seeds = [sum(map(ord, text)) for text in texts]
    return np.array([np.random.default_rng(seed).random(8) for seed in seeds], np.float32)


def chunks(parent, texts, *, user="", metadata=None, known=()):
    """Chunks whose ids are made of parent and text; those `known` bring no vector."""
    ids = [f"{parent}/{text}/{texts[:at].count(text)}" for at, text in enumerate(texts)]
    rows = records(
        pa.array(ids),
        pa.array(texts),
        vectors(texts),
        scopes={"user_id": user},
        metadata_json=json_column(pa.array([metadata] * len(texts), pa.string())),
    )
    if known:
        place = rows.schema.get_field_index("vector")
        kept = pa.array(
            [
                None if t in known else v
                for t, v in zip(texts, rows["vector"].to_pylist(), strict=True)
            ],
            rows.schema.field(place).type,
        )
        rows = rows.set_column(place, rows.schema.field(place), kept)
    ends = np.cumsum([len(text) for text in texts])
    columns = [
        [parent] * len(texts),
        list(range(len(texts))),
        [0, *ends[:-1]],
        list(ends),
        [at == len(texts) - 1 for at in range(len(texts))],
        [None] * len(texts),
    ]
    for field, column in zip(CHUNK_FIELDS, columns, strict=True):
        rows = rows.append_column(field, pa.array(column, field.type))
    return rows


def held(table):
    rows = table.rows(columns=["parent_id", "chunk", "text", "char_start", "vector", "updated_at"])
    return sorted(rows.to_pylist(), key=lambda row: (row["parent_id"], row["chunk"]))


def texts(table):
    return [(row["parent_id"], row["text"]) for row in held(table)]


def status(table, *rows):
    """Compare texts with what is there."""
    joined = pa.concat_tables(rows)
    numbers = np.repeat(np.arange(len(rows)), [each.num_rows for each in rows])
    there = table.compare_chunks(joined, numbers)
    return [TextStatus(each).name for each in there.texts], there.unknown.tolist()


def test_what_is_new_is_written_and_the_second_time_nothing(table):
    both = pa.concat_tables([chunks("a", ["one", "two", "two"]), chunks("b", ["one"])])
    done = table.replace_chunks(both)
    assert (done.written, done.moved, done.removed, done.kept) == (4, 0, 0, 0)
    again = table.replace_chunks(both)
    assert (again.written, again.kept, again.version) == (0, 4, done.version)
    assert texts(table) == [("a", "one"), ("a", "two"), ("a", "two"), ("b", "one")]
    fresh = Table.open(table.db, "t")
    for opened in (table, fresh):
        assert status(opened, chunks("a", ["one", "two", "two"]), chunks("c", ["one"])) == (
            ["SAME", "NEW"],
            [False, False, False, True],
        )


def test_an_edit_writes_what_is_new_moves_what_stands_elsewhere_and_drops_what_is_gone(table):
    table.replace_chunks(pa.concat_tables([chunks("a", list("abcd")), chunks("b", list("ab"))]))
    before = {row["text"]: row for row in held(table) if row["parent_id"] == "a"}
    version = table.version
    edited = chunks("a", ["a", "XX", "c"], known={"a", "c"})
    assert status(table, edited) == (["CHANGED"], [False, True, False])
    done = table.replace_chunks(edited)
    assert (done.written, done.moved, done.removed, done.kept) == (1, 1, 2, 1)
    assert table.version == version + 1 == done.version
    after = {row["text"]: row for row in held(table) if row["parent_id"] == "a"}
    assert list(after) == ["a", "XX", "c"]
    assert after["a"] == before["a"]
    assert after["c"]["vector"] == before["c"]["vector"] and after["c"]["char_start"] == 3
    assert texts(table)[3:] == [("b", "a"), ("b", "b")]


def test_a_text_that_only_lost_its_end_is_a_changed_one(table):
    table.replace_chunks(chunks("a", list("abc")))
    assert status(table, chunks("a", list("ab"))) == (["CHANGED"], [False, False])
    assert table.replace_chunks(chunks("a", list("ab"), known="ab")).removed == 1
    assert texts(table) == [("a", "a"), ("a", "b")]


def test_what_was_removed_and_comes_again_is_written_again(table):
    first, second = chunks("a", list("abc")), chunks("a", list("axc"))
    for rows in (first, second, first, second):
        assert table.replace_chunks(rows).written >= 1
        assert status(table, rows) == (["SAME"], [False] * 3)
        assert [text for _, text in texts(table)] == rows["text"].to_pylist()


def test_other_metadata_of_a_text_reach_all_its_chunks_without_new_vectors(table):
    table.replace_chunks(chunks("a", list("ab"), metadata='{"n":1}'))
    assert status(table, chunks("a", list("ab"), metadata='{ "n" : 1 }'))[0] == ["SAME"]
    done = table.replace_chunks(chunks("a", list("ab"), metadata='{"n":2}', known="ab"))
    assert (done.written, done.moved) == (0, 2)
    assert set(table.rows(columns=["metadata"])["metadata"].to_pylist()) == {'{"n":2}'}


def test_whose_parent_is_of_another_scope_is_left_out(table):
    table.replace_chunks(chunks("a", list("ab"), user="ann"))
    for mine in (list("xy"), list("ab")):
        stolen = chunks("a", mine, user="bob")
        assert status(table, stolen)[0] == ["ELSEWHERE"]
        assert table.replace_chunks(stolen).elsewhere == ("a",)
    assert table.count({"user_id": "ann"}) == table.count() == 2


@pytest.mark.parametrize("policy", ["reject", "skip"])
def test_a_changed_text_is_left_out_unless_it_is_to_be_updated(table, policy):
    table.replace_chunks(chunks("a", list("ab")))
    rows = pa.concat_tables([chunks("a", list("ac")), chunks("b", list("x"))])
    done = table.replace_chunks(rows, on_conflict=policy)
    assert (done.conflicts, done.written) == (("a",), 1)
    assert texts(table) == [("a", "a"), ("a", "b"), ("b", "x")]


def test_a_chunk_without_a_vector_that_is_not_there_leaves_its_text_out(table):
    table.replace_chunks(chunks("a", list("ab")))
    table.delete({"parent_id": "a", "chunk": 1})
    done = table.replace_chunks(chunks("a", list("abc"), known="ab"))
    assert (done.incomplete, done.written) == (("a",), 0)


def test_texts_that_are_gone_go_in_the_same_commit(table):
    table.replace_chunks(pa.concat_tables([chunks("a", list("ab")), chunks("b", list("ab"))]))
    version = table.version
    done = table.replace_chunks(chunks("c", ["x"]), gone=["a", "no such"])
    assert (done.written, done.removed, table.version) == (1, 2, version + 1)
    assert texts(table) == [("b", "a"), ("b", "b"), ("c", "x")]


def test_filters_know_the_columns_of_a_table_of_chunks_and_of_no_other(table, tmp_path):
    table.replace_chunks(pa.concat_tables([chunks("a", list("abc")), chunks("b'", list("a"))]))
    assert table.count({"parent_id": "b'"}) == 1
    assert table.count({"parent_id": {"in": ["a", "b'"]}, "chunk": {"gte": 1}}) == 2
    assert table.count({"NOT": {"parent_id": "a"}}) == 1
    plain = Table.create(tmp_path, "plain", SPACE)
    plain.append(
        records(
            None,
            pa.array(["x"]),
            vectors(["x"]),
            metadata_json=pa.array(['{"parent_id":"a","chunk":"7"}']),
        )
    )
    assert plain.count({"parent_id": "a"}) == plain.count({"chunk": 7}) == 1


def test_whole_texts_can_stand_beside_chunks(table):
    table.replace_chunks(chunks("a", list("ab")))
    table.append(records(None, pa.array(["whole"]), vectors(["whole"])))
    assert table.count({"parent_id": None}) == 1
    assert table.replace_chunks(chunks("a", list("ab"))).kept == 2
    hit = table.search(vectors(["whole"])[0], limit=1)[0]
    assert (hit.text, hit.parent_id, hit.chunk) == ("whole", None, None)


def test_a_search_by_texts_gives_each_once_however_many_chunks_one_has(table):
    many = [f"needle {i}" for i in range(300)]
    rows = [chunks("long", many), *(chunks(f"d{i}", [f"needle of {i}"]) for i in range(5))]
    batch = pa.concat_tables(rows)
    query = np.ones(8, np.float32)
    near = np.tile(query, (batch.num_rows, 1))
    # The 300 chunks of one text all stand before the others.
    near[:, 0] -= np.linspace(0, 0.9, batch.num_rows, dtype=np.float32)
    place = batch.schema.get_field_index("vector")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(near.reshape(-1)), 8)
    table.replace_chunks(batch.set_column(place, batch.schema.field(place), flat))
    wanted = ["long", "d0", "d1", "d2", "d3", "d4"]
    assert [h.parent_id for h in table.search(query, limit=6)] == ["long"] * 6
    hits = table.search(query, limit=6, group=True)
    assert [h.parent_id for h in hits] == wanted and hits[0].chunk == 0
    assert [h.parent_id for h in table.search(query, limit=9, group=True)] == wanted
    each = table.search_many(np.stack([query, query]), limit=3, group=True, columns=["text"])
    assert [[h.parent_id for h in hits] for hits in each] == [wanted[:3]] * 2
    assert {h.parent_id for h in table.search_text("needle", limit=6, group=True)} == set(wanted)
    both = table.search_hybrid("needle", query, limit=6, group=True)
    assert sorted(h.parent_id for h in both) == sorted(wanted)


def test_a_table_says_how_its_texts_are_cut_and_takes_no_others(table, tmp_path):
    assert Table.open(tmp_path, "t").chunking == CUT
    with pytest.raises(TableMismatch, match="--chunk 16.*--chunk 32 --overlap 4 would"):
        table.must_be_cut(Chunking(32, 4))
    with pytest.raises(TableMismatch, match="whole texts would be added; give --chunk 16"):
        table.must_be_cut(None)
    plain = Table.create(tmp_path, "plain", SPACE)
    with pytest.raises(TableMismatch, match="holds whole texts.*leave --chunk"):
        plain.must_be_cut(CUT)
    plain.must_be_cut(None)


def test_what_is_no_chunk_is_refused(table):
    rows = chunks("a", ["x"])
    with pytest.raises(UsageError, match="a chunk needs parent_id"):
        place = rows.schema.get_field_index("parent_id")
        nulls = pa.nulls(1, pa.string())
        table.replace_chunks(rows.set_column(place, rows.schema.field(place), nulls))
    with pytest.raises(UsageError, match="two chunks have one id"):
        table.replace_chunks(pa.concat_tables([rows, rows]))
    assert dedup_keys(pa.array(["x"])) == rows["dedup_key"].combine_chunks()


def test_whatever_edits_follow_each_other_the_table_holds_the_last_texts(table):
    """Longer, shorter, turned round and deleted texts, by a table that knows all rows and not."""
    rng, wanted = np.random.default_rng(5), dict[str, list[str]]()
    for turn in range(15):
        if turn % 7 == 6:
            table = Table.open(table.db, "t")
        gone = [parent for parent in wanted if rng.random() < 0.1]
        given = {
            f"p{n}": list(rng.permutation(list("abcdefgh"))[: rng.integers(1, 8)])
            for n in rng.choice(4, rng.integers(1, 4), replace=False)
        }
        gone = [parent for parent in gone if parent not in given]
        rows = pa.concat_tables([chunks(parent, texts) for parent, texts in given.items()])
        version = table.version
        table.replace_chunks(rows, gone=gone, on_conflict="update")
        assert table.version <= version + 1  # one commit
        wanted = {p: t for p, t in (wanted | given).items() if p not in gone}
        assert texts(table) == [(p, text) for p in sorted(wanted) for text in wanted[p]]
        assert [row["vector"] for row in held(table)] == [
            vector.tolist() for p in sorted(wanted) for vector in vectors(wanted[p])
        ]


def test_an_edit_of_a_few_texts_reads_no_other_rows(table, monkeypatch):
    table.replace_chunks(chunks("a", list("abc")))
    fresh = Table.open(table.db, "t")
    monkeypatch.setattr(KnownRows, "refresh", None)
    edited = chunks("a", list("axcd"), known="ac")
    assert status(fresh, edited, chunks("b", ["one"]))[0] == ["CHANGED", "NEW"]
    done = fresh.replace_chunks(edited)
    assert (done.written, done.moved, done.removed, done.kept) == (2, 1, 1, 1)
    assert texts(fresh) == [("a", text) for text in "axcd"]
    with pytest.raises(
        StoreError, match="NoneType"
    ):  # of many texts it is cheaper to know all rows
        many = [chunks(f"p{n}", ["one"]) for n in range(2 * IN_LIST_MAX)]
        status(fresh, *many)


def test_chunks_are_found_by_their_text_through_an_index(table):
    plain = Table.create(table.db, "plain", SPACE)
    for each, wanted in ((table, True), (plain, False)):
        rows = records(
            pa.array([f"r{n}" for n in range(5000)]),
            pa.array(["t"] * 5000),
            np.ones((5000, 8), np.float32),
        )
        each.append(rows)
        assert ("parent_id" in each.optimize().indexed) is wanted
    with pytest.raises(UsageError, match="'parent_id' gets no index"):
        plain.maintenance.ensure_index("parent_id")

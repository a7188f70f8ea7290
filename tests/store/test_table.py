"""A table of records in a real LanceDB directory."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import (
    BadVector,
    StoreError,
    TableMismatch,
    TableNotFound,
    UsageError,
)
from memworker.store import IdStatus, Table, VectorSpace, lance, records, table_names
from tests.store.helpers import DIM, SPACE, batch, numbered, texts_by_id, vector_of


@pytest.fixture
def table(tmp_path):
    return Table.open_or_create(tmp_path / "db", "notes", SPACE)


def test_opens_what_was_created(table):
    again = Table.open(table.db, "notes")
    assert again.space == SPACE
    assert again.identity == table.identity
    assert table_names(table.db) == ["notes"]


def test_a_missing_table_names_those_there_are(table):
    with pytest.raises(TableNotFound, match="notes"):
        Table.open(table.db, "nots")
    with pytest.raises(TableNotFound, match="no database directory"):
        Table.open(table.db / "elsewhere", "notes")
    with pytest.raises(StoreError, match="already exists"):
        Table.create(table.db, "notes", SPACE)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", ".hidden", "x\n", "naïve", "t.lance"])
def test_names_that_cannot_be_folders_are_refused(tmp_path, name):
    with pytest.raises(UsageError):
        Table.create(tmp_path, name, SPACE)
    with pytest.raises(UsageError):
        Table.open(tmp_path, name)


def test_a_remote_address_is_refused():
    with pytest.raises(UsageError, match="local directory"):
        Table.open("hdfs://bucket/db", "notes")


@pytest.mark.parametrize(
    "change",
    [{"model": "bge-small"}, {"dim": 16}, {"distance": "dot"}, {"fingerprint": "0" * 16}],
)
def test_another_space_is_refused_with_both_values(table, change):
    (key, value), *_ = change.items()
    other = VectorSpace(**{name: getattr(SPACE, name) for name in SPACE.__slots__} | change)
    with pytest.raises(TableMismatch) as refused:
        Table.open_or_create(table.db, "notes", other)
    assert repr(value) in str(refused.value)
    assert repr(getattr(SPACE, key)) in str(refused.value)
    assert ("computed in another way" in str(refused.value)) is (key == "fingerprint")


def test_a_foreign_table_is_refused(tmp_path):
    lancedb.connect(tmp_path).create_table("theirs", pa.table({"id": ["a"]}))
    with pytest.raises(TableMismatch, match="not made by memworker"):
        Table.open(tmp_path, "theirs")


def test_a_create_that_was_killed_can_be_made_again(tmp_path):
    (tmp_path / "notes.lance" / "data").mkdir(parents=True)
    with pytest.raises(TableNotFound):
        Table.open(tmp_path, "notes")
    Table.open_or_create(tmp_path, "notes", SPACE).append(numbered(0, 3))
    assert Table.open(tmp_path, "notes").count() == 3


def test_an_empty_version_file_is_explained(table):
    table.append(numbered(0, 3))
    # Lance names versions so that the newest comes first.
    newest = min((table.db / "notes.lance" / "_versions").glob("*.manifest"))
    newest.write_bytes(b"")
    with pytest.raises(StoreError, match="version file is empty"):
        Table.open(table.db, "notes")
    newest.unlink()
    assert Table.open(table.db, "notes").append(numbered(0, 3)).written == 3


def test_an_empty_table_answers(table):
    assert table.search(vector_of("x"), where={"n": 1}) == []
    assert table.count() == 0 and table.rows().num_rows == 0
    assert table.append(numbered(0, 0)).written == 0
    table.optimize()
    assert table.info().indices == () and not table.maintenance.wants_index("vector")


def test_errors_of_lancedb_come_as_ours_without_its_source_paths(table):
    with pytest.raises(StoreError) as failed:
        table.rows(columns=["nope"])
    assert ".rs:" not in str(failed.value) and "notes" in str(failed.value)


def test_append_writes_each_id_once(table):
    first = table.append(numbered(0, 10))
    assert (first.written, first.duplicates, first.conflicts) == (10, 0, ())
    again = table.append(numbered(5, 15))
    assert (again.written, again.duplicates, again.conflicts) == (5, 5, ())
    nothing = table.append(numbered(0, 15))
    assert (nothing.written, nothing.duplicates) == (0, 15)
    assert nothing.version == again.version == table.version
    assert texts_by_id(Table.open(table.db, "notes")) == {f"id-{i}": f"text {i}" for i in range(15)}


@pytest.mark.parametrize("policy", ["reject", "skip"])
def test_conflicts_are_left_out_and_named(table, policy):
    table.append(batch([("a", "one"), ("b", "two")]))
    rows = [("a", "other"), ("c", "three"), ("b", "two"), ("a", "other"), ("a", "one")]
    done = table.append(batch(rows), on_conflict=policy)
    assert (done.written, done.duplicates, done.conflicts, done.updated) == (1, 2, (0, 3), 0)
    assert texts_by_id(table) == {"a": "one", "b": "two", "c": "three"}


def test_the_first_of_equal_ids_in_a_batch_wins(table):
    rows = [("a", "one"), ("b", "two"), ("a", "one"), ("a", "other"), ("b", "two")]
    done = table.append(batch(rows))
    assert (done.written, done.duplicates, done.conflicts) == (2, 2, (3,))
    assert texts_by_id(table) == {"a": "one", "b": "two"}


def test_update_replaces_all_but_created_at(table):
    then, later = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    old = batch([("a", "one"), ("b", "two")], created_at=then, scopes={"user_id": "ann"})
    table.append(old)
    rows = batch(
        [("b", "new"), ("c", "three")],
        created_at=later,
        metadata_json=pa.array(['{"n":1}', None]),
        scopes={"user_id": "ann"},
    )
    version = table.version
    done = table.append(rows, on_conflict="update")
    assert (done.written, done.updated, done.conflicts, done.duplicates) == (1, 1, (), 0)
    assert done.version == version + 1, "one commit"
    row = table.rows({"id": "b"}).to_pylist()[0]
    assert row["text"] == "new" and row["user_id"] == "ann" and row["metadata"] == '{"n":1}'
    assert row["vector"] == vector_of("new").tolist()
    assert (row["created_at"], row["updated_at"]) == (then, later)
    assert table.append(rows, on_conflict="update").duplicates == 2
    assert Table.open(table.db, "notes").append(rows).duplicates == 2


def test_no_policy_moves_a_row_to_another_scope(table):
    table.append(batch([("a", "one"), ("b", "two")], scopes={"user_id": "ann"}))
    rows = batch(
        [("a", "one"), ("b", "new"), ("c", "x"), ("c", "y")],
        scopes={"user_id": pa.array(["bob", "bob", "ann", "bob"])},
    )
    keys = {"scopes": {"user_id": rows["user_id"]}, "metadata": rows["metadata"]}
    statuses = table.classify(rows["id"], rows["dedup_key"], **keys)
    elsewhere, new = IdStatus.ELSEWHERE, IdStatus.NEW
    assert statuses.tolist() == [elsewhere, elsewhere, new, elsewhere]
    for policy in ("update", "reject", "skip"):
        done = table.append(rows, on_conflict=policy)
        assert (done.updated, done.conflicts) == (0, (0, 1, 3))
        assert (done.written, done.duplicates) == ((1, 0) if policy == "update" else (0, 1))
    held = {row["id"]: (row["user_id"], row["text"]) for row in table.rows().to_pylist()}
    assert held == {"a": ("ann", "one"), "b": ("ann", "two"), "c": ("ann", "x")}


@pytest.mark.parametrize(
    "given", ['{"a":1,"b":[2,{"c":1e22}]}', '{ "b": [2, {"c": 1e+22}], "a": 1 }']
)
def test_equal_metadata_make_a_duplicate_and_other_ones_a_conflict(table, given):
    def of(metadata, row_id="a"):
        return batch([(row_id, "one")], metadata_json=pa.array([metadata], pa.string()))

    table.append(of(given))
    other_handle = Table.open(table.db, "notes")
    for reader in (table, other_handle):
        assert reader.append(of('{"b":[2,{"c":1e22}],"a":1}')).duplicates == 1
    for other in ('{"a":1}', '{"a":true,"b":[2,{"c":1e22}]}', '{"a":1.0,"b":[2,{"c":1e22}]}', None):
        assert table.append(of(other)).conflicts == (0,)
    assert table.append(of('{"a":2}'), on_conflict="update").updated == 1
    assert other_handle.append(of('{"a":2}')).duplicates == 1
    for nothing in (None, "{}"):
        table.append(of(nothing, "b"), on_conflict="update")
        assert [table.append(of(each, "b")).duplicates for each in (None, "{}")] == [1, 1]


def test_the_last_of_equal_ids_wins_in_an_update(table):
    table.append(batch([("a", "one")]))
    rows = [("a", "two"), ("b", "x"), ("a", "three"), ("b", "y"), ("b", "y")]
    done = table.append(batch(rows), on_conflict="update")
    assert (done.written, done.updated, done.duplicates) == (1, 3, 1)
    assert texts_by_id(table) == {"a": "three", "b": "y"}


def test_many_conflicts_are_confirmed_by_a_scan(table):
    table.append(numbered(0, 600))
    changed = batch([(f"id-{i}", f"changed {i}") for i in range(300, 900)])
    assert table.append(changed).conflicts == tuple(range(300))
    done = table.append(changed, on_conflict="update")
    assert (done.written, done.updated, done.duplicates) == (0, 300, 300)
    assert texts_by_id(table)["id-450"] == "changed 450"


def test_classify(table):
    table.append(batch([("a", "one"), ("b", "two")]))
    rows = batch([("b", "two"), ("a", "other"), ("c", "x"), ("c", "x"), ("c", "y")])
    statuses = table.classify(rows["id"], rows["dedup_key"])
    assert [IdStatus(status).name for status in statuses] == [
        "DUPLICATE",
        "CONFLICT",
        "NEW",
        "DUPLICATE",
        "CONFLICT",
    ]
    assert table.classify([], pa.array([], pa.string())).tolist() == []


def test_another_handle_sees_and_is_seen(table):
    other = Table.open(table.db, "notes")
    for start in range(0, 50, 10):
        assert table.append(numbered(start, start + 7)).written == 7
        assert other.append(numbered(start, start + 10)).written == 3
    assert table.append(numbered(0, 60)).written == 10
    assert other.count() == 60 == len(texts_by_id(table))


def test_deleted_rows_can_be_written_again_by_any_handle(table):
    other = Table.open(table.db, "notes")
    table.append(numbered(0, 10))
    assert other.append(numbered(0, 10)).duplicates == 10
    assert table.delete({"id": {"in": ["id-3", "id-4"]}}) == 2
    # As many rows come as went, so that only a look at the ids tells.
    table.append(numbered(20, 22))
    assert other.append(numbered(0, 10)).written == 2
    assert table.append(numbered(0, 22)).written == 10
    assert len(texts_by_id(other)) == 22
    with pytest.raises(UsageError, match="every row"):
        table.delete({})


def test_optimise_keeps_every_row_and_the_known_ids(table):
    other = Table.open(table.db, "notes")
    for start in range(0, 30, 5):
        table.append(numbered(start, start + 5))
    assert other.append(numbered(0, 1)).duplicates == 1
    assert table.info().fragments == 6
    table.optimize(keep_versions=timedelta(milliseconds=1))
    assert table.info().fragments == 1
    for each in (table, other):
        assert each.append(numbered(0, 30)).duplicates == 30


def test_a_table_dropped_and_made_again_is_another(table):
    table.append(numbered(0, 5))
    shutil.rmtree(table.db / "notes.lance")
    again = Table.open_or_create(table.db, "notes", SPACE)
    assert again.identity != table.identity
    assert again.append(numbered(0, 5)).written == 5
    with pytest.raises(StoreError, match="made again"):
        table.append(numbered(0, 5))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_bad_vectors_are_refused_before_the_write(table, value):
    vectors = np.ones((3, DIM), np.float32)
    vectors[1] = 0 if value == 0 else vectors[1]
    vectors[1, 3] = value
    ids = pa.array(["a", "bad one", "c"])
    version = table.version
    with pytest.raises(BadVector, match="'bad one'"):
        table.append(records(ids, ids, vectors))
    assert table.version == version
    with pytest.raises(BadVector):
        table.search(vectors[1])


def test_batches_that_do_not_fit_are_refused(table):
    rows = batch([("a", "one")])
    with pytest.raises(UsageError, match="no column 'text'"):
        table.append(rows.drop_columns("text"))
    with pytest.raises(UsageError, match="unknown columns"):
        table.append(rows.append_column("extra", pa.array([1])))
    with pytest.raises(UsageError, match="vector"):
        table.append(records(pa.array(["a"]), pa.array(["x"]), np.ones((1, 3), np.float32)))
    with pytest.raises(UsageError, match="policy"):
        table.append(rows, on_conflict="ignore")
    missing = rows.drop_columns(["metadata", "expires_at", "superseded_at"])
    assert table.append(missing.to_batches()[0]).written == 1


def test_texts_are_stored_verbatim(table):
    texts = [
        "NUL\0",
        "\u202ebidi\u202c",
        "😀👩‍👩‍👧",
        "日本語",
        "a\r\n\tb",
        "'\"\\",
        "\ufeff",
        "x" * 70_000,
    ]
    table.append(batch([(text, text) for text in texts]))
    assert texts_by_id(Table.open(table.db, "notes")) == {text: text for text in texts}
    assert table.append(batch([(text, text) for text in texts])).duplicates == len(texts)
    changed = batch([(text, text + "!") for text in texts])
    assert len(table.append(changed).conflicts) == len(texts)


def test_search_ranks_by_cosine(table):
    rows = [(f"id-{i}", f"text {i}") for i in range(50)]
    table.append(batch(rows, scopes={"user_id": pa.array([f"u{i % 5}" for i in range(50)])}))
    query = vector_of("a question") * 3
    unit = np.array([vector_of(text) / np.linalg.norm(vector_of(text)) for _, text in rows])
    cosines = unit @ query / np.linalg.norm(query)
    hits = table.search(query, limit=7)
    assert [hit.id for hit in hits] == [f"id-{i}" for i in np.argsort(-cosines)[:7]]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1][:7], atol=1e-6)
    scoped = table.search(query, limit=20, where={"user_id": "u3"}, exact=True)
    assert len(scoped) == 10 and {hit.user_id for hit in scoped} == {"u3"}
    assert table.search(query, limit=1, columns=["text"])[0].user_id == ""


def test_searching_for_many_is_searching_for_each(table):
    rows = [(f"id-{i}", f"text {i}") for i in range(40)]
    table.append(batch(rows, scopes={"user_id": pa.array([f"u{i % 2}" for i in range(40)])}))
    queries = np.array([vector_of(f"question {i}") for i in range(9)])
    for options in ({}, {"exact": True}, {"where": {"user_id": "u1"}, "limit": 3}):
        for some in (queries, queries[:1], queries[:0]):
            found = table.search_many(some, **options)
            singly = [table.search(query, **options) for query in some]
            assert [[h.id for h in hits] for hits in found] == [[h.id for h in s] for s in singly]
    assert table.search_many(queries[:3], where={"user_id": "nobody"}) == [[], [], []]
    with pytest.raises(UsageError, match="dimensions"):
        table.search_many(np.ones((2, 3), np.float32))


def test_search_ranks_by_dot_product(tmp_path):
    space = VectorSpace("m", "fp32", 256, 2, "f", distance="dot")
    table = Table.create(tmp_path, "dots", space)
    vectors = np.array([[1, 0], [3, 0], [0, 9]], np.float32)
    ids = pa.array(["short", "long", "across"])
    table.append(records(ids, ids, vectors))
    hits = table.search(np.array([2, 0], np.float32), limit=3)
    assert [(hit.id, hit.score) for hit in hits] == [("long", 6), ("short", 2), ("across", 0)]


def test_search_returns_metadata_and_refuses_nonsense(table):
    table.append(batch([("a", "one")], metadata_json=pa.array(['{"n": 1, "t": [1, "é"]}'])))
    (hit,) = table.search(vector_of("one"))
    assert hit.metadata == {"n": 1, "t": [1, "é"]} and hit.created_at is not None
    with pytest.raises(UsageError, match="dimensions"):
        table.search(np.ones(3, np.float32))
    with pytest.raises(UsageError, match="limit"):
        table.search(vector_of("one"), limit=0)
    with pytest.raises(UsageError, match="vector"):
        table.search(vector_of("one"), columns=["vector"])


def test_expired_and_superseded_rows_are_hidden(table):
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    table.append(batch([("plain", "p")]))
    assert len(table.search(vector_of("p"))) == 1
    table.append(batch([("gone", "g")], expires_at=now - hour))
    table.append(batch([("stays", "s")], expires_at=now + hour))
    table.append(batch([("old", "o")], superseded_at=now))
    assert {hit.id for hit in table.search(vector_of("p"))} == {"plain", "stays"}
    assert len(table.search(vector_of("p"), where={"id": {"ne": "plain"}})) == 1
    assert len(table.search(vector_of("p"), visible_only=False)) == 4


def test_the_index_finds_what_the_exact_search_finds(tmp_path):
    rng = np.random.default_rng(0)
    table = Table.create(tmp_path, "big", VectorSpace("m", "fp32", 256, 32, "f"))
    vectors = rng.normal(size=(4096, 32)).astype(np.float32)
    ids = pa.array([f"id-{i}" for i in range(4096)])
    table.append(records(ids, ids, vectors))
    assert not table.maintenance.wants_index("vector")
    assert table.maintenance.ensure_index("vector") and not table.maintenance.ensure_index("vector")
    (index,) = table.info().indices
    assert (index.kind, index.columns, index.unindexed_rows) == ("IvfSq", ("vector",), 0)
    found = 0
    for query in rng.normal(size=(20, 32)).astype(np.float32):
        exact = {hit.id for hit in table.search(query, exact=True)}
        found += len(exact & {hit.id for hit in table.search(query)})
    assert found / 200 >= 0.95
    late = records(pa.array(["late"]), pa.array(["late"]), vectors[:1] + 0.01)
    table.append(late)
    assert "late" in {hit.id for hit in table.search(vectors[0])}, "not indexed, yet found"
    table.optimize()
    assert table.info().indices[0].unindexed_rows == 0


def test_info(table):
    table.append(numbered(0, 4))
    info = table.info()
    assert (info.name, info.rows, info.model, info.dim) == ("notes", 4, SPACE.model, DIM)
    assert (info.distance, info.identity) == ("cosine", table.identity)
    assert info.bytes_on_disk > 0 and info.fragments == 1 and info.indices == ()


def test_rows_of_ours_that_another_handle_deletes_can_be_written_again(table):
    other = Table.open(table.db, "notes")
    table.append(numbered(0, 10))
    assert other.delete({"id": "id-3"}) == 1
    assert table.append(numbered(0, 10)).written == 1
    # As many come as go, all of them after the last look at the ids.
    assert other.delete({"id": "id-4"}) == 1 and other.append(numbered(10, 11)).written == 1
    assert table.append(numbered(0, 10)).written == 1
    assert len(texts_by_id(table)) == 11


def test_what_is_kept_in_memory_of_versions_is_bounded(tmp_path, monkeypatch):
    """A process that writes for hours makes many, and LanceDB keeps what it read of each."""
    made, session = [], lancedb.Session
    monkeypatch.setattr(lancedb, "Session", lambda *sizes: made.append(session(*sizes)) or made[-1])
    monkeypatch.setattr(lance, "METADATA_CACHE_BYTES", 1 << 16)
    table = Table.create(tmp_path, "t", SPACE)
    for start in range(0, 60, 3):
        table.append(numbered(start, start + 3))
        assert table.rows({"id": f"id-{start}"}).num_rows == 1
    # Twenty versions are 0.8 MB otherwise.
    assert 0 < sum(each.size_bytes for each in made) < 1 << 17


def test_who_writes_for_long_keeps_less(table, monkeypatch):
    made, session = [], lancedb.Session
    monkeypatch.setattr(lancedb, "Session", lambda *sizes: made.append(session(*sizes)) or made[-1])
    monkeypatch.setattr("memworker.store.table.WRITERS_METADATA_CACHE_BYTES", 1 << 14)
    table.append(numbered(0, 3))
    table.keep_little()
    for start in range(3, 60, 3):
        table.append(numbered(start, start + 3))
    # Also when it was opened anew since.
    table._versions.renew()
    for start in range(60, 120, 3):
        assert table.append(numbered(start, start + 3)).written == 3
    assert len(made) == 2 and all(0 < each.size_bytes < 1 << 16 for each in made)
    assert table.append(numbered(0, 120)).duplicates == 120


def test_info_while_folders_of_indices_come_and_go(table):
    done = threading.Event()

    def come_and_go() -> None:
        place = table.db / f"{table.name}.lance" / "_indices"
        while not done.is_set():
            for number in range(40):
                (place / f"{number}" / "deep").mkdir(parents=True)
                (place / f"{number}" / "file").write_bytes(b"x" * 10)
            shutil.rmtree(place)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(60):
            assert table.info().bytes_on_disk > 0
    finally:
        done.set()
        thread.join()


def test_limits_and_offsets_of_any_whole_type_and_no_other(table):
    table.append(batch([(str(i), f"text {i}") for i in range(5)]))
    assert table.rows(limit=np.int64(2), offset=np.uint8(1))["id"].to_pylist() == ["1", "2"]
    assert table.rows(limit=0).num_rows == 0
    for bad in (-1, True, 1.5, "1", 10**30):
        with pytest.raises(UsageError, match="limit must be a whole number"):
            table.rows(limit=bad)
        with pytest.raises(UsageError, match="offset must be a whole number"):
            table.rows(offset=bad)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ('{"n": [18446744073709551616]}', "more than 64 bits"),
        ('{"n": NaN}', "is nan"),
        ('{"n": 1, "n": 2}', "the field 'n' twice"),
        ("not json", "Expecting value"),
        ("[1]", "it is"),
        ('"x"', "it is"),
    ],
)
def test_metadata_that_would_be_altered_are_refused(metadata, reason):
    with pytest.raises(UsageError, match=rf"metadata_json\[1\] must be.*{reason}"):
        batch([("a", "one"), ("b", "two")], metadata_json=pa.array([None, metadata]))

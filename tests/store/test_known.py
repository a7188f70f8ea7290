"""Known ids: hashes, runs, and what happens when hashes collide."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import UsageError
from memworker.store import Table, dedup_keys, records
from memworker.store.known import KnownIds
from memworker.store.lock import state_dir
from tests.store.helpers import SPACE, batch, texts_by_id


def hashed(known, pairs):
    ids, keys = pa.array([p[0] for p in pairs]), pa.array([p[1] for p in pairs])
    return known.hash(ids, dedup_keys(keys))


def test_statuses_over_many_runs_follow_a_dictionary():
    rng = np.random.default_rng(7)
    known, truth = KnownIds(), {}
    for _ in range(60):
        names = rng.choice(3000, rng.integers(1, 400), replace=False)
        pairs = [(f"id{i}", f"text{rng.integers(2)}") for i in names]
        expected = [
            0 if row_id not in truth else 1 if truth[row_id] == text else 2
            for row_id, text in pairs
        ]
        keys, records_ = hashed(known, pairs)
        assert known.find(keys, records_).tolist() == expected
        # All are added again, so that newer runs hide older ones.
        known.add(keys, records_)
        truth.update(pairs)
    assert len(known._records._runs) <= 12


def test_equal_texts_under_other_ids_are_not_duplicates():
    known = KnownIds()
    known.add(*hashed(known, [(f"id{i}", "ok") for i in range(1000)]))
    found = known.find(*hashed(known, [(f"other{i}", "ok") for i in range(1000)]))
    assert not found.any()


def test_the_hash_of_a_foreign_key_is_stable():
    known = KnownIds()
    good = dedup_keys(pa.array(["a", "b"]))
    odd = pa.array(["short", good[0].as_py(), "ü" * 32, good[1].as_py()])
    ids = pa.array(["1", "2", "3", "4"])
    _, alone = known.hash(ids.slice(1, 1), good.slice(0, 1))
    _, mixed = known.hash(ids, odd)
    assert mixed[1] == alone[0]
    sliced = known.hash(pa.array(["0", "4"]).slice(1), good.slice(1))[1]
    assert sliced[0] == mixed[3]


class CollidingIds(KnownIds):
    """As if all ids had the same 64-bit hash."""

    def hash(self, ids, keys, metadata=None):
        hashes, records_ = super().hash(ids, keys, metadata)
        return np.zeros_like(hashes), records_


def test_a_collision_loses_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("memworker.store.sync.KnownIds", CollidingIds)
    table = Table.create(tmp_path, "t", SPACE)
    first = [("a", "one"), ("b", "two"), ("c", "two")]
    assert table.append(batch(first)).written == 3
    done = table.append(batch([("d", "two"), ("a", "one"), ("b", "changed"), ("e", "one")]))
    assert (done.written, done.duplicates, done.conflicts) == (2, 1, (2,))
    assert texts_by_id(table) == dict(first) | {"d": "two", "e": "one"}


def test_dedup_keys_keep_scope_and_text_apart():
    def key(text, *scope):
        return dedup_keys(pa.array([text]), *scope)[0].as_py()

    keys = {
        key("ab"),
        key("b", "a"),
        key("", "ab"),
        key("", "", "ab"),
        key("", "a", "b"),
        key("", "", "a", "b"),
        key("1:ab", ""),
        key("2:ab", ""),
        key("\0ab"),
        key("ab", "\0"),
    }
    assert len(keys) == 10
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in keys)


def test_dedup_keys_do_not_depend_on_how_the_scope_is_given():
    texts = pa.array(["x", "y", "é"])
    constant = dedup_keys(texts, "ann", None, "r")
    assert constant == dedup_keys(
        texts, pa.array(["ann"] * 3), pa.array([None] * 3, pa.string()), "r"
    )
    mixed = dedup_keys(texts, pa.array(["ann", "bob", None]), "", "r")
    assert mixed[0] == constant[0] and mixed[1] != constant[1]
    assert mixed[2] == dedup_keys(texts, None, None, "r")[2]
    # A key in a table must mean the same for ever: pinned.
    assert dedup_keys(pa.array(["hello"]), "ann")[0].as_py() == "2f53964001ddc98d28147da116b47763"
    assert len(dedup_keys(pa.array([], pa.string()))) == 0


def test_records_fill_in_what_is_missing():
    vectors = np.ones((2, 4), np.float32)
    rows = records(pa.array(["a", None]), pa.array(["x", "y"]), vectors)
    assert rows["id"].to_pylist() == ["a", rows["dedup_key"][1].as_py()]
    assert rows["user_id"].to_pylist() == ["", ""]
    assert rows["expires_at"].null_count == 2 and rows["created_at"].null_count == 0
    assert records(None, pa.array(["x", "y"]), vectors)["id"] == rows["dedup_key"]
    address = rows["vector"].chunk(0).flatten().buffers()[1].address
    assert address == vectors.ctypes.data, "the vectors were copied"


def test_records_refuse_what_does_not_fit():
    vectors = np.ones((2, 4), np.float32)
    texts = pa.array(["x", "y"])
    with pytest.raises(UsageError, match="float32"):
        records(None, texts, vectors.astype(np.float64))
    with pytest.raises(UsageError, match="other lengths"):
        records(pa.array(["a"]), texts, vectors)
    with pytest.raises(UsageError, match="row 1"):
        records(None, pa.array(["x", None]), vectors)
    with pytest.raises(UsageError, match="unknown scopes"):
        records(None, texts, vectors, scopes={"team": "a"})


def test_files_beside_the_table_are_private(tmp_path):
    table = Table.open_or_create(tmp_path / "db", "t", SPACE)
    table.append(batch([("a", "one")]))
    folder = state_dir(table.db, "t")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}

"""Upkeep: what is due, one step at a time, and searches that are right all the while."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memworker.errors import StoreError, TableLocked
from memworker.store import Step, Table, VectorSpace, compaction, lock, maintenance, records
from memworker.store.apart import Compaction
from memworker.store.policy import (
    FRAGMENTS_MAX,
    KEEP_VERSIONS,
    SCALAR_COLUMNS,
    SCALAR_MIN_ROWS,
    UNINDEXED_MIN,
)
from tests.store.damaging import manifest
from tests.store.helpers import SPACE, batch, index_scopes, numbered, texts_by_id, vector_of


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE)


def many(start, stop):
    """Rows with vectors that are made at once."""
    rng = np.random.default_rng(start)
    ids = pa.array([f"id-{i}" for i in range(start, stop)])
    texts = pa.array([f"text {i}" for i in range(start, stop)])
    users = pa.array([f"u{i % 7}" for i in range(start, stop)])
    vectors = rng.normal(size=(stop - start, SPACE.dim)).astype(np.float32)
    return records(ids, texts, vectors, scopes={"user_id": users})


def single_rows(table, start, stop):
    for i in range(start, stop):
        table.append(numbered(i, i + 1))


def steps(table):
    """Tend until nothing is due; each step must make the next one another."""
    done = []
    while table.maintenance.needs().step is not None:
        done.append(table.maintenance.tend().step)
        assert len(done) < 20, done
    return done


def all_is_found(table, row):
    return (
        table.search(vector_of(f"text {row}"), limit=1)[0].id == f"id-{row}"
        and table.search_text(str(row), limit=1)[0].id == f"id-{row}"
        and table.rows({"id": f"id-{row}"}).num_rows == 1
    )


def test_nothing_is_due_for_a_small_table(table):
    table.append(numbered(0, 10))
    assert not table.maintenance.due()
    assert table.maintenance.tend().step is None and table.maintenance.needs().missing == ()


def test_scope_indices_are_built_once_and_serve_look_ups(table):
    assert index_scopes(table) == SCALAR_COLUMNS
    assert index_scopes(Table.open(table.db, "t")) == ()
    table.append(batch([("a", "x"), ("b", "y")], scopes={"user_id": pa.array(["ann", "bob"])}))
    assert table.rows({"user_id": "bob"})["id"].to_pylist() == ["b"]
    table.optimize()
    with table.changing() as change:
        change.replace(batch([("a", "z")], scopes={"user_id": "bob"}))
        change.insert(batch([("c", "w")], scopes={"user_id": "bob"}))
    assert texts_by_id(table) == {"a": "z", "b": "y", "c": "w"}
    assert table.count({"user_id": "bob"}) == 3 and table.count({"user_id": "ann"}) == 0


def test_what_is_worth_an_index_gets_one_and_rests_afterwards(table):
    table.append(many(0, SCALAR_MIN_ROWS))
    assert (
        table.maintenance.needs().missing == (*SCALAR_COLUMNS, "text") and table.maintenance.due()
    )
    assert table.maintenance.tend().step is Step.INDEX
    assert table.maintenance.needs().step is Step.INDEX and not table.maintenance.due()
    assert steps(table) == [Step.INDEX] * len(SCALAR_COLUMNS)
    assert {index.columns[0] for index in table.info().indices} == {*SCALAR_COLUMNS, "text"}


def test_small_fragments_are_gathered_and_many_rows_are_folded_in(table):
    table.append(many(0, SCALAR_MIN_ROWS))
    steps(table)
    size = SCALAR_MIN_ROWS
    single_rows(table, size, size + FRAGMENTS_MAX)
    other = Table.open(table.db, "t")
    assert other.append(numbered(size, size + 1)).duplicates == 1
    before = table.rows().sort_by("id")
    assert steps(table) == [Step.GATHER]
    assert table.info().fragments == 2
    assert table.rows().sort_by("id").equals(before)
    assert all_is_found(table, size) and all_is_found(table, size + FRAGMENTS_MAX - 1)
    table.append(many(size + FRAGMENTS_MAX, size + UNINDEXED_MIN))
    assert table.maintenance.needs().unindexed_rows >= UNINDEXED_MIN
    assert steps(table) == [Step.FOLD]
    assert table.maintenance.needs().unindexed_rows == 0
    assert all_is_found(table, size) and all_is_found(table, size + FRAGMENTS_MAX - 1)
    for each in (table, other):
        assert each.append(numbered(size, size + 1)).duplicates == 1
    assert table.count() == size + UNINDEXED_MIN


def test_what_was_gathered_is_written_again_a_few_times_alone(table):
    """Of a table without an index, too: as a Memory has it up to some thousand rows."""
    size, seen = 0, set()
    for _ in range(8):
        single_rows(table, size, size + FRAGMENTS_MAX)
        size += FRAGMENTS_MAX
        assert steps(table) == [Step.GATHER]
        seen |= {each.id for each in manifest(table.db).fragments if each.id not in seen}
        assert table.info().fragments <= 3
    # Each row stood in three fragments or four, not in eight.
    assert table.count() == size and len(seen) <= 12
    assert texts_by_id(table) == {f"id-{i}": f"text {i}" for i in range(size)}


def test_a_writer_without_end_does_not_put_the_clean_up_off(table, monkeypatch):
    passed, real = [0.0], maintenance.time.monotonic
    monkeypatch.setattr(maintenance.time, "monotonic", lambda: real() + passed[0])
    size, done = 0, []
    for _ in range(4):
        single_rows(table, size, size + FRAGMENTS_MAX)
        size += FRAGMENTS_MAX
        passed[0] += KEEP_VERSIONS.total_seconds() / 2
        done += steps(table)
    assert done.count(Step.GATHER) == 4 and Step.CLEAN in done


def test_a_writer_without_end_does_not_outrun_a_compaction(table, monkeypatch):
    monkeypatch.setattr(compaction, "_AT_ONCE_BYTES", -1)
    monkeypatch.setattr(compaction, "_PATIENCE_S", 0.0)
    other, lock = Table.open(table.db, "t"), table._writes.lock
    single_rows(table, 0, FRAGMENTS_MAX)
    real, waited = Compaction.do, []

    def outrun(self, handle):
        row = FRAGMENTS_MAX
        while lock.held is None:
            other.append(numbered(row, row + 1))
            row += 1
        with pytest.raises(TableLocked), other._writes.lock.take(timeout_s=0.1):
            pass
        waited.append(row)
        return real(self, handle)

    monkeypatch.setattr(Compaction, "do", outrun)
    compaction.compact(table._writes)
    assert len(waited) == 1 and lock.held is None and table.info().fragments == 1
    assert other.append(numbered(0, waited[0] + 1)).written == 1


def test_gathering_keeps_columns_that_are_not_ours(table):
    table.append(many(0, SCALAR_MIN_ROWS))
    table._handle.add_columns(pa.field("vector_next", pa.list_(pa.float32(), 2)))
    steps(table)
    single_rows(table, SCALAR_MIN_ROWS, SCALAR_MIN_ROWS + FRAGMENTS_MAX)
    value = "arrow_cast([1.0, 2.0], 'FixedSizeList(2, Float32)')"
    last = f"id-{SCALAR_MIN_ROWS + FRAGMENTS_MAX - 1}"
    table._handle.update(where=f"id = '{last}'", values_sql={"vector_next": value})
    assert steps(table) == [Step.GATHER]
    kept = table._handle.search().where(f"id = '{last}'").to_arrow()
    assert kept["vector_next"].to_pylist() == [[1.0, 2.0]]


def test_a_small_table_of_many_commits_is_compacted(table):
    single_rows(table, 0, FRAGMENTS_MAX)
    table.maintenance.ensure_index("text")
    assert steps(table) == [Step.GATHER]
    assert table.info().fragments == 1 and all_is_found(table, 3)


def test_only_one_process_tends(table):
    single_rows(table, 0, FRAGMENTS_MAX)
    with lock.hold(lock.state_dir(table.db, "t"), "tend"):
        assert table.maintenance.tend().step is None
    assert table.maintenance.tend().step is Step.GATHER


def test_a_large_table_gets_its_vector_index_and_has_it_rebuilt(tmp_path):
    table = Table.create(tmp_path, "t", VectorSpace("m", "fp32", 256, SPACE.dim, "f"))
    size = 50_000
    table.append(many(0, size))
    done = steps(table)
    assert (
        table.maintenance.needs().segments == 1
        and done.count(Step.INDEX) == len(SCALAR_COLUMNS) + 2
    )
    rounds = 0
    while Step.REBUILD not in done:
        table.append(many(size, size + UNINDEXED_MIN))
        done, size, rounds = steps(table), size + UNINDEXED_MIN, rounds + 1
        assert rounds < 20
        newest = many(size - UNINDEXED_MIN, size)["vector"][7].values.to_numpy()
        assert table.search(newest, limit=1)[0].id == f"id-{size - UNINDEXED_MIN + 7}"
    assert table.maintenance.needs().segments == 1 and table.count() == size


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_indices_that_were_replaced_are_not_held_open(table):
    """A process that lives for days folds thousands of times, and has 1,024 descriptors."""
    table.append(numbered(0, 100))
    table.maintenance.ensure_index("text")
    for start in range(100, 124, 3):
        table.append(numbered(start, start + 3))
        table.optimize(keep_versions=timedelta(0))
        assert len(table.search_text("text", limit=5)) == 5
    assert not [name for name in open_files() if str(table.db) in name and "(deleted)" in name]


def open_files():
    for descriptor in Path("/proc/self/fd").iterdir():
        # Some thread may have closed it meanwhile.
        with suppress(OSError):
            yield os.readlink(descriptor)


def test_a_handle_that_cannot_be_renewed_goes_on(table, monkeypatch, caplog):
    def refuse():
        raise StoreError("on purpose")

    table.append(numbered(0, 50))
    monkeypatch.setattr(table._handle, "_open_again", refuse)
    table.optimize()
    assert "on purpose" in caplog.text
    assert table.append(numbered(0, 60)).written == 10 and table.count() == 60

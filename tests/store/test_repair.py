"""Repair: what is damaged leaves the table and is told, what is sound stays."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memworker import Memory
from memworker.errors import NotOptimized, StoreError, TableLocked, TableNotFound
from memworker.memory.transfer import import_lines
from memworker.store import Table, deletions, journal, lock, mend, records
from memworker.store.damage import runs_of
from memworker.store.known import IdStatus
from memworker.store.repair import repair_table
from memworker.store.verify import verify_table
from tests.store import damaging
from tests.store.damaging import cut, data_files, flip_padding, make, zero
from tests.store.helpers import index_scopes


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


def ids_in(db, name="t"):
    return Table.open(db, name).rows(columns=["id"])["id"].to_pylist()


def kept_lines(paths):
    return [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]


def spoil_vector(db, number, name="t"):
    """Zero a row's vector where it lies in its file."""
    row = Table.open(db, name).rows({"id": number}, columns=["vector"])["vector"]
    raw = np.float32(row[0].as_py()).tobytes()
    for path in data_files(db, name):
        at = path.read_bytes().find(raw)
        if at >= 0:
            return zero(path, at, len(raw))
    raise AssertionError("the vector lies in no file as it is")


def test_a_healthy_table_is_left_alone(db):
    make(db, 30, 30)
    before = {path: path.stat().st_mtime_ns for path in damaging.folder(db).rglob("*")}
    done = repair_table(db, "t")
    assert done.healthy and done.removed == 0 and done.version == 3 and done.rows == 60
    assert {path: path.stat().st_mtime_ns for path in damaging.folder(db).rglob("*")} == before


def test_a_row_without_its_vector_leaves_and_its_text_is_kept(db):
    make(db, 50, 50)
    spoil_vector(db, "id-70")
    done = repair_table(db, "t")
    assert (done.removed, done.ids, done.rows, done.healthy) == (1, ("id-70",), 99, True)
    (kept,) = kept_lines(done.sound)
    whole = damaging.batch(70, 71).to_pylist()[0]
    assert kept["id"] == "id-70" and kept["memory"] == whole["text"]
    assert kept["metadata"] == json.loads(whole["metadata"]) and kept["user_id"] == "user-0"
    assert kept["damaged"] == {"vector": "the vector is zero"} and done.unsure == ()
    # Its id is not known any more, so the next append writes it.
    assert Table.open(db, "t").append(damaging.batch(0, 100)).written == 1
    assert verify_table(db, "t").healthy


def test_who_has_the_table_open_learns_which_ids_are_gone(db):
    make(db, 50, 50)
    there = Table.open(db, "t")
    batch = damaging.batch(0, 100)
    assert not there.classify(batch["id"], batch["dedup_key"]).tolist().count(IdStatus.NEW)
    spoil_vector(db, "id-70")
    assert there.append(batch).written == 0
    assert repair_table(db, "t").removed == 1
    assert np.flatnonzero(there.classify(batch["id"], batch["dedup_key"]) == 0).tolist() == [70]
    assert there.append(batch).written == 1


def test_a_whole_file_that_is_gone_takes_its_own_rows_only(db):
    make(db, 40, 40, 40)
    data_files(db)[1].unlink()
    done = repair_table(db, "t")
    assert done.healthy and done.removed == 40 and done.ids == () == done.sound
    assert sorted(ids_in(db)) == sorted(f"id-{n}" for n in [*range(40), *range(80, 120)])


def test_sound_rows_of_a_file_that_no_scan_passes_are_written_again(db):
    make(db, 400)
    (path,) = data_files(db)
    zero(path, path.stat().st_size // 6, 3000)
    done = repair_table(db, "t")
    assert done.healthy and done.removed + done.rows == 400 and done.rewritten in (0, done.rows)
    assert Table.open(db, "t").append(damaging.batch(0, 400)).written == done.removed
    rows = Table.open(db, "t").rows().sort_by("id")
    expected = damaging.batch(0, 400).sort_by("id")
    assert rows["text"].equals(expected["text"]) and rows["vector"].equals(expected["vector"])


def test_a_changed_file_whose_rows_do_not_show_it_is_replaced(db):
    make(db, 60)
    assert verify_table(db, "t").healthy
    (path,) = data_files(db)
    flip_padding(path)
    done = repair_table(db, "t")
    assert done.healthy and done.rewritten == 60 and done.removed == 0
    assert data_files(db) != [path] and len(set(ids_in(db))) == 60


# ── which rows are deleted ──


@pytest.mark.parametrize("harm", [Path.unlink, cut], ids=["missing", "cut"])
def test_deletions_by_updates_are_told_again(db, harm):
    table = make(db, 60, 60)
    table.append(damaging.batch(0, 10), on_conflict="update")
    changed = damaging.batch(30, 40)
    texts = pa.array([f"new {n}" for n in range(10)])
    new = records(
        changed["id"].combine_chunks(),
        texts,
        np.float32(changed["vector"].to_pylist()),
        scopes={"user_id": changed["user_id"].combine_chunks()},
    )
    assert table.append(new, on_conflict="update").updated == 10
    (path,) = [
        damaging.folder(db) / f.deletions for f in damaging.manifest(db).fragments if f.deletions
    ]
    before = Table.open(db, "t").rows().sort_by("id")
    harm(path)
    with pytest.raises(StoreError):
        Table.open(db, "t").rows()
    done = repair_table(db, "t")
    assert done.healthy and done.removed == 0 and done.deletions == (f"_deletions/{path.name}",)
    assert Table.open(db, "t").rows().sort_by("id").equals(before)


def test_deletions_that_the_last_verification_knew_are_told_again(db):
    table = make(db, 60, 60)
    table.delete({"id": {"in": ["id-3", "id-4"]}})
    assert verify_table(db, "t").healthy
    (path,) = (damaging.folder(db) / "_deletions").iterdir()
    path.unlink()
    done = repair_table(db, "t")
    assert done.healthy and done.removed == 0 and done.rows == 118


def test_a_deleted_row_never_comes_back(db):
    table = make(db, 60, 60)
    table.delete({"id": {"in": ["id-3", "id-4"]}})
    (path,) = (damaging.folder(db) / "_deletions").iterdir()
    path.unlink()
    done = repair_table(db, "t")
    # Nobody knows which of the 60 it was: all leave, and can be looked at.
    assert done.healthy and done.removed == 60 and done.rows == 60 and done.sound == ()
    assert {row["id"] for row in kept_lines(done.unsure)} >= {"id-0", "id-59"}
    assert not {"id-3", "id-4"} & set(ids_in(db))


def test_a_deletion_file_in_bits_is_what_lancedb_writes(tmp_path):
    rows, space = 200_000, replace(damaging.SPACE, dim=1)
    table = Table.open_or_create(tmp_path, "t", space)
    one = records(pa.array(["x"]), pa.array(["x"]), np.ones((1, 1), np.float32))
    table._handle.add(
        pa.table(
            {n: pa.repeat(one[n][0], rows) for n in one.column_names if n != "vector"}
            | {"vector": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(rows, np.float32)), 1)}
        )
        .select(one.column_names)
        .cast(one.schema)
    )
    # Containers of every kind: full, of bits, listed, of one, and none.
    gone = np.unique(np.r_[0:65_536, 65_540:75_540:2, 131_072:131_080, 199_999]).astype(np.uint32)
    mend.delete_rows(table._writes, list(runs_of(gone.tolist())))
    (fragment,) = damaging.manifest(tmp_path).fragments
    path = damaging.folder(tmp_path) / str(fragment.deletions)
    assert path.suffix == ".bin" and path.read_bytes() == deletions._roaring(gone)


# ── versions ──


def test_the_copy_of_a_verified_version_takes_the_place_of_a_torn_one(db):
    make(db, 30, 30)
    assert verify_table(db, "t").healthy
    path = damaging.newest_manifest(db)
    kept = path.read_bytes()
    cut(path)
    done = repair_table(db, "t")
    assert done.healthy and done.copied == done.version == 3 and done.rows == 60 and not done.lost
    assert path.read_bytes() == kept
    path.unlink()
    assert repair_table(db, "t").copied == 3 and path.read_bytes() == kept


def test_rows_that_went_with_a_version_are_told(db):
    table = make(db, 30, 30)
    with journal.Journal(lock.state_dir(db, "t"), table.identity) as kept:
        kept.append(journal.Committed("r", journal.now(), table.identity, 3, 1, 1, 0, 0, 0))
    damaging.newest_manifest(db).unlink()
    done = repair_table(db, "t")
    assert done.healthy and done.lost and done.journalled == 3 and done.rows == 30
    # It is told once: the journal vouches for what there is.
    assert not repair_table(db, "t").lost


def test_an_older_torn_version_is_set_aside(db):
    table = make(db, 30, 30)
    oldest = sorted((damaging.folder(db) / "_versions").glob("*.manifest"))[-1]
    cut(oldest)
    with pytest.raises(NotOptimized, match="table verify"):
        table.optimize(keep_versions=timedelta(0))
    (damage,) = verify_table(db, "t").damages
    assert damage.path == f"_versions/{oldest.name}"
    done = repair_table(db, "t")
    assert done.healthy and done.damaged == (1,) and done.rows == 60 and not done.lost
    assert table.optimize(keep_versions=timedelta(0)).kept == 0


def test_no_version_can_be_read(db):
    make(db, 30)
    paths = list((damaging.folder(db) / "_versions").glob("*.manifest"))
    for path in paths:
        cut(path)
    with pytest.raises(StoreError, match="no version of table 't' can be read"):
        repair_table(db, "t")
    assert all(path.exists() for path in paths)


# ── indices ──


def test_damaged_indices_are_built_anew(db):
    table = make(db, 600)
    index_scopes(table)
    table.maintenance.ensure_index("text")
    table.maintenance.ensure_index("vector")
    for each in damaging.manifest(db).indices:
        for path in (damaging.folder(db) / each.folder).iterdir():
            cut(path, 0.3)
    done = repair_table(db, "t")
    columns = {"id", "dedup_key", "user_id", "agent_id", "run_id", "text", "vector"}
    assert done.healthy and done.removed == 0 and set(done.indices) == columns
    assert {each.columns[0] for each in table.info().indices} == columns
    assert table.search_text("paris") and done.rows == 600


def test_an_index_of_another_program_is_dropped_and_told(db):
    from lancedb.index import BTree

    table = make(db, 40)
    table._handle.create_index("created_at", config=BTree(), name="theirs")
    (each,) = damaging.manifest(db).indices
    for path in (damaging.folder(db) / each.folder).iterdir():
        path.unlink()
    done = repair_table(db, "t")
    assert done.healthy and done.indices == () and "index theirs" in done.notes[0]


# ── memories ──


def test_memories_come_back_from_what_was_kept(db):
    with Memory(db, model="echo", workers=1) as memory:
        added = memory.add_batch(
            [f"fact {n} {'z' * n}" for n in range(20)], user_id="alice", metadata={"k": 1}
        )
        ids = [one["id"] for one in added["results"]]
        memory.update(ids[4], "fact 4 is another one")
        before = {one: memory.history(one) for one in ids}
        spoil_vector(db, ids[4], "memories")
        spoil_vector(db, ids[9], "memories")
        done = repair_table(db, "memories")
        assert done.healthy and set(done.ids) == {ids[4], ids[9]} and done.unsure == ()
        # The Memory that is open all the while has lost them, and says so.
        assert memory.count(filters={"user_id": "alice"}) == 18
        with open(done.sound[0], "rb") as lines:
            report = import_lines(memory._core.table, memory._core.pool, lines, pytest.fail)
        assert report.written == 2
        assert {one: memory.history(one) for one in ids} == before
    assert verify_table(db, "memories").healthy


# ── kills and locks ──


def test_rows_that_are_there_twice_after_a_kill_are_there_once_again(db):
    table = make(db, 40, 40)
    # What a repair leaves that is killed between its two commits.
    (first, _) = damaging.manifest(db).fragments
    table._handle.add(damaging.batch(0, 40))
    assert first.id == 0 and table.count() == 120
    done = repair_table(db, "t")
    assert done.healthy and done.removed == 40 and done.ids == () and table.count() == 80


def test_an_ingest_or_upkeep_under_way_is_waited_for_or_named(db):
    make(db, 10)
    with (
        lock.hold(lock.state_dir(db, "t"), "job"),
        pytest.raises(TableLocked, match="ingesting into table 't'"),
    ):
        repair_table(db, "t")


def test_a_durable_table_stays_so(db):
    table = make(db, 30, 30)
    table.set_durable(True)
    spoil_vector(db, "id-40")
    assert repair_table(db, "t").removed == 1
    assert Table.open(db, "t").durable


def test_a_table_that_is_not_there(db):
    make(db, 5)
    with pytest.raises(TableNotFound, match="no table 'other'"):
        repair_table(db, "other")

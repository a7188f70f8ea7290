"""Verification: every kind of damage, at many places, is seen; and nothing else is."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memworker import Memory
from memworker.errors import StoreError, TableNotFound
from memworker.store import Table, index, indices, journal, records, text as words
from memworker.store.damage import DamageKind
from memworker.store.lock import state_dir
from memworker.store.verify import verify_table
from tests.store import damaging
from tests.store.damaging import cut, data_files, flip, make, named, one_by_one, zero

HARMS = {
    "missing": Path.unlink,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: zero(path, path.stat().st_size // 3, 200),
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
}


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


def indexed(db, rows=600):
    table = make(db, rows)
    for column in ("id", "user_id"):
        indices.build_scalar(table._writes, column)
    index.build(table._writes)
    words.build(table._writes)
    return table


# ── what is sound is called healthy ──


def test_a_table_that_has_seen_everything_is_healthy(db):
    table = indexed(db)
    table.append(damaging.batch(600, 650))
    table.append(damaging.batch(40, 80), on_conflict="update")
    table.delete({"id": {"in": ["id-3", "id-620"]}})
    table.delete({"user_id": "user-4"})
    seen = []
    found = verify_table(db, "t", observer=lambda done, of: seen.append((done, of)))
    assert found.healthy and found.notes == (), (found.damages, found.notes)
    assert found.read == found.rows == table.count() and seen[-1] == (found.rows, found.rows)
    table.optimize()
    assert verify_table(db, "t").healthy
    assert verify_table(db, "t").version == table.version


def test_a_table_of_memories_is_healthy(db):
    with Memory(db, model="echo", workers=1) as memory:
        added = memory.add_batch([f"fact {n}" for n in range(30)], user_id="alice")
        ids = [one["id"] for one in added["results"]]
        memory.update(ids[0], "another fact")
        memory.delete(ids[1])
        memory.delete(ids[2], erase=True)
    assert verify_table(db, "memories").healthy


def test_keys_of_another_program_are_no_damage(db):
    table = Table.open_or_create(db, "t", damaging.SPACE)
    rows = damaging.batch(0, 50)
    place = rows.schema.get_field_index("dedup_key")
    others = pa.array([f"{n:032x}" for n in range(50)], pa.string())
    table.append(rows.set_column(place, rows.schema.field(place), others))
    found = verify_table(db, "t")
    assert found.healthy and "50 rows have keys of another program" in found.notes[0]


def test_vectors_that_are_not_of_length_1_are_no_damage(db):
    table = Table.open_or_create(db, "t", damaging.SPACE)
    vectors = np.random.default_rng(1).normal(size=(50, damaging.DIM)).astype(np.float32)
    texts = pa.array([f"text {n}" for n in range(50)], pa.string())
    table.append(records(None, texts, vectors))
    assert verify_table(db, "t").healthy


def test_a_version_that_is_cleaned_away_meanwhile_is_no_damage(db):
    table = make(db, *[20] * 8)
    stop = threading.Event()

    def write():
        start = 160
        while not stop.is_set():
            table.append(damaging.batch(start, start + 5))
            start += 5
            table.delete({"id": f"id-{start - 1}"})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            assert verify_table(db, "t").healthy
    finally:
        stop.set()
        writer.join()


def test_a_table_that_is_not_there(db):
    make(db, 5)
    with pytest.raises(TableNotFound, match="no table 'other'.*: t"):
        verify_table(db, "other")


# ── rows ──


@pytest.mark.parametrize("where", range(8))
def test_a_zeroed_block_names_the_rows_that_lie_in_it(db, where):
    make(db, 400, 100)
    path, whole = data_files(db)[0], one_by_one(db)
    size = path.stat().st_size
    zero(path, where * size // 8, 4096)
    found = verify_table(db, "t")
    after = one_by_one(db)
    hurt = {address for address in whole if after.get(address) != whole[address]}
    assert hurt and not found.healthy
    if found.read < found.rows:  # the footer: the file as a whole
        assert len(named(found.damages)) == 400
        return
    # What still looks like metadata is for the checksums.
    missed = hurt - named(found.damages)
    assert all(after[one]["metadata"] != whole[one]["metadata"] for one in missed)
    assert len(missed) <= 2 and named(found.damages) <= hurt
    assert all(d.path == f"data/{path.name}" for d in found.damages)
    told = {one for damage in found.damages for one in damage.ids}
    unreadable = {at for d in found.damages if d.column == "id" for run in d.rows for at in run}
    assert told >= {f"id-{at & 0xFFFFFFFF}" for at in named(found.damages) - unreadable}


@pytest.mark.parametrize("seed", range(2))
def test_after_one_verification_every_flipped_bit_is_seen(db, seed):
    make(db, 120)
    assert verify_table(db, "t").healthy
    path, whole = data_files(db)[0], one_by_one(db)
    kept, random = path.read_bytes(), np.random.default_rng(seed)
    for at in random.integers(0, len(kept), 12).tolist():
        flip(path, at, int(random.integers(8)))
        found, after = verify_table(db, "t"), one_by_one(db)
        hurt = {address for address in whole if after.get(address) != whole[address]}
        assert not found.healthy, at
        assert hurt <= named(found.damages), at
        # Where no row is hurt, the file is.
        assert hurt or named(found.damages, readable=True) or found.read == 0, at
        path.write_bytes(kept)
    assert verify_table(db, "t").healthy


def test_damage_in_several_files_and_columns_is_named_at_once(db):
    make(db, 200, 200, 200)
    first, second, third = data_files(db)
    whole = one_by_one(db)
    zero(first, 1_000, 200)
    flip(second, second.stat().st_size // 2, 6)
    third.unlink()
    found = verify_table(db, "t")
    assert {damage.path for damage in found.damages} >= {
        f"data/{path.name}" for path in (first, third)
    }
    assert (
        sum(damage.count for damage in found.damages if damage.path == f"data/{third.name}") == 200
    )
    assert named(found.damages) <= {
        address for address, row in one_by_one(db).items() if row != whole[address]
    }


def test_values_that_cannot_be_are_named(db):
    table = make(db, 60)
    rows = damaging.batch(60, 64)

    def with_column(name, values):
        place = rows.schema.get_field_index(name)
        return rows.set_column(place, rows.schema.field(place), values)

    vectors = np.zeros((4, damaging.DIM), np.float32)
    vectors[1:, 0] = (np.inf, 2.0, 1.0)
    flat = pa.array(vectors.reshape(-1))
    # Past our own checks, as another program might.
    table._handle.add(with_column("vector", pa.FixedSizeListArray.from_arrays(flat, damaging.DIM)))
    texts = rows["text"].to_pylist()
    texts[0] = texts[0] + "."
    rows = with_column("id", pa.array([f"x-{n}" for n in range(4)]))
    table._handle.add(with_column("text", pa.array(texts)))
    rows = damaging.batch(0, 1)
    table._handle.add(rows)
    table._handle.add(damaging.batch(1, 2).set_column(2, "text", pa.array(["other"])))
    other = damaging.batch(3, 4)
    table._handle.add(other.set_column(0, other.schema.field(0), pa.array(["id-2"])))
    # Of the damaged one of a pair it is known, so the other may stay: of id-1.
    told = {(d.column, d.why, d.ids) for d in verify_table(db, "t").damages}
    assert told == {
        ("vector", "the vector is zero", ("id-60",)),
        ("vector", "the vector holds NaN, infinity or a huge number", ("id-61",)),
        ("vector", "the vector's length is not 1, as that of the others is", ("id-62",)),
        ("text", "text, scopes and dedup_key do not belong together", ("x-0",)),
        ("text", "text, scopes and dedup_key do not belong together", ("id-1",)),
        # Alike, so that one of the two may go; of the other pair it cannot be told which.
        ("id", "another row has the same id", ("id-0", "id-2")),
        ("id", "another row has the same id", ("id-2",)),
    }


# ── files ──


@pytest.mark.parametrize("harm", ["missing", "cut", "empty", "zeroed", "flipped"])
def test_which_rows_are_deleted_cannot_be_told(db, harm):
    table = make(db, 100, 100)
    table.delete({"id": {"in": ["id-5", "id-7"]}})
    assert verify_table(db, "t").healthy
    (path,) = (damaging.folder(db) / "_deletions").iterdir()
    HARMS[harm](path)
    found = verify_table(db, "t")
    (damage,) = found.damages
    assert damage.kind is DamageKind.FILE and damage.path == f"_deletions/{path.name}"
    assert "deleted cannot be told" in damage.why and damage.count == 100
    # The other file's rows were looked at nevertheless.
    assert found.read == 100


@pytest.mark.parametrize("harm", ["missing", "zeroed", "flipped"])
def test_a_damaged_index_is_named(db, harm):
    indexed(db)
    assert verify_table(db, "t").healthy
    indices = damaging.manifest(db).indices
    assert len(indices) == 4
    for each in indices:
        paths = (damaging.folder(db) / each.folder).iterdir()
        # Missing the smallest, changed in the largest.
        path = sorted(paths, key=lambda one: one.stat().st_size)[0 if harm == "missing" else -1]
        kept = path.read_bytes()
        HARMS[harm](path)
        (damage,) = verify_table(db, "t").damages
        assert damage.kind is DamageKind.INDEX and each.name in damage.why, path
        path.write_bytes(kept)
    assert verify_table(db, "t").healthy


def test_an_index_that_misses_rows_is_noticed_by_asking(db):
    table = indexed(db)
    for each in damaging.manifest(db).indices:
        if each.name in ("id_idx", "user_id_idx"):
            path = damaging.folder(db) / each.folder / "page_data.lance"
            zero(path, path.stat().st_size // 3, path.stat().st_size // 8)
    found = verify_table(db, "t")
    assert {d.column for d in found.damages} == {"id", "user_id"}, found.damages
    assert table.count() == found.read
    assert all("does not find" in d.why or "cannot be read" in d.why for d in found.damages)


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_torn_newest_version(db, keep):
    make(db, 50, 50)
    path = damaging.newest_manifest(db)
    cut(path, keep)
    (damage,) = verify_table(db, "t").damages
    assert damage.kind is DamageKind.VERSION and damage.path == f"_versions/{path.name}"


def test_a_newest_version_that_is_gone(db):
    make(db, 50, 50)
    damaging.newest_manifest(db).unlink()
    (damage,) = verify_table(db, "t").damages
    assert damage.kind is DamageKind.VERSION and "version 3 was written, and is gone" in damage.why


def test_a_flipped_bit_in_the_newest_version(db):
    table = make(db, 50, 50)
    assert verify_table(db, "t").healthy
    path = damaging.newest_manifest(db)
    kept, times = path.read_bytes(), path.stat()
    for at in range(0, len(kept), 97):
        flip(path, at)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert any(d.kind is DamageKind.VERSION for d in verify_table(db, "t").damages), at
        path.write_bytes(kept)
    assert verify_table(db, "t").healthy and table.count() == 100


def test_a_version_of_an_earlier_number_after_a_rollback_is_no_damage(db):
    table = make(db, 50, 50)
    assert verify_table(db, "t").healthy
    damaging.newest_manifest(db).unlink()
    (damaging.folder(db) / "_versions/latest_version_hint.json").unlink()
    Table.open(db, "t").append(damaging.batch(200, 210))
    found = verify_table(db, "t")
    assert found.version == table.version == 3 and found.healthy and found.rows == 60


def test_rows_that_the_journal_knows_and_the_table_does_not(db):
    table = make(db, 50)
    with journal.Journal(state_dir(db, "t"), table.identity) as kept:
        kept.append(journal.Committed("r", journal.now(), table.identity, 7, 1, 1, 0, 0, 0))
    (damage,) = verify_table(db, "t").damages
    assert damage.kind is DamageKind.JOURNAL and "version 7 was committed" in damage.why


def test_files_of_no_version_are_noted(db):
    make(db, 20)
    (damaging.folder(db) / "data/stray.lance").write_bytes(b"x" * 10)
    found = verify_table(db, "t")
    assert found.healthy and found.notes[0].startswith("1 files (10 bytes) belong to no version")


def test_where_nothing_may_be_noted_it_is_said(db, monkeypatch):
    make(db, 20)
    shutil.rmtree(db / ".memworker")
    (db / ".memworker").write_text("a file")
    found = verify_table(db, "t")
    assert found.healthy and "checksums were not noted" in found.notes[0]


def test_a_damaged_note_of_checksums_costs_nothing(db):
    make(db, 20)
    assert verify_table(db, "t").healthy
    path = state_dir(db, "t") / "checksums"
    for at in range(0, path.stat().st_size, 61):
        kept = path.read_bytes()
        flip(path, at)
        assert verify_table(db, "t").healthy
        path.write_bytes(kept)
    path.write_bytes(b"")
    assert verify_table(db, "t").healthy


def test_a_damaged_page_is_told_as_an_error_of_ours(db):
    table = make(db, 400)
    zero(data_files(db)[0], 20_000)
    with pytest.raises(StoreError, match="table verify"):
        Table.open(db, "t").rows()
    assert table.version == 2

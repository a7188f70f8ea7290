"""Clean-ups: what goes, what stays, and nobody who reads or writes loses anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pytest

from memworker.errors import StoreError
from memworker.store import Table, manifest, readers
from memworker.store.cleanup import clean
from tests.store.helpers import SPACE, batch, index_scopes, numbered, texts_by_id, vector_of

ROOT = Path(__file__).parents[2]
NONE = timedelta(0)
FOLDERS = ("data", "_deletions", "_indices", "_transactions", "_versions")


@pytest.fixture
def table(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE)


def files(db):
    """List the files of a table's versions, but for the hint, which each writes as it likes."""
    home = db / "t.lance"
    found = (path for folder in FOLDERS for path in (home / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(home)) for path in found if path.name != manifest.HINT}


def cleaned(table, keep=NONE):
    with table.maintenance.hold():
        return clean(table._writes, keep)


def history(table, seed, steps=14):
    """Commit all kinds of things in an order that follows from the seed."""
    rng, size = np.random.default_rng(seed), 40
    table.append(numbered(0, size))
    for _ in range(steps):
        what = rng.integers(7)
        if what == 0:
            table.append(numbered(size, size + 5))
            size += 5
        elif what == 1:
            row = int(rng.integers(size))
            table.append(batch([(f"id-{row}", f"other {rng.integers(99)}")]), on_conflict="update")
        elif what == 2:
            table.delete({"id": f"id-{rng.integers(size)}"})
        elif what == 3:
            table.maintenance.ensure_index("text")
        elif what == 4:
            index_scopes(table)
        elif what == 5:
            table.optimize()
        else:
            with table.changing() as change:
                change.replace(numbered(0, 2))
                change.insert(numbered(size, size + 1))
            size += 1


@pytest.mark.parametrize("seed", range(4))
def test_what_is_deleted_is_what_lancedb_would_delete(table, tmp_path, seed):
    history(table, seed)
    # LanceDB compacts and indexes before it deletes: let there be nothing left to do.
    version = -1
    while version != table.version:
        version = table.version
        table.optimize()
    before = texts_by_id(table)
    shutil.copytree(table.db, tmp_path / "copy")
    theirs = lancedb.connect(tmp_path / "copy").open_table("t")
    theirs.optimize(cleanup_older_than=timedelta(milliseconds=1))
    done = cleaned(table)
    assert files(table.db) == files(tmp_path / "copy")
    assert done.versions and not done.kept and done.note is None
    assert texts_by_id(table) == texts_by_id(Table.open(table.db, "t")) == before
    assert cleaned(table) == type(done)()


def test_a_version_stays_for_so_long_after_the_next_one_came(table):
    for start in range(4):
        table.append(numbered(start, start + 1))
    hours = [5, 4, 3, 2, 1]
    paths = sorted(manifest.versions(table.db / "t.lance").items())
    for (_, path), ago in zip(paths, hours, strict=True):
        moment = time.time() - 3600 * ago
        os.utime(path, (moment, moment))
    done = cleaned(table, timedelta(minutes=150))
    # Version 3 was followed by another two hours ago.
    assert sorted(manifest.versions(table.db / "t.lance")) == [3, 4, 5]
    assert (done.versions, done.kept) == (2, 2)
    assert cleaned(table, timedelta(hours=9)).versions == 0


def test_a_long_reader_keeps_every_version_and_a_clean_up_says_so(table):
    table.append(numbered(0, 30_000))
    with closing(table.scan(columns=["id"])) as reading:
        first = next(reading).num_rows
        table.delete({"id": {"gte": "id-2"}})
        done = table.optimize(keep_versions=NONE)
        assert done.versions == 0 and "is being read as a whole" in done.note
        rows = first + sum(part.num_rows for part in reading)
    assert rows == 30_000
    assert table.optimize(keep_versions=NONE).kept == 0


def test_tagged_versions_stay(table):
    table.append(numbered(0, 5))
    table._handle.tags.create("mine", 2)
    table.append(numbered(5, 9))
    done = cleaned(table)
    assert (done.versions, done.kept) == (1, 1) and "version 2 is tagged" in done.note
    older = lancedb.connect(table.db).open_table("t")
    older.checkout("mine")
    assert older.count_rows() == 5
    table._handle.tags.delete("mine")
    assert cleaned(table).versions == 1


def test_nothing_goes_while_a_version_cannot_be_read(table):
    for start in range(3):
        table.append(numbered(start, start + 1))
    torn = manifest.manifest_path(table.db / "t.lance", 2)
    torn.write_bytes(torn.read_bytes()[:-9])
    done = cleaned(table)
    assert done.versions == 0 and "version 2 cannot be read" in done.note
    assert len(texts_by_id(Table.open(table.db, "t"))) == 3


def test_nothing_goes_while_the_newest_version_is_damaged(table):
    table.append(numbered(0, 50))
    table.append(numbered(50, 90))
    before = files(table.db)
    newest = manifest.read_manifest(table.db / "t.lance", table.version)
    part = table.db / "t.lance" / newest.fragments[0].files[0].path
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(StoreError, match="is damaged"):
        cleaned(table)
    assert files(table.db) == before


def test_a_clean_up_killed_half_way_is_ended_by_the_next(table):
    history(table, 7)
    table.optimize()
    before = texts_by_id(table)
    code = (
        "import sys; from datetime import timedelta; from memworker.store import Table\n"
        "Table.open(sys.argv[1], 't').optimize(keep_versions=timedelta(0))"
    )
    command = [sys.executable, "-c", code, table.db]
    env = os.environ | {"MEMWORKER_FAIL": "mid_clean:kill"}
    assert subprocess.run(command, cwd=ROOT, env=env).returncode == -9
    assert texts_by_id(Table.open(table.db, "t")) == before
    assert cleaned(table).versions
    parts = manifest.read_manifest(table.db / "t.lance", table.version)
    assert {name for name in files(table.db) if name.startswith("data/")} == set(parts.files)
    assert texts_by_id(table) == before


def test_who_lost_the_locks_deletes_nothing(table):
    table.append(numbered(0, 5))
    table.append(numbered(5, 9))
    before = files(table.db)

    take = table._lock.take

    def losing():
        shutil.rmtree(table.db / ".memworker")
        return take()

    table._lock.take = losing
    with pytest.raises(StoreError, match="lock was lost"), table.maintenance.hold():
        clean(table._writes, NONE)
    assert files(table.db) == before


def test_who_lost_the_commit_lock_commits_nothing(table):
    table.append(numbered(0, 5))
    with pytest.raises(StoreError, match="lock was lost"), table.changing() as change:
        change.insert(numbered(5, 6))
        shutil.rmtree(table.db / ".memworker")
    assert table.count() == 5
    assert table.append(numbered(5, 6)).written == 1


def test_a_read_is_asked_again_when_its_version_has_gone(table):
    table.append(numbered(0, 5))
    asked = []

    def read():
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError("lance error: Not found: db/t.lance/data/1.lance")
        return "found"

    assert readers.Readers(table.db, "t").ask(read) == "found"
    with pytest.raises(RuntimeError, match="other"):
        readers.Readers(table.db, "t").ask(raiser("other"))


def test_a_version_that_goes_between_its_number_and_its_opening_is_passed_over(table):
    table.append(numbered(0, 5))
    reader = Table.open(table.db, "t")
    versions = reader._versions
    connection = versions._connection

    class AtTheWorstMoment:
        def open_table(self, name, version):
            versions._connection = connection
            table.append(numbered(5, 6))
            table.optimize(keep_versions=NONE)
            return connection.open_table(name, version=version)

    versions._connection = AtTheWorstMoment()
    assert reader.search(vector_of("text 5"), limit=1)[0].id == "id-5"


def raiser(words):
    def read():
        raise RuntimeError(words)

    return read


def test_every_kind_of_read_lives_beside_clean_ups(table):
    """The files of the version that a handle has seen go, and then it reads."""
    table.append(numbered(0, 60))
    table.maintenance.ensure_index("text")
    reader, other = Table.open(table.db, "t"), Table.open(table.db, "t")
    for turn in range(3):
        for ask in (
            lambda: reader.search(vector_of("text 7"), limit=1)[0].id == "id-7",
            lambda: reader.search_many(np.stack([vector_of("text 7")] * 2))[1][0].id == "id-7",
            lambda: reader.search_text("7", limit=1)[0].id == "id-7",
            lambda: reader.rows({"id": "id-7"}).num_rows == 1,
            lambda: reader.count({"id": "id-7"}) == 1,
            lambda: reader.classify(["id-7"], numbered(7, 8)["dedup_key"]).tolist() == [1],
            lambda: sum(part.num_rows for part in reader.scan(columns=["id"])) == other.count(),
            lambda: reader.info().rows == other.count(),
            lambda: reader.maintenance.needs().rows == other.count(),
        ):
            assert ask()
            start = table.count()
            other.append(numbered(start, start + 1))
            other.optimize(keep_versions=NONE)
            assert ask(), turn

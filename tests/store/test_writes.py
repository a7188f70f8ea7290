"""A commit is believed when its files are whole: what was torn is taken back and written again."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from memworker import Memory
from memworker.errors import StoreError
from memworker.store import Table, compaction, validate
from memworker.store.durable import files_of
from memworker.store.lance import connect, open_table
from memworker.store.manifest import DATA, DELETIONS, INDICES, VERSIONS, read_manifest, versions
from memworker.store.writes import CameFirst, Writes
from tests.store.helpers import SPACE, batch, numbered, texts_by_id

TEXTS = {f"id-{i}": f"text {i}" for i in range(300)}


class Tearing:
    """A LanceDB handle after whose writes new files are cut off, as a lost last write leaves them.

    LanceDB itself then has said that the write succeeded, and has noticed nothing.
    """

    def __init__(self, handle, folder, kind: str, times: int) -> None:
        self._handle, self._folder, self._kind, self.times = handle, folder, kind, times

    def __getattr__(self, name):
        found = getattr(self._handle, name)
        if name in ("add", "delete", "update", "create_index", "optimize"):
            return lambda *given, **named: self._torn(lambda: found(*given, **named))
        if name == "merge_insert":
            return lambda on: _Merge(self, found(on))
        return found

    def _torn(self, write):
        before = set(self._files())
        result = write()
        new = sorted(set(self._files()) - before)
        if new and self.times:
            self.times -= 1
            for path in new:
                os.truncate(path, max(0, path.stat().st_size - 60))
        return result

    def _files(self):
        return (path for path in (self._folder / self._kind).rglob("*.*") if path.is_file())


class _Merge:
    def __init__(self, tearing: Tearing, builder) -> None:
        self._tearing, self._builder = tearing, builder

    def __getattr__(self, name):
        found = getattr(self._builder, name)
        if name == "execute":
            return lambda rows: self._tearing._torn(lambda: found(rows))
        return lambda *given, **named: _Merge(self._tearing, found(*given, **named))


@pytest.fixture
def torn(tmp_path):
    """Give a table of 300 rows whose next writes are torn: `torn(kind, times)`."""
    db = tmp_path / "db"
    Table.create(db, "t", SPACE).append(numbered(0, 300))

    def made(kind: str, times: int = 1) -> Table:
        connection = connect(db, writable=True)
        handle = open_table(connection, db, "t")
        made.tearing = Tearing(handle, db / "t.lance", kind, times)
        return Table(db, "t", connection, made.tearing)

    return made


def _index_texts(table):
    assert table.maintenance.ensure_index("text")


def _append(table):
    assert table.append(batch([("new", "a new text")])).written == 1
    return {"new": "a new text"}


def _update(table):
    rows = [("new", "a new text"), ("id-7", "another")]
    assert table.append(batch(rows), on_conflict="update").updated == 1
    return dict(rows)


def _insert(table):
    with table.changing() as change:
        change.insert(batch([("new", "a new text")]))
    return {"new": "a new text"}


def _replace(table):
    with table.changing() as change:
        change.replace(batch([("id-7", "another")]))
        change.insert(batch([("new", "a new text")]))
    return {"id-7": "another", "new": "a new text"}


def _set(table):
    with table.editing() as edit:
        assert edit.set({"id": {"in": ["id-3", "id-4"]}}, {"expires_at": None}) == 2
    return {}


def _delete(table):
    assert table.delete({"id": {"in": ["id-1", "id-2"]}}) == 2
    return {"id-1": None, "id-2": None}


def _delete_most(table):
    """Delete so many that the rows left out are kept as a bitmap."""
    gone = [f"id-{i}" for i in range(5, 295)]
    assert table.delete({"id": {"in": gone}}) == len(gone)
    return dict.fromkeys(gone)


WRITES = [_append, _update, _insert, _replace, _set, _delete, _delete_most]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", [DATA, DELETIONS, VERSIONS])
def test_a_torn_file_is_taken_back_and_written_again(torn, write, kind):
    table = torn(kind)
    changed = write(table)
    wanted = {i: t for i, t in (TEXTS | changed).items() if t is not None}
    assert texts_by_id(Table.open(table.db, "t")) == wanted
    # And the handle that wrote goes on.
    assert table.append(batch([("after", "goes on")])).written == 1
    assert texts_by_id(table) == wanted | {"after": "goes on"}


@pytest.mark.parametrize("write", [_append, _replace, _delete])
@pytest.mark.parametrize("kind", [DATA, DELETIONS, VERSIONS])
def test_a_disk_that_tears_every_file_is_an_error_and_the_rows_stay(torn, write, kind):
    table = torn(kind, times=99)
    if not {"_append": kind != DELETIONS, "_delete": kind != DATA}.get(write.__name__, True):
        pytest.skip("this write makes no such file")
    with pytest.raises(StoreError, match=r"nothing of this batch is committed|could not be taken"):
        write(table)
    assert texts_by_id(Table.open(table.db, "t")) == TEXTS


def test_nothing_that_another_program_committed_meanwhile_is_taken_back(torn, monkeypatch):
    table = torn(DATA)
    outside = open_table(connect(table.db, writable=True), table.db, "t")
    torn_once = torn.tearing._torn

    def and_then_another(write):
        result = torn_once(write)
        outside.add(batch([("outside", "theirs")]))
        monkeypatch.setattr(torn.tearing, "_torn", torn_once)
        return result

    monkeypatch.setattr(torn.tearing, "_torn", and_then_another)
    assert table.append(batch([("new", "a new text")])).written == 1
    assert texts_by_id(Table.open(table.db, "t")) == TEXTS | {
        "new": "a new text",
        "outside": "theirs",
    }


def test_a_torn_index_is_built_again(torn):
    table = torn(INDICES)
    assert table.maintenance.ensure_index("vector")
    vector = table.rows({"id": "id-5"})["vector"][0].values.to_numpy()
    assert table.search(vector, limit=1)[0].id == "id-5"


def test_an_index_that_is_torn_each_time_is_an_error_and_searches_go_on(torn):
    table = torn(INDICES, times=99)
    with pytest.raises(StoreError, match="taken back; the rows are as they were"):
        table.maintenance.ensure_index("vector")
    vector = table.rows({"id": "id-5"})["vector"][0].values.to_numpy()
    assert table.search(vector, limit=1)[0].id == "id-5"


def test_a_torn_compaction_loses_no_row(torn):
    table = torn(DATA, times=0)
    for i in range(300, 305):
        table.append(numbered(i, i + 1))
    torn.tearing.times = 1
    table.optimize(keep_versions=timedelta(0))
    assert texts_by_id(Table.open(table.db, "t")) == {f"id-{i}": f"text {i}" for i in range(305)}


def test_a_torn_compaction_is_taken_back_where_updates_came_first(torn, monkeypatch):
    table = torn(DATA, times=0)
    for i in range(300, 305):
        table.append(numbered(i, i + 1))
    # As a larger table is compacted: without the commit lock at first.
    monkeypatch.setattr(compaction, "_AT_ONCE_BYTES", -1)
    built, locked = Writes._built, []

    def first_conflicts(writes, doing, work):
        if not locked:
            locked.append(True)
            torn.tearing.times = 1
            raise CameFirst("updates of others came first")
        built(writes, doing, work)

    monkeypatch.setattr(Writes, "_built", first_conflicts)
    table.optimize(keep_versions=timedelta(0))
    assert torn.tearing.times == 0, "the compaction with the lock held was torn"
    assert texts_by_id(Table.open(table.db, "t")) == {f"id-{i}": f"text {i}" for i in range(305)}


# ── durability ──


class Disk:
    """Counts fsyncs by path, and lets the chosen ones fail."""

    def __init__(self, monkeypatch) -> None:
        self.synced: list[str] = []
        self.fail = lambda path: False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._called)

    def _called(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if self.fail(path):
            raise OSError(5, "Input/output error")
        self.synced.append(path)
        self._fsync(fd)


@pytest.fixture
def disk(monkeypatch):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs procfs to name what is synced")
    return Disk(monkeypatch)


@pytest.fixture
def durable(tmp_path):
    return Table.create(tmp_path / "db", "t", SPACE, durable=True)


def _unsynced(table, disk) -> set[str]:
    folder = table.db / "t.lance"
    newest = read_manifest(folder, Table.open(table.db, "t").version)
    return {str(folder / path) for path in files_of(folder, newest)} - set(disk.synced)


@pytest.mark.parametrize("write", [_append, *WRITES[2:]])
def test_every_commit_of_a_durable_table_is_forced_to_the_disk(tmp_path, disk, write):
    table = Table.create(tmp_path / "db", "t", SPACE, durable=True)
    table.append(numbered(0, 300))
    write(Table.open(table.db, "t"))
    assert not _unsynced(table, disk)


@pytest.mark.parametrize("write", [_append, _index_texts])
def test_a_read_that_fails_once_leaves_nothing_unforced(tmp_path, disk, write, monkeypatch):
    table = Table.create(tmp_path / "db", "t", SPACE, durable=True)
    table.append(numbered(0, 300))
    real, reads = validate.read_manifest, []

    def once(folder, version):
        # Of the commit, not of what was there before it.
        if version > seen and not reads:
            reads.append(version)
            raise OSError(5, "Input/output error", str(folder))
        return real(folder, version)

    seen = table.version
    monkeypatch.setattr(validate, "read_manifest", once)
    write(Table.open(table.db, "t"))
    assert reads and not _unsynced(table, disk)


def test_durability_is_the_tables_whoever_opens_it(durable, disk):
    assert Table.open(durable.db, "t").durable
    Table.open(durable.db, "t").append(numbered(0, 300))
    assert not _unsynced(durable, disk)
    other = Table.open(durable.db, "t")
    durable.set_durable(False)
    other.append(numbered(300, 301))
    assert not Table.open(durable.db, "t").durable
    assert _unsynced(durable, disk)
    other.set_durable(True)
    assert not _unsynced(durable, disk)


def test_optimising_a_durable_table_forces_the_new_files_before_the_old_ones_go(durable, disk):
    for i in range(5):
        durable.append(numbered(i, i + 1))
    old = set(disk.synced)
    durable.optimize(keep_versions=timedelta(0))
    assert not _unsynced(durable, disk)
    assert {path for path in set(disk.synced) - old if f"/{DATA}/" in path}


def test_what_an_fsync_failed_for_is_written_anew(durable, disk):
    failed = []

    def once(path: str) -> bool:
        if path.endswith(".lance") and os.path.isfile(path) and not failed:
            failed.append(path)
            return True
        return False

    disk.fail = once
    assert durable.append(numbered(0, 300)).written == 300
    assert failed
    folder = durable.db / "t.lance"
    current = {str(folder / path) for path in read_manifest(folder, durable.version).files}
    assert current and failed[0] not in current and current <= set(disk.synced)
    assert len(texts_by_id(Table.open(durable.db, "t"))) == 300


def test_a_disk_that_never_syncs_acknowledges_nothing(durable, disk):
    disk.fail = lambda path: path.endswith(".lance") and os.path.isfile(path)
    with pytest.raises(StoreError, match="could not be forced to the disk.*nothing of this batch"):
        durable.append(numbered(0, 300))
    disk.fail = lambda path: False
    assert texts_by_id(Table.open(durable.db, "t")) == {}
    assert durable.append(numbered(0, 300)).written == 300


def test_a_memory_makes_its_table_durable_and_obeys_one_that_is(tmp_path, disk):
    with Memory(tmp_path / "db", table="t", model="echo", workers=1, durable=True) as memory:
        memory.add("first", user_id="u")
    with Memory(tmp_path / "db", table="t", model="echo", workers=1) as memory:
        memory.add("second", user_id="u")
        memory.update(memory.get_all(filters={"user_id": "u"})["results"][0]["id"], "other")
    table = Table.open(tmp_path / "db", "t")
    assert table.durable and table.info().durable
    assert not _unsynced(table, disk)


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("part", [VERSIONS, DATA, "_transactions", INDICES])
def test_what_an_fsync_failed_for_in_a_build_is_built_anew(durable, disk, part, folders):
    for i in range(5):
        durable.append(numbered(60 * i, 60 * i + 60))
    folder = durable.db / "t.lance"
    failed: list[str] = []

    def once(path: str) -> bool:
        if f"/{part}" in path and os.path.isdir(path) == folders and not failed:
            failed.append(read_manifest(folder, max(versions(folder))).path)
            failed.append(os.path.relpath(path, folder))
            return True
        return False

    table = Table.open(durable.db, "t")
    table.append(numbered(300, 301))
    disk.fail = once
    if part == INDICES:
        table.maintenance.ensure_index("text")
    else:
        table.optimize(keep_versions=timedelta(days=1))
    assert failed
    newest = read_manifest(folder, Table.open(durable.db, "t").version)
    assert not set(failed).intersection(files_of(folder, newest))
    assert not _unsynced(durable, disk)
    assert len(texts_by_id(Table.open(durable.db, "t"))) == 301


def test_a_folder_that_cannot_be_forced_is_an_error_with_its_path(durable, disk):
    disk.fail = lambda path: path == str(durable.db)
    with pytest.raises(StoreError, match="db .*could not be forced to the disk"):
        Table.open(durable.db, "t").append(numbered(0, 3))
    disk.fail = lambda path: False
    assert Table.open(durable.db, "t").append(numbered(0, 3)).written == 3


@pytest.mark.parametrize("part", [DATA, VERSIONS])
def test_earlier_rows_that_cannot_be_forced_fail_a_commit_before_it_is_made(durable, disk, part):
    durable.append(numbered(0, 3))
    other = Table.open(durable.db, "t")
    disk.fail = lambda path: f"/{part}/" in path and os.path.isfile(path)
    with pytest.raises(StoreError, match=f"{part}/.* holds earlier rows.*Nothing of this batch"):
        other.append(numbered(3, 5))
    assert len(texts_by_id(Table.open(durable.db, "t"))) == 3
    disk.fail = lambda path: False
    assert other.append(numbered(3, 5)).written == 2
    assert not _unsynced(other, disk)

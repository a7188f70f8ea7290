"""Several processes, outside writers and broken disks, with real children."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import lancedb
import pytest

from memworker.errors import StoreError, StoreUnwritable, TableLocked
from memworker.store import Table, ensure_writable, lock
from tests.store.helpers import SPACE, batch, numbered, texts_by_id

ROOT = Path(__file__).parents[2]

APPENDER = """
import sys
from memworker.store import Table
from tests.store.helpers import SPACE, numbered
table = Table.open_or_create(sys.argv[1], "t", SPACE)
print("ready", flush=True)
sys.stdin.readline()
total = 0
for start in range(0, 400, 20):
    total += table.append(numbered(start, start + 20)).written
    total += table.append(numbered(start + 10, start + 30)).written
print(total, flush=True)
"""

HOLDER = """
import sys
from pathlib import Path
from memworker.store import lock
with lock.hold(lock.state_dir(Path(sys.argv[1]), "t"), "commit"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def child(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_appending_the_same_ids_write_each_once(tmp_path):
    with child(APPENDER, tmp_path) as one, child(APPENDER, tmp_path) as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("go\n")
            process.stdin.flush()
        written = [int(process.stdout.readline()) for process in (one, two)]
    assert sum(written) == 410
    assert texts_by_id(Table.open(tmp_path, "t")) == {f"id-{i}": f"text {i}" for i in range(410)}


def test_optimising_while_another_process_appends_loses_nothing(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    with child(APPENDER, tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            table.optimize()
        assert int(process.stdout.readline()) == 410
    assert texts_by_id(table) == {f"id-{i}": f"text {i}" for i in range(410)}
    assert table.append(numbered(0, 410)).duplicates == 410


def test_a_held_lock_names_its_holder_and_is_freed_by_a_kill(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    with child(HOLDER, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TableLocked, match=f"process {holder.pid} has held") as locked:
            table.append(numbered(0, 3), timeout_s=0.05)
        assert locked.value.pid == holder.pid
        assert table.count() == 0 and len(table.classify(["a"], numbered(0, 1)["dedup_key"])) == 1
        holder.kill()
        holder.wait()
        assert table.append(numbered(0, 3)).written == 3


class AtTheWorstMoment:
    """A handle whose `method` is preceded by an outside writer's commit, once."""

    def __init__(self, handle, method, outside):
        self._handle, self._method, self._outside = handle, method, outside

    def __getattr__(self, name):
        if name == self._method and self._outside:
            outside, self._outside = self._outside, None
            outside()
        return getattr(self._handle, name)


@pytest.mark.parametrize("policy", ["reject", "update"])
def test_an_outside_writer_between_look_and_add_doubles_nothing(tmp_path, policy):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(batch([("a", "one")]))
    theirs = lancedb.connect(tmp_path).open_table("t")
    appender = table._appender
    appender._handle = AtTheWorstMoment(table._handle, "add", lambda: theirs.add(numbered(0, 6)))
    done = table.append(numbered(3, 10), on_conflict=policy)
    assert (done.written, done.duplicates) == (4, 3)
    assert len(texts_by_id(table)) == 11
    assert table.append(numbered(0, 10)).duplicates == 10


def test_an_outside_writer_between_look_and_second_look_causes_a_merge(tmp_path):
    table = Table.create(tmp_path, "t", SPACE)
    theirs = lancedb.connect(tmp_path).open_table("t")
    appender = table._appender
    look = appender.plan

    def plan_then_outside_write(rows, policy):
        planned = look(rows, policy)
        appender.plan = look
        theirs.add(numbered(0, 6))
        return planned

    appender.plan = plan_then_outside_write
    appender._handle = AtTheWorstMoment(
        table._handle, "merge_insert", lambda: theirs.add(numbered(6, 8))
    )
    done = table.append(numbered(3, 10))
    assert (done.written, done.duplicates) == (2, 5)
    assert len(texts_by_id(table)) == 10


@pytest.mark.parametrize("make", [ensure_writable, lambda db: Table.create(db, "t", SPACE)])
def test_an_unwritable_directory_is_refused_before_any_work(tmp_path, make):
    # Permission bits do not bind root; a path under a file binds everyone.
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnwritable, match="Not a directory"):
        make(tmp_path / "file" / "db")
    assert (tmp_path / "file").read_text() == "x"


def test_ensure_writable_leaves_no_file(tmp_path):
    ensure_writable(tmp_path / "new" / "db")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of limited size can be mounted only by root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_and_the_table_goes_on_afterwards(small_disk):
    table = Table.create(small_disk, "t", SPACE)
    table.append(numbered(0, 10))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="space"), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreError, match="disk is full"):
        table.append(numbered(0, 2000))
    assert Table.open(small_disk, "t").count() == 10
    ballast.unlink()
    assert table.append(numbered(0, 20)).written == 10
    assert len(texts_by_id(Table.open(small_disk, "t"))) == 20


def test_the_lock_is_not_held_after_an_error(tmp_path):
    folder = lock.state_dir(tmp_path, "t")
    with pytest.raises(KeyError), lock.hold(folder, "commit"):
        raise KeyError
    with lock.hold(folder, "commit", timeout_s=0):
        pass

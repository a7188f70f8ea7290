"""Files of commits that did not come: they go, and never those of a commit under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from memworker.errors import TableLocked
from memworker.locks import LockKind
from memworker.store import Table, cleanup, compaction, manifest
from memworker.store.leftovers import leftovers
from memworker.store.verify import verify_table
from tests import PATIENCE_S
from tests.faults.harness import wait_for
from tests.store.helpers import SPACE, numbered, texts_by_id
from tests.store.test_upkeep import many

ROOT = Path(__file__).parents[2]
HOUR_S = 3600.0
ROWS = 20_000

COMPACT = """
from memworker.store import Table, compaction
table = Table.open(sys.argv[1], 't')
with table.maintenance.hold():
    compaction.compact(table._writes)
"""
INDEX = """
from memworker.store import Table
from tests.store.helpers import index_scopes
index_scopes(Table.open(sys.argv[1], 't'))
"""
APPEND = """
from memworker.store import Table
from tests.store.test_upkeep import many
Table.open(sys.argv[1], 't').append(many(20_000, 120_000))
"""


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    for start in range(0, ROWS, 1_000):
        table.append(many(start, start + 1_000))
    return table


def home(table):
    return table.db / "t.lance"


def left(table):
    named = set()
    for version in manifest.versions(home(table)):
        named.update(manifest.read_manifest(home(table), version).parts)
    return {str(each.path.relative_to(home(table))) for each in leftovers(home(table), named)}


def grow_old(table):
    """Let an hour pass for all files, by the file system's clock."""
    for path in home(table).rglob("*"):
        os.utime(path, (time.time() - HOUR_S,) * 2)


def cleaned(table, keep=timedelta(0)):
    with table.maintenance.hold():
        return cleanup.clean(table._writes, keep)


def all_is_gone(table, rows):
    assert left(table) == set() and len(texts_by_id(Table.open(table.db, "t"))) == rows
    found = verify_table(table.db, "t")
    assert found.healthy and not [note for note in found.notes if "no version" in note]


@contextmanager
def caught_at(table, script, how):
    """Give a process that got a signal once it had begun to write."""
    before = {path for path in home(table).rglob("*")}
    command = [sys.executable, "-c", "import sys" + script, table.db]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not {path for path in home(table).rglob("*")} - before:
                assert process.poll() is None, "it ended without a write"
                assert time.monotonic() < deadline
            process.send_signal(how)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("script", [COMPACT, INDEX, APPEND], ids=["compact", "index", "append"])
def test_what_a_killed_writer_left_goes(table, script):
    while not left(table):
        with caught_at(table, script, signal.SIGKILL) as process:
            assert process.wait() == -signal.SIGKILL
    rows = table.count()
    young = left(table)
    assert any("belong to no version" in note for note in verify_table(table.db, "t").notes)
    assert cleaned(table).leftovers == 0 and left(table) == young
    grow_old(table)
    done = cleaned(table)
    assert done.leftovers >= len(young) and done.bytes >= done.leftover_bytes
    all_is_gone(table, rows)


def test_what_compactions_left_that_met_conflicts_goes(table, monkeypatch):
    # As a larger table is compacted: without the commit lock.
    monkeypatch.setattr(compaction, "_AT_ONCE_BYTES", -1)
    table.maintenance.ensure_index("text")
    stop, other = threading.Event(), Table.open(table.db, "t")

    def change_rows():
        row = 0
        while not stop.is_set():
            with other.changing() as change:
                change.replace(numbered(row % 50, row % 50 + 1))
            row += 1

    changing = threading.Thread(target=change_rows)
    changing.start()
    deadline = time.monotonic() + PATIENCE_S
    try:
        # Mostly the first meets one: what it compacts, and the small fragments of the changes.
        while not left(table):
            assert time.monotonic() < deadline
            with table.maintenance.hold():
                compaction.compact(table._writes)
    finally:
        stop.set()
        changing.join()
    there = left(table)
    grow_old(table)
    report = table.optimize(keep_versions=timedelta(minutes=10))
    assert report.leftovers >= len(there)
    assert f"{report.leftovers} files" in report.steps[-1].what
    all_is_gone(table, ROWS)


CONFLICTS = """
import threading
from memworker.store import Table
from tests.store.helpers import numbered
table, other, stop = Table.open(sys.argv[1], 't'), Table.open(sys.argv[1], 't'), threading.Event()
def change_rows():
    row = 0
    while not stop.is_set():
        with other.changing() as change:
            change.replace(numbered(row % 50, row % 50 + 1))
        row += 1
changing = threading.Thread(target=change_rows)
changing.start()
try:
    while True:
        table._handle.optimize()
except RuntimeError as error:
    assert 'onflict' in str(error), error
finally:
    stop.set()
    changing.join()
"""


def test_lancedb_says_nothing_of_a_conflict_on_stderr(table):
    """We tell of it, where it matters."""
    table.maintenance.ensure_index("text")
    command = [sys.executable, "-c", "import sys" + CONFLICTS, table.db]
    env = {name: value for name, value in os.environ.items() if name != "LANCEDB_LOG"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_write_that_was_taken_back_left_goes(table):
    before = left(table)
    version = table.version
    table.append(numbered(70_000, 70_010))
    # As after a torn manifest was put aside (see writes.py).
    manifest.manifest_path(home(table), table.version).unlink()
    (home(table) / "_versions" / manifest.HINT).unlink()
    opened = Table.open(table.db, "t")
    assert opened.version == version and len(left(opened) - before) >= 1
    grow_old(opened)
    assert cleaned(opened).leftovers >= 1
    all_is_gone(opened, ROWS)


def test_files_of_a_version_that_is_known_and_missing_stay(table):
    table.append(numbered(70_000, 70_010))
    moved = manifest.manifest_path(home(table), table.version)
    aside = moved.rename(table.db / "aside")
    opened = Table.open(table.db, "t")
    there = left(opened)
    assert there
    grow_old(opened)
    done = cleaned(opened)
    # LanceDB's own note of the newest version tells of it.
    assert done.leftovers == 0 and "is missing" in done.note and left(opened) == there
    aside.rename(moved)
    assert Table.open(table.db, "t").count() == ROWS + 10


def test_files_of_a_writer_that_is_stopped_stay_however_old_they_look(table):
    with caught_at(table, COMPACT, signal.SIGSTOP) as process:
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        there = {path for path in home(table).rglob("*")}
        grow_old(table)
        with (
            pytest.raises(TableLocked, match=str(process.pid)),
            table.maintenance.hold(timeout_s=0.2),
        ):
            pass
        assert table.maintenance.tend().step is None
        assert {path for path in home(table).rglob("*")} == there
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE_S) == 0
    assert verify_table(table.db, "t").healthy and table.count() == ROWS


def test_a_lease_proves_nothing_so_leftovers_stay_and_are_told(table, monkeypatch):
    (home(table) / "data" / "made-by-nobody.lance").write_bytes(b"rows")
    (home(table) / "notes.txt").write_text("mine")
    grow_old(table)
    monkeypatch.setattr(cleanup, "kind_in", lambda folder: LockKind.LEASE)
    done = cleaned(table)
    assert done.leftovers == 0 and "1 files that no version names stay" in done.note
    monkeypatch.undo()
    assert cleaned(table).leftovers == 1 and (home(table) / "notes.txt").exists()


def test_a_child_that_outlives_its_parent_keeps_leftovers(table):
    """As one does that was stopped when its parent was killed, which had the locks."""
    (home(table) / "data" / "made-by-it.lance").write_bytes(b"rows")
    grow_old(table)
    request = json.dumps([os.getpid(), str(table.db), "t", "Compaction", {}])
    command = [sys.executable, "-c", "from memworker.store import apart\napart.main()"]
    env = os.environ | {"MEMWORKER_FAIL": "apart_before:pause"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE) as child:
        try:
            child.stdin.write(request.encode() + b"\n")
            child.stdin.flush()
            wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
            done = cleaned(table)
        finally:
            child.kill()
    assert done.leftovers == 0 and "is still at work" in done.note
    assert cleaned(table).leftovers == 1


def test_versions_of_an_unknown_kind_keep_everything(table):
    (home(table) / "data" / "of-it.lance").write_bytes(b"rows")
    detached = manifest.manifest_path(home(table), table.version)
    (detached.parent / "d99.manifest").write_bytes(detached.read_bytes())
    grow_old(table)
    done = cleaned(table)
    assert done.versions == done.leftovers == 0 and "unknown here" in done.note

"""Calls that do not come back: an error that says what is true, and nobody writes beside them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from memworker.errors import StoreError, TableLocked
from memworker.store import Table, apart, bounded
from memworker.store.writes import Landed
from tests import PATIENCE_S
from tests.preload import preload  # noqa: F401
from tests.store.helpers import SPACE, numbered, texts_by_id

ROOT = Path(__file__).parents[2]
APPENDS = """
import sys
from memworker.store import Table, bounded
from tests.store.helpers import numbered
bounded.LOOK_S, bounded.LOOKS = 0.2, 5
table = Table.open(sys.argv[1], 't')
open(sys.argv[2], 'w').close()
try:
    table.append(numbered(5, 10))
except Exception as error:
    print(error, flush=True)
sys.stdin.readline()
"""
SEARCHES = """
import sys
import numpy as np
from memworker.store import Table, bounded
from tests.store.helpers import SPACE
bounded.LOOK_S, bounded.LOOKS = 0.2, 5
table = Table.open(sys.argv[1], 't')
open(sys.argv[2], 'w').close()
try:
    table.search(np.ones(SPACE.dim, np.float32))
except Exception as error:
    print(error, flush=True)
print(table.count(), flush=True)
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(bounded, "LOOK_S", 0.05)
    monkeypatch.setattr(bounded, "LOOKS", 4)


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(numbered(0, 5))
    return table


def test_a_write_that_hangs_in_the_system_is_left_and_keeps_the_lock(table, tmp_path, preload):  # noqa: F811
    """LanceDB's thread hangs where it would give the version its name."""
    armed = tmp_path / "armed"
    env = os.environ | preload("hang", HANG_BEFORE=".manifest", HANG_ARMED=str(armed))
    command = [sys.executable, "-c", APPENDS, table.db, armed]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipes) as process:
        try:
            said = process.stdout.readline()
            assert "does not come back" in said and "is not known" in said
            with pytest.raises(TableLocked, match=str(process.pid)):
                table.append(numbered(20, 21), timeout_s=0.1)
            assert table.count() == 5
            process.stdin.write("\n")
            process.stdin.flush()
            # A thread that hangs keeps nobody from ending.
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert table.append(numbered(5, 10)).written == 5
    assert len(texts_by_id(table)) == 10


def test_a_search_that_hangs_in_the_system_is_left(table, tmp_path, preload):  # noqa: F811
    """LanceDB's thread hangs where it would open the file of the rows."""
    armed = tmp_path / "armed"
    env = os.environ | preload("hang", HANG_OPEN=".lance/data/", HANG_ARMED=str(armed))
    command = [sys.executable, "-c", SEARCHES, table.db, armed]
    given = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": PATIENCE_S}
    done = subprocess.run(command, **given)
    said, count = done.stdout.splitlines()
    assert "reading table 't': LanceDB does not come back, nothing has moved for" in said
    # What needs no file that hangs is answered, and a thread that hangs keeps nobody from ending.
    assert count == "5" and done.returncode == 0, done.stderr


def test_a_read_gets_its_answer_its_error_and_its_interrupt():
    assert bounded.read(partial(int, "7")) == 7
    with pytest.raises(ValueError, match="on purpose"):
        bounded.read(partial(int, "on purpose"))
    release = threading.Event()
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        bounded.read(partial(release.wait, PATIENCE_S))
    release.set()
    timer.join()


def test_a_read_that_has_no_thread_is_made_all_the_same(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", refused)
    bounded._helpers.cache_clear()
    done = []
    assert bounded.read(partial(int, "7")) == 7
    bounded.beside(partial(done.append, 1), partial(done.append, 2))
    assert done == [1, 2]


def refused(_):
    raise RuntimeError("can't start new thread")


def test_two_things_go_on_beside_each_other_and_the_first_error_counts():
    met = threading.Barrier(2, timeout=PATIENCE_S)
    bounded.beside(met.wait, met.wait)
    with pytest.raises(ValueError, match="first"):
        bounded.beside(partial(int, "first"), partial(int, "second"))
    with pytest.raises(ValueError, match="second"):
        bounded.beside(met.reset, partial(int, "second"))


def test_an_interrupt_waits_for_the_first_of_two():
    begun, release, ended = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        release.wait(PATIENCE_S)
        ended.append(True)
        raise ValueError("nobody's while one is interrupted")

    def second():
        begun.wait(PATIENCE_S)
        threading.Timer(0.1, release.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded.beside(first, second)
    assert ended


def hanging(release):
    def write():
        release.wait(PATIENCE_S)
        return Landed(2, 0)

    return write


def test_every_kind_of_write_is_bounded(table):
    writes, release = table._writes, threading.Event()
    seen = table.version
    with pytest.raises(StoreError, match="one: LanceDB does not come back, nothing has moved for"):
        writes.commit("one", hanging(release), lambda _: None, seen=seen)
    with pytest.raises(StoreError, match="two: LanceDB does not come back"):
        writes.build("two", hanging(release))

    def fails():
        # Then it is looked whether that came, which may write again.
        table._handle.add(numbered(7, 8))
        raise RuntimeError("after its commit")

    with pytest.raises(StoreError, match="three: LanceDB does not come back"):
        writes.commit("three", fails, lambda _: hanging(release)(), seen=seen)
    release.set()


def test_what_gets_on_is_waited_for(tmp_path):
    release, path = threading.Event(), tmp_path / "file"

    def write():
        for size in range(1, 40):
            path.write_bytes(b"." * size)
            if release.wait(0.04):
                break
        return "done"

    left = []
    moved = bounded.files_below(tmp_path)
    assert bounded.run(write, moved, partial(left.append, 1)) == "done" and not left


def test_what_fails_is_raised_and_the_next_write_runs(tmp_path):
    moved = bounded.files_below(tmp_path)
    for _ in range(3):
        with pytest.raises(ValueError, match="on purpose"):
            bounded.run(partial(int, "on purpose"), moved, lambda: None)
        assert bounded.run(partial(int, "7"), moved, lambda: None) == 7
    names = [one.name for one in threading.enumerate()]
    assert names.count("memworker-lance") <= 1 + 3


def test_a_child_that_does_nothing_any_more_is_ended(table, monkeypatch):
    monkeypatch.setenv("MEMWORKER_FAIL", "apart_before:pause")
    # It starts slowly where many run, which is work.
    monkeypatch.setattr(bounded, "LOOK_S", 1.0)
    work = apart.Compaction()
    with pytest.raises(apart.ChildEnded, match="did nothing any more"):
        apart.run(work, table.db, "t", table.db / ".memworker/t")


def test_a_second_interrupt_keeps_the_lock_while_the_write_goes_on(table):
    script = """
import sys, threading
from memworker.store import Table
from memworker.store.writes import Landed
table = Table.open(sys.argv[1], 't')
def write():
    print('writing', flush=True)
    threading.Event().wait()
try:
    with table.changing() as change:
        change._commit(write, lambda _: None)
except KeyboardInterrupt:
    print('interrupted', flush=True)
sys.stdin.readline()
"""
    command = [sys.executable, "-c", script, table.db]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            assert process.stdout.readline() == "writing\n"
            # The first is kept until the write has ended; of the others, one is raised.
            while not select.select([process.stdout], [], [], 0.2)[0]:
                process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            with pytest.raises(TableLocked, match=str(process.pid)):
                table.append(numbered(20, 21), timeout_s=0.1)
        finally:
            process.kill()
    assert table.append(numbered(5, 6)).written == 1

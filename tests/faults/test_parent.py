"""The parent is killed: what is committed is whole, and the same command finishes the job."""

from __future__ import annotations

import signal
import sys

import psutil
import pytest

from memworker.store import journal
from tests import PATIENCE_S
from tests.faults.harness import (
    arguments,
    ingest,
    memworker,
    must_be_part,
    resume,
    stored,
    versions,
    wait_for,
    write_input,
)
from tests.leftovers import shared_memory, shared_memory_left

IN_INFERENCE = """
import sys
from memworker import ingest
from tests.faults.loaders import Endless
rows = [{"text": "one"}, {"text": "another"}]
ingest(rows, db=sys.argv[1], table="t", model=Endless(sys.argv[2]), workers=2)
"""


@pytest.mark.parametrize("with_tracker", [False, True], ids=["14-parent", "17-and-tracker"])
def test_14_17_workers_end_with_their_killed_parent(db, tmp_path, with_tracker):
    before = shared_memory()
    program = (sys.executable, "-c", IN_INFERENCE, str(db), str(tmp_path / "begun"))
    with memworker(program=program) as run:
        wait_for(lambda: (tmp_path / "begun").exists())
        workers = run.workers()
        assert len(workers) == 2
        trackers = [
            child
            for child in psutil.Process(run.pid).children()
            if "resource_tracker" in " ".join(child.cmdline())
        ]
        for process in trackers if with_tracker else ():
            process.kill()
        run.kill()
        psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert not [worker for worker in workers if worker.is_running()]
    assert not shared_memory_left(before)


@pytest.mark.parametrize(
    "point", ["before_add:kill", "before_add:soon@2", "after_add:kill@2", "before_commit:exit@3"]
)
def test_15_parent_killed_in_mid_commit(job, db, point):
    path, oracle = job
    assert ingest(path, db, fail=point).code in (-signal.SIGKILL, 70)
    there = must_be_part(db, oracle)
    again = resume(path, db)
    assert (again.written, again.duplicates) == (len(oracle) - there, there)
    assert stored(db) == oracle
    assert "resumes the run of" in again.notes[0] or not there


def test_15_parent_killed_while_a_data_file_grows(job, db):
    """The kill comes from outside, while the data file of a commit is being written."""
    path, oracle = job
    data = db / "t.lance/data"

    def written():
        return sum(p.stat().st_size for p in data.glob("*")) if data.is_dir() else 0

    with memworker(*arguments(path, db)) as run:
        wait_for(lambda: written() > 3_000_000 or run.process.poll() is not None)
        run.kill()
    must_be_part(db, oracle)
    resume(path, db)
    assert stored(db) == oracle


@pytest.mark.parametrize("point", ["after_commit:kill@2", "mid_journal:kill@3"])
def test_16_parent_killed_after_the_commit_before_the_journal(job, db, point):
    path, oracle = job
    assert ingest(path, db, fail=point).code == -signal.SIGKILL
    there = must_be_part(db, oracle)
    noted = journal.read(db / ".memworker/t")
    behind = max((r.position for r in noted if isinstance(r, journal.Committed)), default=0)
    assert 0 <= behind < there
    assert resume(path, db).written == len(oracle) - there
    assert stored(db) == oracle


def test_16_killed_after_the_last_commit_replays_nothing(tmp_path, db):
    oracle = write_input(tmp_path / "small.jsonl", 500)
    assert ingest(tmp_path / "small.jsonl", db, fail="after_commit:kill").code == -signal.SIGKILL
    newest = versions(db)[0]
    again = resume(tmp_path / "small.jsonl", db)
    assert (again.written, again.duplicates, again.workers) == (0, 500, 0)
    assert stored(db) == oracle and versions(db)[0] == newest


def test_a_kill_between_making_the_table_and_the_first_row(tmp_path, db):
    oracle = write_input(tmp_path / "small.jsonl", 500)
    assert ingest(tmp_path / "small.jsonl", db, fail="after_create:kill").code == -signal.SIGKILL
    assert resume(tmp_path / "small.jsonl", db).written == 500
    assert stored(db) == oracle

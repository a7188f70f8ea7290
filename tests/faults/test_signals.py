"""Signals: the first drains and commits, the second ends at once; both can be resumed."""

from __future__ import annotations

import _thread
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memworker import ingest as memworker_ingest
from memworker.errors import StoreError
from memworker.ingestion import Stop
from memworker.store import Table
from tests import PATIENCE_S
from tests.faults.harness import (
    arguments,
    memworker,
    must_be_part,
    resume,
    stored,
    wait_for,
    write_input,
)
from tests.faults.loaders import Gated


def rows_in(db):
    try:
        return Table.open(db, "t").count()
    except StoreError:
        return 0  # it is not made yet, or is being made


@pytest.fixture
def half_read(job, db):
    """A run that has been given its whole input but for the end, and has committed some of it."""
    path, oracle = job
    with memworker(*arguments("-", db), stdin=subprocess.PIPE) as run:
        run.process.stdin.write(path.read_text())
        run.process.stdin.flush()
        wait_for(lambda: rows_in(db))
        yield run, path, oracle


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["18-ctrl-c", "20-sigterm", "21-sighup"],
)
def test_18_20_21_one_signal_drains_and_commits(half_read, db, number, code):
    run, path, oracle = half_read
    run.signal(number)
    run.process.wait(PATIENCE_S)  # with standard input still open
    done = run.wait()
    assert done.code == code
    there = must_be_part(db, oracle)
    assert there == done.report["written"] > 0 and done.report["interrupted"]
    assert "finishing what is in flight" in done.err
    assert f"{there:,} rows of this run are committed. Run the same command again" in done.err
    assert resume(path, db).written == len(oracle) - there
    assert stored(db) == oracle


SECOND = """
import sys
from memworker.cli import signals
from memworker import ingest
from tests.faults.loaders import Gated
signals.install()
with signals.drained() as stop:
    ingest([{"id": "a", "text": "one"}], db=sys.argv[1], table="t",
           model=Gated(*sys.argv[2:]), workers=1, stop=stop)
"""


def test_19_a_second_signal_ends_at_once(db, tmp_path):
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    program = (sys.executable, "-c", SECOND, str(db), str(gate), str(begun))
    with memworker(program=program) as run:
        wait_for(begun.exists)
        run.signal(signal.SIGTERM)
        # The word of the first signal, read as it comes.
        assert "finishing" in run.process.stderr.readline()
        # Close together they count as one, as GNU timeout sends it: so until the second counts.
        wait_for(lambda: ended(run))
        done = run.wait()
    # The shard has not ended, and the grace has not passed: then it would say something else.
    assert done.code == 143 and "stopped at once" in done.err
    gate.touch()
    loader = Gated(str(gate), str(begun))
    rows = [{"id": "a", "text": "one"}]
    report = memworker_ingest(rows, db=db, table="t", model=loader, workers=1)
    assert report.written == 1 and Table.open(db, "t").count() == 1


def ended(run):
    run.signal(signal.SIGTERM)
    return run.process.poll() is not None


def test_18_a_signal_before_there_is_anything_to_drain(db):
    with memworker(*arguments("-", db), stdin=subprocess.PIPE) as run:
        wait_for(lambda: handles(run.pid, signal.SIGALRM))
        run.signal(signal.SIGINT)
        done = run.wait()
    assert done.code == 130 and "Run the same command again" in done.err
    assert not db.exists()


AT_ONCE = """
import os, signal
from memworker.cli import main, signals
install = signals.install
signals.install = lambda: (install(), os.kill(os.getpid(), signal.SIGINT))
main.run()
"""


def test_18_a_signal_as_soon_as_there_is_a_handler():
    with memworker("--version", program=(sys.executable, "-c", AT_ONCE)) as run:
        done = run.wait()
    assert done.code == 130 and "Run the same command again" in done.err
    assert "Traceback" not in done.err


def handles(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (number - 1) & 1


def test_18_the_grace_is_bounded(db, tmp_path):
    """A shard that does not end within the grace is left for the next run."""
    stop = Stop(grace_s=0.2)
    rows = [{"id": str(i), "text": f"text {i}"} for i in range(50)]
    loader = Gated(str(tmp_path / "gate"), str(tmp_path / "begun"))
    watcher = threading.Thread(
        target=lambda: (wait_for(lambda: (tmp_path / "begun").exists()), stop.set())
    )
    watcher.start()
    report = memworker_ingest(rows, db=db, table="t", model=loader, workers=1, stop=stop)
    watcher.join()
    assert (report.interrupted, report.written) == (True, 0)
    (tmp_path / "gate").touch()
    again = memworker_ingest(rows, db=db, table="t", model=loader, workers=1)
    assert (again.interrupted, again.written) == (False, 50)


def test_18_keyboard_interrupt_in_python_commits_and_is_raised(db, tmp_path):
    """Without the command line nobody installs a handler."""
    oracle = write_input(tmp_path / "in.jsonl", 9000)
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    gate = threading.Event()

    def endless():
        yield from rows
        _thread.interrupt_main()
        gate.wait(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        memworker_ingest(endless(), db=db, table="t", model="echo", workers=1)
    gate.set()
    must_be_part(db, oracle)
    again = memworker_ingest(rows, db=db, table="t", model="echo", workers=1)
    assert again.written + again.duplicates == 9000 and "was interrupted" in again.notes[0]
    assert stored(db) == oracle


def test_21_closed_stdout(db, tmp_path):
    oracle = write_input(tmp_path / "in.jsonl", 300)
    with memworker(*arguments(tmp_path / "in.jsonl", db)) as run:
        run.process.stdout.close()
        assert run.process.wait(PATIENCE_S) == 1
        assert "standard output was closed" in run.process.stderr.read()
    assert stored(db) == oracle

"""Processes whose clocks are days apart on one table, in the middle of everything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from memworker.errors import TableLocked
from memworker.store import Table, clock
from tests.faults.harness import wait_for
from tests.preload import preload  # noqa: F401 - a fixture
from tests.store.helpers import SPACE, numbered, texts_by_id

ROOT = Path(__file__).parents[2]
DAY_S = 86_400
TEN_DAYS = {"ahead": str(10 * DAY_S), "behind": str(-10 * DAY_S)}

SETTING = """
import select, sys, threading
from datetime import timedelta
from memworker.errors import StoreError
from memworker.store import Table
from tests.store.helpers import SPACE, numbered, vector_of
table = Table.open(sys.argv[1], "t")
def optimise():
    try:
        table.optimize(keep_versions=timedelta(0))
        return 1, 0
    except StoreError as error:
        assert "days ahead" in str(error), error
        return 0, 1
print("ready", flush=True)
"""

# Writes, reads and optimises at the same time until it is told to end; says what it did.
ALL_AT_ONCE = """
first, told, failed = int(sys.argv[2]), threading.Event(), []
rows = optimised = refused = 0

def write():
    global rows
    mine = Table.open(sys.argv[1], "t")
    while not told.is_set():
        mine.append(numbered(first + rows, first + rows + 3))
        rows += 3

def tend():
    global optimised, refused
    while True:
        done, not_done = optimise()
        optimised, refused = optimised + done, refused + not_done
        if told.wait(0.05):
            return

def read():
    mine, seen = Table.open(sys.argv[1], "t"), 0
    ways = [
        lambda: mine.search(vector_of("text 7"), limit=3),
        lambda: mine.search_many([vector_of("text 7")] * 3, limit=3),
        lambda: mine.search_hybrid("7", vector_of("text 7"), limit=3),
        lambda: mine.rows(columns=["id", "text"], limit=50),
        lambda: mine.count(),
        lambda: mine.classify(["id-7"], numbered(7, 8)["dedup_key"]),
        lambda: Table.open(sys.argv[1], "t").version,
        mine.info,
        mine.maintenance.needs,
    ]
    while not told.is_set():
        for ask in ways:
            ask()
        there = sum(batch.num_rows for batch in mine.scan(columns=["id"]))
        assert there >= seen >= 0, (there, seen)
        seen = there

def kept_going(work):
    try:
        work()
    except BaseException as error:
        failed.append(error)
        told.set()

threads = [threading.Thread(target=kept_going, args=(work,)) for work in (write, tend, read)]
for thread in threads:
    thread.start()
sys.stdin.readline()
told.set()
for thread in threads:
    thread.join()
for error in failed:
    raise error
print(rows, optimised, refused)
"""


class Process:
    def __init__(self, popen):
        self.popen, self.pid = popen, popen.pid

    def ended(self):
        """Tell it to end; return the numbers that it says."""
        self.go_on()
        said = self.popen.stdout.read()
        assert self.popen.wait(60) == 0
        return [int(number) for number in said.split()]

    def go_on(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def wait_until_stopped(self):
        wait_for(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)


@contextmanager
def process(script, db, *arguments, env=None):
    command = [sys.executable, "-c", SETTING + script, str(db), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | (env or {}), **pipes) as popen:
        try:
            assert popen.stdout.readline() == "ready\n"
            yield Process(popen)
        finally:
            popen.kill()


@pytest.fixture
def db(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(numbered(0, 300))
    table.maintenance.ensure_index("text")
    return table.db


def clock_of(preload, which):  # noqa: F811
    return preload("clock", CLOCK_AHEAD_S=TEN_DAYS[which]) if which in TEN_DAYS else {}


def test_53_54_writers_readers_and_optimisers_days_apart_that_keep_no_version(preload, db):  # noqa: F811
    clocks = ["right", "ahead", "behind"]
    with ExitStack() as stack:
        each = [
            stack.enter_context(process(ALL_AT_ONCE, db, 1000 + 1_000_000 * at, env=env))
            for at, env in enumerate(clock_of(preload, which) for which in clocks)
        ]
        table = Table.open(db, "t")
        wait_for(lambda: table.count() >= 300 + 150, timeout_s=60)
        right, ahead, behind = (one.ended() for one in each)
    assert right[1] and behind[1] and ahead[2]
    assert not (right[2] or behind[2] or ahead[1])
    expected = {f"id-{i}" for i in range(300)}
    for at, (rows, _, _) in enumerate((right, ahead, behind)):
        expected |= {f"id-{1000 + 1_000_000 * at + i}" for i in range(rows)}
    assert set(texts_by_id(Table.open(db, "t"))) == expected


OURS = "table.append(numbered(5000, 5010))"
THEIRS = "import lancedb; lancedb.connect(sys.argv[1]).open_table('t').add(numbered(5000, 5010))"


@contextmanager
def stopped_writer(preload, db, writing):  # noqa: F811
    """Give a writer that was stopped between writing its file and committing it."""
    armed = db / "armed"
    env = preload("stop", STOP_BEFORE=".manifest", STOP_ARMED=str(armed))
    with process(f"sys.stdin.readline(); {writing}; print(10)", db, env=env) as writer:
        armed.touch()
        writer.go_on()
        writer.wait_until_stopped()
        yield writer


@pytest.mark.parametrize("writing", [OURS, THEIRS], ids=["ours", "theirs"])
def test_53_what_a_stopped_writer_has_written_stays(preload, db, writing):  # noqa: F811
    """However old its file looks. One of ours is waited for; LanceDB's own take no lock."""
    table = Table.open(db, "t")
    take = table._lock.take
    table._lock.take = lambda: take(0.2)
    with stopped_writer(preload, db, writing) as writer:
        data = set((db / "t.lance/data").iterdir())
        if writing == OURS:
            with pytest.raises(TableLocked, match=f"process {writer.pid}"):
                table.optimize(keep_versions=timedelta(0))
        else:
            table.optimize(keep_versions=timedelta(minutes=5))
        script = "print(*optimise())"
        with process(script, db, env=clock_of(preload, "ahead")) as optimiser:
            assert optimiser.ended() == [0, 1]
        assert data <= set((db / "t.lance/data").iterdir())
        os.kill(writer.pid, signal.SIGCONT)
        assert writer.ended() == [10]
    assert len(texts_by_id(Table.open(db, "t"))) == 310


def test_53_how_far_ahead_is_measured_by_a_file(preload, tmp_path):  # noqa: F811
    code = (
        "import sys; from pathlib import Path; from memworker.store import clock\n"
        "for seconds in sys.argv[2:]:\n"
        "    Path(sys.argv[1], 'ahead').write_text(seconds)\n"
        "    print(round(clock.ahead_s(Path(sys.argv[1]))), clock.now(Path(sys.argv[1])))"
    )
    env = os.environ | preload("clock", CLOCK_FILE=str(tmp_path / "ahead"))
    jumps = [0, 10 * DAY_S, -10 * DAY_S]
    command = [sys.executable, "-c", code, tmp_path, *map(str, jumps)]
    began = clock.now(tmp_path)
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    for line, jump in zip(said.stdout.splitlines(), jumps, strict=True):
        ahead, now = line.split()
        assert abs(int(ahead) - jump) < 60
        assert 0 <= float(now) - began < 60


def test_53_a_version_is_not_old_because_its_writers_clock_was(preload, db):  # noqa: F811
    script = "sys.stdin.readline(); [table.append(numbered(i, i + 1)) for i in range(400, 405)]"
    with process(script, db, env=clock_of(preload, "behind")) as writer:
        writer.ended()
    table = Table.open(db, "t")
    before = table.version
    done = table.optimize(keep_versions=timedelta(minutes=30))
    assert done.versions == 0 and done.kept >= before - 1
    assert table.count() == 305

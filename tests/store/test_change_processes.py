"""Changes of several processes at once, and of processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memworker.store import Table
from tests import PATIENCE_S
from tests.store.helpers import SPACE, batch, index_scopes, numbered, texts_by_id

ROOT = Path(__file__).parents[2]
KEYS, ROUNDS = 8, 40

# Adds one to a row's number, or writes the row: right only if nobody writes in between.
COUNTER = f"""
import sys
from memworker.store import Table
from tests.store.helpers import batch
table = Table.open(sys.argv[1], "t")
print("ready", flush=True)
sys.stdin.readline()
for step in range({ROUNDS}):
    keys = [f"k{{(step + i) % {KEYS}}}" for i in range(2)]
    with table.changing() as change:
        found = change.find("id", keys, columns=["id", "text"]).to_pylist()
        there = {{row["id"]: int(row["text"]) for row in found}}
        for key in keys:
            rows = batch([(key, str(there.get(key, 0) + 1))])
            (change.replace if key in there else change.insert)(rows)
print("done", flush=True)
"""

KILLED = """
import sys
from memworker.store import Table
from tests.store.helpers import batch
table = Table.open(sys.argv[1], "t")
with table.changing() as change:
    change.replace(batch([("id-1", "changed 1"), ("id-2", "changed 2")]))
    change.insert(batch([(f"new-{i}", f"new {i}") for i in range(200)]))
"""


def start(script, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("indexed", [False, True])
def test_two_processes_look_up_and_write_in_turn_while_a_third_tends(tmp_path, indexed):
    table = Table.create(tmp_path, "t", SPACE)
    if indexed:
        index_scopes(table)
    with start(COUNTER, tmp_path) as one, start(COUNTER, tmp_path) as two:
        try:
            for process in (one, two):
                assert process.stdout.readline() == "ready\n"
            for process in (one, two):
                process.stdin.write("go\n")
                process.stdin.flush()
            while one.poll() is None or two.poll() is None:
                table.maintenance.tend()
                table.optimize()
            assert [p.stdout.readline() for p in (one, two)] == ["done\n"] * 2
        finally:
            one.kill()
            two.kill()
    counted = {key: int(text) for key, text in texts_by_id(table).items()}
    assert counted == {f"k{i}": 2 * 2 * ROUNDS // KEYS for i in range(KEYS)}


OLD = {f"id-{i}": f"text {i}" for i in range(5)}
NEW = (
    OLD | {"id-1": "changed 1", "id-2": "changed 2"} | {f"new-{i}": f"new {i}" for i in range(200)}
)


@pytest.mark.parametrize(
    ("point", "outcomes"),
    [("before_add:kill", [OLD]), ("after_add:kill", [NEW]), ("before_add:soon", [OLD, NEW])],
)
def test_a_change_that_is_killed_is_there_wholly_or_not_at_all(tmp_path, point, outcomes):
    table = Table.create(tmp_path, "t", SPACE)
    table.append(numbered(0, 5))
    with start(KILLED, tmp_path, MEMWORKER_FAIL=point) as process:
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode in {-signal.SIGKILL, 0 if point.endswith("soon") else -signal.SIGKILL}
    assert texts_by_id(table) in outcomes
    # The lock went with its holder.
    with table.changing(timeout_s=5) as change:
        change.insert(batch([("after", "x")]))
    assert "after" in texts_by_id(table)

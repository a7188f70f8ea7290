"""LanceDB's temporary files: beside the table, and gone after a kill when somebody comes next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memworker.store import Table, VectorSpace, records, spill
from tests.faults.harness import wait_for
from tests.store.helpers import SPACE, numbered

ROOT = Path(__file__).parents[2]

# Builds indices over and over, so that a kill meets one being built.
BUILDER = """
import sys
from memworker.store import Table, index
table = Table.open(sys.argv[1], "t")
print("ready", flush=True)
while True:
    with table.maintenance.hold():
        index.build(table._writes)
"""


def spilled(db):
    folder = db / ".memworker" / "t" / spill.FOLDER
    return [path for path in folder.rglob("*") if not path.name.startswith("locking-")]


def test_what_a_kill_leaves_of_an_index_is_cleared_at_the_next_start(tmp_path):
    db, temporary = tmp_path / "db", tmp_path / "tmp"
    temporary.mkdir()
    table = Table.create(db, "t", VectorSpace("m", "fp32", 256, 32, "f"))
    ids = pa.array([f"id-{i}" for i in range(20_000)])
    vectors = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    table.append(records(ids, ids, vectors))
    env = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", BUILDER, str(db)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as builder:
        try:
            builder.stdout.readline()
            wait_for(lambda: any("shuffle" in path.name for path in spilled(db)))
        finally:
            builder.kill()
    assert list(temporary.iterdir()) == []
    assert spilled(db)
    Table.open(db, "t")
    assert spilled(db) == []


def test_the_variable_is_as_it_was_for_python_and_its_children(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(numbered(0, 30))
    seen = []

    def child():
        done = subprocess.run(["sh", "-c", "echo $TMPDIR"], capture_output=True, text=True)
        return done.stdout.strip()

    with spill.spilling_beside(tmp_path / "db/.memworker/t"):
        seen.append(child())
        assert os.environ["TMPDIR"] == str(tmp_path)
        with spill.spilling_beside(tmp_path / "other"):
            assert child() == seen[0]
        assert child() == seen[0]
    assert seen[0].startswith(str(tmp_path / "db/.memworker/t/tmp/"))
    assert child() == str(tmp_path)
    assert spilled(tmp_path / "db") == []


def test_a_merge_leaves_nothing_anywhere(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    table = Table.create(tmp_path / "db", "t", SPACE)
    table.append(numbered(0, 30))
    before = temporary.stat().st_mtime_ns
    with table.changing() as change:
        change.replace(numbered(3, 5))
    assert temporary.stat().st_mtime_ns == before
    assert spilled(tmp_path / "db") == []


@pytest.mark.parametrize("place", ["file", "nowhere/at/all"])
def test_without_a_place_beside_the_table_the_write_goes_on(tmp_path, place):
    (tmp_path / "file").write_text("x")
    with spill.spilling_beside(tmp_path / place):
        pass

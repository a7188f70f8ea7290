"""Indices of large tables, built by a process of their own: the same, and nothing left over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from memworker.errors import StoreError
from memworker.store import Table, VectorSpace, apart, compaction, index, records, spill
from memworker.store.verify import verify_table
from tests.faults.harness import wait_for

ROOT = Path(__file__).parents[2]
DIM = 1024
ROWS = apart.APART_BYTES // (4 * DIM) + 1000
DRAW = np.random.default_rng(0)
VECTORS = DRAW.normal(size=(ROWS, DIM)).astype(np.float32)

# Says so when it ends by an interrupt; builds until then.
BUILDER = """
import sys
from memworker.store import Table, index
table = Table.open(sys.argv[1], "t")
try:
    while True:
        with table.maintenance.hold():
            index.build(table._writes)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def made(db, vectors):
    table = Table.create(db, "t", VectorSpace("m", "fp32", 256, DIM, "f"))
    names = pa.array([f"word{i} of many" for i in range(len(vectors))])
    table.append(records(names, names, vectors))
    return table


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    db = tmp_path_factory.mktemp("large") / "db"
    made(db, VECTORS)
    return db


@pytest.fixture
def db(large, tmp_path):
    # Files of rows never change, so that a copy may share them.
    return Path(shutil.copytree(large, tmp_path / "db", copy_function=os.link))


def build(table):
    with table.maintenance.hold():
        index.build(table._writes)


def children(pid=None):
    return psutil.Process(pid).children(recursive=True)


def left_over(db):
    folder = db / ".memworker/t" / spill.FOLDER
    return [path for path in folder.rglob("*") if not path.name.startswith("locking-")]


def test_it_is_the_index_that_this_process_would_have_built(db, large, tmp_path):
    here = Table.open(shutil.copytree(large, tmp_path / "here"), "t")
    apart.IndexBuild("vector", index.INDEX_NAME, "IvfSq", {"distance_type": "cosine"}).do(
        here._handle
    )
    table = Table.open(db, "t")
    assert table.maintenance.ensure_index("vector")
    (there,), (ours,) = table.info().indices, here.info().indices
    assert there == ours
    assert there.unindexed_rows == 0
    for row in range(0, ROWS, ROWS // 20):
        near = VECTORS[row] + DRAW.normal(size=DIM).astype(np.float32) / 10
        found = [(hit.id, round(hit.score, 5)) for hit in table.search(near)]
        assert found == [(hit.id, round(hit.score, 5)) for hit in here.search(near)]
        assert found[0][0] == f"word{row} of many"
    assert left_over(db) == []


def test_words_and_compaction_too(db):
    table = Table.open(db, "t")
    words = apart.IndexBuild(
        "text", "text_idx", "FTS", {"base_tokenizer": "icu/split"}, replaces=False
    )
    for _ in range(2):  # the second time it is there
        apart.run(words, db, "t", db / ".memworker/t")
    assert [hit.id for hit in table.search_text("word77")] == ["word77 of many"]
    fresh = pa.array(["one more"])
    table.append(records(fresh, fresh, VECTORS[:1] + 1))
    compaction.compact(table._writes)
    assert [each.unindexed_rows for each in table.info().indices] == [0]
    assert [hit.id for hit in table.search_text("one more")] == ["one more"]


@pytest.mark.parametrize("point", ["apart_before", "apart_after"])
def test_a_child_that_is_killed_is_told_and_the_table_is_whole(db, monkeypatch, point):
    table, before = Table.open(db, "t"), children()
    monkeypatch.setenv("MEMWORKER_FAIL", f"{point}:kill")
    with pytest.raises(
        StoreError, match=r"indexing .* failed: .*\(pid \d+\) was killed by SIGKILL"
    ):
        build(table)
    assert children() == before
    assert left_over(db) == []
    monkeypatch.delenv("MEMWORKER_FAIL")
    # Killed after its commit, it has left an index, which is as good as any.
    assert len(table.info().indices) == (point == "apart_after")
    assert table.count() == ROWS
    assert verify_table(db, "t").healthy


def test_what_cannot_be_started_is_told_with_its_last_words(db, monkeypatch):
    table = Table.open(db, "t")
    monkeypatch.setenv("MEMWORKER_FAIL", "no such thing")
    with pytest.raises(StoreError, match="ended with exit status 1, after: .*MEMWORKER_FAIL"):
        build(table)


def test_an_error_in_the_child_is_the_error_here(db, tmp_path):
    small = made(tmp_path / "small", VECTORS[:2])
    work = apart.IndexBuild("vector", "vector_idx", "IvfSq", {"distance_type": "no such distance"})
    told = []
    for table in (small, Table.open(db, "t")):
        with pytest.raises(StoreError) as raised:
            table._writes.build("indexing", work)
        told.append((str(raised.value), type(raised.value.__cause__).__name__))
    assert told[0] == told[1]
    assert "no such distance" in told[0][0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_ends_the_parent_ends_the_child(db, number):
    command = [sys.executable, "-c", BUILDER, str(db)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as builder:
        try:
            # In the middle of the work: what it sorts lies there.
            wait_for(lambda: any("shuffle" in path.name for path in left_over(db)))
            (child,) = children(builder.pid)
            builder.send_signal(number)
            wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
            said = builder.stdout.read()
        finally:
            builder.kill()
    assert said == (b"interrupted\n" if number == signal.SIGINT else b"")
    table = Table.open(db, "t")
    assert left_over(db) == []
    assert table.count() == ROWS

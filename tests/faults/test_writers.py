"""Several processes on one database: each row once, nobody waits without end."""

from __future__ import annotations

import json
import signal
import subprocess
import threading

import lancedb
import pyarrow as pa
import pytest

from memworker.errors import TableLocked
from memworker.store import Table
from tests.faults.harness import (
    arguments,
    memworker,
    resume,
    stored,
    wait_for,
    write_input,
)


@pytest.fixture
def at_work(tmp_path, db):
    """An ingest that waits for more input, and holds the job lock."""
    with memworker(*arguments("-", db), stdin=subprocess.PIPE) as run:
        run.process.stdin.write(json.dumps({"id": "a", "text": "one"}) + "\n")
        run.process.stdin.flush()
        lock = db / ".memworker/t/job.lock"
        wait_for(lambda: lock.exists() and lock.read_text())
        yield run


def test_30_a_second_ingest_exits_and_names_the_holder(at_work, tmp_path, db):
    write_input(tmp_path / "in.jsonl", 10)
    with memworker(*arguments(tmp_path / "in.jsonl", db)) as second:
        done = second.wait()
    assert done.code == 1
    assert f"process {at_work.pid} is ingesting into table 't'" in done.err and "--wait" in done.err
    with pytest.raises(TableLocked) as locked:
        resume(tmp_path / "in.jsonl", db)
    assert locked.value.pid == at_work.pid
    other = resume(tmp_path / "in.jsonl", db, table="other")
    assert other.written == 10


def test_30_a_second_ingest_waits_if_asked_to(at_work, tmp_path, db):
    write_input(tmp_path / "in.jsonl", 10)
    with memworker(*arguments(tmp_path / "in.jsonl", db, "--wait", "60")) as second:
        wait_for(lambda: (db / ".memworker/t/job.lock").exists())
        assert at_work.wait().code == 0  # which closes its standard input
        done = second.wait()
    assert done.code == 0 and done.report["written"] == 10
    assert len(stored(db)) == 11


def test_31_another_writer_adds_the_same_ids(job, db):
    path, oracle = job
    some = dict(list(oracle.items())[:9000])
    with memworker(*arguments(path, db), fail="before_add:pause") as run:
        run.wait_stopped()
        table = lancedb.connect(db).open_table("t")
        schema, n = table.schema, len(some)
        lengths = [float(len(text.encode())) for text in some.values()]
        now = pa.scalar(0, pa.timestamp("us", tz="UTC"))
        filled = {
            "id": list(some),
            "dedup_key": ["0" * 32] * n,
            "text": list(some.values()),
            "vector": [[1.0, length, *([0.0] * 382)] for length in lengths],
            **{name: [""] * n for name in ("user_id", "agent_id", "run_id")},
            **{name: pa.repeat(now, n) for name in ("created_at", "updated_at")},
        }
        columns = [
            pa.nulls(n, field.type)
            if field.name not in filled
            else pa.array(filled[field.name], field.type)
            if isinstance(filled[field.name], list)
            else filled[field.name]
            for field in schema
        ]
        table.add(pa.Table.from_arrays(columns, schema=schema))
        run.signal(signal.SIGCONT)
        done = run.wait()
    assert done.code in (0, 3), done.err
    report = done.report
    assert report["written"] == len(oracle) - len(some)
    assert report["duplicates"] + report["conflicts"] == len(some)
    assert stored(db) == oracle


def test_32_optimise_during_ingest(job, db):
    path, oracle = job
    with memworker(*arguments(path, db, "--limit", "9000")) as first:
        assert first.wait().code == 0
    # It ends when its input does, and so not before the table was optimised a few times.
    with memworker(*arguments("-", db), stdin=subprocess.PIPE) as run:
        run.process.stdin.write(path.read_text())
        run.process.stdin.flush()
        table = Table.open(db, "t")
        for _ in range(3):
            table.optimize()
        run.process.stdin.close()
        run.process.stdin = None
        while run.process.poll() is None:
            table.optimize()
        done = run.wait()
    assert done.code == 0, done.err
    assert stored(db) == oracle


def test_47_two_ingests_on_one_database(tmp_path, db):
    oracles = [write_input(tmp_path / f"{i}.jsonl", 5000, text=f"of {i}") for i in range(2)]
    runs = [memworker(*arguments(tmp_path / f"{i}.jsonl", db, table=f"t{i}")) for i in range(2)]
    with runs[0] as one, runs[1] as two:
        assert [one.wait().code, two.wait().code] == [0, 0]
    assert [stored(db, f"t{i}") for i in range(2)] == oracles


def test_47_an_ingest_and_another_writer_of_ours_on_one_table(job, db):
    path, oracle = job
    with memworker(*arguments(path, db)) as run:
        wait_for(lambda: (db / "t.lance/_versions").is_dir())
        stop, turns = threading.Event(), []

        def append_again():
            table = Table.open(db, "t")
            batch = table.rows(limit=100)
            while not stop.is_set() and batch.num_rows:
                turns.append(table.append(batch).written)

        wait_for(lambda: Table.open(db, "t").count())
        other = threading.Thread(target=append_again)
        other.start()
        done = run.wait()
        stop.set()
        other.join()
    assert done.code == 0 and sum(turns) == 0
    assert stored(db) == oracle

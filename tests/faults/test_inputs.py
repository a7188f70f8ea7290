"""Inputs, tables and models that are not what they were."""

from __future__ import annotations

import json
import os

import pytest

from memworker import errors, ingest as run_ingest
from memworker.ingestion.runs import list_runs
from memworker.pool.echo import EchoLoader
from memworker.store import Table
from tests.faults.harness import arguments, ingest, memworker, resume, stored, write_input
from tests.models.tiny import make_bert


def test_39_40_damaged_weights_are_refused(tmp_path, db):
    folder = make_bert(tmp_path / "model")
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "w1 w2"}) + "\n")
    cache = {"MEMWORKER_CACHE": str(tmp_path / "cache")}
    with memworker(*arguments(path, db, model=folder), env=cache) as run:
        assert run.wait().code == 0
    (weights,) = (tmp_path / "cache").rglob("*.bin")
    weights.chmod(0o600)
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    for damaged in (bytes(flipped), whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        with memworker(*arguments(path, db, model=folder), env=cache) as run:
            done = run.wait()
        assert done.code == 1 and weights.name in done.err and "Traceback" not in done.err
    assert Table.open(db, "t").count() == 1


def test_41_a_table_of_another_model_is_refused_before_any_work(tmp_path, db):
    oracle = write_input(tmp_path / "in.jsonl", 10)
    resume(tmp_path / "in.jsonl", db)
    version = Table.open(db, "t").version
    with pytest.raises(errors.TableMismatch, match="384"):
        run_ingest([tmp_path / "in.jsonl"], db=db, table="t", model=EchoLoader(dim=16))
    assert Table.open(db, "t").version == version and stored(db) == oracle
    assert len(list_runs(db)) == 1


def test_42_an_edited_input_is_noticed(tmp_path, db):
    path = tmp_path / "in.jsonl"
    write_input(path, 50)
    assert resume(path, db).notes == ()
    assert resume(path, db).notes == ()
    oracle = write_input(path, 60)
    (note,) = resume(path, db).notes
    assert "edited since the run of" in note and "bytes" in note and str(path) in note
    assert stored(db) == oracle
    swapped = path.read_text().replace("text 7 ", "text 8 ")
    path.write_text(swapped)
    done = ingest(path, db)
    assert done.code == 3 and "other content of the same size" in done.err
    assert done.report["conflicts"] == 1 and stored(db) == oracle
    os.utime(path, ns=(1, 1))
    assert any("was written to since" in note for note in resume(path, db).notes)
    path.unlink()
    write_input(tmp_path / "other.jsonl", 60)
    assert resume(tmp_path / "other.jsonl", db).notes == ()  # another job


def test_42_an_input_edited_while_it_is_read_is_noticed(tmp_path, db):
    path = tmp_path / "in.jsonl"
    write_input(path, 5000)
    with memworker(*arguments(path, db), fail="before_commit:pause") as run:
        run.wait_stopped()
        with path.open("a") as file:
            file.write('{"id": "late", "text": "late"}\n')
        run.signal(18)  # SIGCONT
        done = run.wait()
    assert "edited while it was read" in done.err
    assert resume(path, db).written == 5001 - done.report["written"]


def test_45_a_dropped_table_starts_afresh(tmp_path, db):
    import lancedb

    path = tmp_path / "in.jsonl"
    oracle = write_input(path, 500)
    resume(path, db)
    identity = Table.open(db, "t").identity
    lancedb.connect(db).drop_table("t")
    assert resume(path, db).written == 500
    assert stored(db) == oracle and Table.open(db, "t").identity != identity
    assert [run.written for run in list_runs(db)] == [500]


def test_jobs_tell_what_was_done_and_what_is_unfinished(tmp_path, db):
    path = tmp_path / "in.jsonl"
    write_input(path, 300)
    ingest(path, db, fail="after_journal:kill")
    resume(path, db)
    with pytest.raises(errors.RowRejected):
        path.write_text("{broken\n")
        resume(path, db, on_error="stop")
    write_input(path, 300)
    with memworker("jobs", "--db", db, "--json") as run:
        listed = run.wait().report["jobs"]
    assert [job["outcome"] for job in listed] == ["killed", "finished", "failed"]
    assert [job["unfinished"] for job in listed] == [True, False, True]
    assert [job["written"] for job in listed] == [300, 0, 0]
    assert "RowRejected" in listed[2]["why"] and listed[0]["inputs"] == [str(path)]
    with memworker("jobs", "--db", db, "--table", "none") as run:
        assert "no ingest has been noted" in run.wait().out

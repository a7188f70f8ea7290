"""Full and read-only disks, torn files, few file descriptors, little shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from memworker import ingest as run_ingest
from memworker.errors import StoreError, StoreUnwritable
from memworker.ingestion.runs import list_runs
from memworker.store import Table, journal
from memworker.store.repair import repair_table
from tests.faults import harness
from tests.faults.harness import (
    arguments,
    ingest,
    memworker,
    must_be_part,
    resume,
    stored,
    versions,
    write_input,
)

LINUX = Path("/proc/self/status").exists()


def fill(folder):
    """Write until not a byte more fits; give the file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
    return ballast


def test_22_disk_full_while_writing_data(job, small_disk):
    path, oracle = job
    with small_disk(20) as disk:
        db = disk / "db"
        done = ingest(path, db)
        assert done.code == 1 and "disk is full" in done.err and "run the same command" in done.err
        assert "Traceback" not in done.err
        there = must_be_part(db, oracle)
        assert 0 < there < len(oracle)
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        assert resume(path, db).written == len(oracle) - there
        assert stored(db) == oracle


def test_23_disk_full_while_writing_the_journal(job, small_disk):
    path, oracle = job
    with small_disk(60) as disk:
        db = disk / "db"
        with memworker(*arguments(path, db), fail="after_commit:pause@2") as run:
            run.wait_stopped()
            there = must_be_part(db, oracle)
            kept = db / ".memworker/t" / journal.FILE
            # A file system hands out pages: without this the next line would still fit.
            with kept.open("ab") as file:
                file.write(b"#" * (-kept.stat().st_size % 4096 - 1) + b"\n")
            ballast = fill(disk)
            run.signal(harness.signal.SIGCONT)
            done = run.wait()
        assert done.code == 1 and "journal.jsonl cannot be written: No space left" in done.err
        assert done.out == ""
        assert must_be_part(db, oracle) == there
        ballast.unlink()
        assert resume(path, db).written == len(oracle) - there
        assert stored(db) == oracle


def test_24_shared_memory_of_1_mb(tmp_path, db):
    if not harness.may_mount():
        pytest.skip("needs the right to mount a file system (root)")
    oracle = write_input(tmp_path / "in.jsonl", 3000)
    little = ("unshare", "-m", "sh", "-c")
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    with memworker(*arguments(tmp_path / "in.jsonl", db), prefix=(*little, script, "sh")) as run:
        done = run.wait()
    assert done.code == 0, done.err
    assert stored(db) == oracle


def test_26_file_descriptors_run_out(tmp_path, db):
    write_input(tmp_path / "in.jsonl", 10)
    few = ("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    given = arguments(tmp_path / "in.jsonl", db)
    given[given.index("--workers") + 1] = "40"
    with memworker(*given, prefix=few) as run:
        done = run.wait()
    assert done.code == 1 and "Traceback" not in done.err
    assert re.search(r"open files|file descriptors", done.err), done.err


def test_27_read_only_table_directory(tmp_path, small_disk):
    oracle = write_input(tmp_path / "in.jsonl", 100)
    with small_disk(20) as disk:
        resume(tmp_path / "in.jsonl", disk / "db")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreUnwritable, match="Read-only file system"):
            # A model that is not there: the directory is looked at before.
            run_ingest([tmp_path / "in.jsonl"], db=disk / "db", table="t", model="no-such-model")
        assert stored(disk / "db") == oracle
        assert [run.outcome for run in list_runs(disk / "db")] == ["finished"]


def test_27_only_the_tables_own_folder_is_read_only(tmp_path, db):
    write_input(tmp_path / "in.jsonl", 100)
    resume(tmp_path / "in.jsonl", db)
    if not harness.may_mount():
        pytest.skip("needs the right to mount a file system (root)")
    data = db / "t.lance/data"
    script = f'mount --bind {data} {data} && mount -o remount,ro,bind {data} && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, "sh")
    given = arguments(tmp_path / "in.jsonl", db, model="no-such-model")
    with memworker(*given, prefix=prefix) as run:
        done = run.wait()
    assert done.code == 1 and "cannot write to the table's directory" in done.err


@pytest.mark.parametrize("keep", [0, 0.5], ids=["zero-byte", "half"])
def test_28_torn_newest_manifest(job, db, keep):
    path, oracle = job
    # Killed before it was noted, as a power loss may have it.
    assert ingest(path, db, fail="after_commit:kill@2").code < 0
    newest = versions(db)[0]
    newest.write_bytes(newest.read_bytes()[: int(newest.stat().st_size * keep)])
    with pytest.raises(StoreError, match="table repair|failed"):
        Table.open(db, "t")
    assert "memworker table repair" in ingest(path, db).err or keep
    with memworker("table", "repair", "--db", db, "--table", "t", "--json") as run:
        done = run.wait().report
    assert done["version"] == done["journalled"] and not done["lost"]
    assert len(done["damaged"]) == 1
    there = must_be_part(db, oracle)
    assert there == done["rows"] > 0
    assert resume(path, db).written == len(oracle) - there
    assert stored(db) == oracle
    assert repair_table(db, "t").damaged == ()


def test_28_a_journalled_version_that_is_torn_is_told(tmp_path, db):
    for start in (0, 100):
        write_input(tmp_path / "in.jsonl", 100, start)
        resume(tmp_path / "in.jsonl", db)
    versions(db)[0].write_bytes(b"")
    done = repair_table(db, "t")
    assert done.lost and done.rows == 100 and Path(done.moved_to).is_dir()
    assert resume(tmp_path / "in.jsonl", db).written == 100
    assert len(stored(db)) == 200


def test_28_repair_leaves_a_healthy_table_alone(tmp_path, db):
    oracle = write_input(tmp_path / "in.jsonl", 100)
    resume(tmp_path / "in.jsonl", db)
    before = {path: path.stat().st_mtime_ns for path in (db / "t.lance").rglob("*")}
    with memworker("table", "repair", "--db", db, "--table", "t") as run:
        done = run.wait()
    assert done.code == 0 and "healthy" in done.out
    assert {path: path.stat().st_mtime_ns for path in (db / "t.lance").rglob("*")} == before
    assert stored(db) == oracle


def test_29_torn_journal_tail(tmp_path, db):
    oracle = write_input(tmp_path / "in.jsonl", 300)
    resume(tmp_path / "in.jsonl", db)
    kept = db / ".memworker/t" / journal.FILE
    whole = kept.read_bytes()
    for cut in (1, 40, len(whole) // 2):
        kept.write_bytes(whole[:-cut])
        assert all(run.written == 300 for run in list_runs(db))
        assert resume(tmp_path / "in.jsonl", db).written == 0
        assert kept.read_bytes().endswith(b"}\n") and stored(db) == oracle
    kept.write_bytes(b"\xff\x00 no journal at all\n" + whole)
    assert len(journal.read(kept.parent)) == 3


@pytest.mark.skipif(not LINUX, reason="strace is of Linux")
def test_durable_syncs_every_file_after_it_was_written(tmp_path, db):
    if shutil.which("strace") is None:
        pytest.skip("needs strace to see the calls")
    write_input(tmp_path / "in.jsonl", 200)
    trace = tmp_path / "trace"
    prefix = ("strace", "-f", "-y", "-e", "trace=fsync", "-o", trace)
    with memworker(*arguments(tmp_path / "in.jsonl", db, "--durable"), prefix=prefix) as run:
        done = run.wait()
    if "ptrace" in done.err:
        pytest.skip("may not trace here")
    assert done.code == 0, done.err
    synced = set(re.findall(r"fsync\(\d+<([^>]+)>", trace.read_text()))
    table = db / "t.lance"
    wanted = [p for p in [table, *table.rglob("*")] if p.name != "latest_version_hint.json"]
    assert {str(path) for path in wanted} <= synced
    assert {str(db), str(db / ".memworker/t" / journal.FILE)} <= synced

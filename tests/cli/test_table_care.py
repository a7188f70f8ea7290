"""``memworker table verify`` as people and scripts call it."""

from __future__ import annotations

import sys

import pytest

from tests.faults.harness import memworker
from tests.store.damaging import data_files, make, zero


@pytest.fixture
def db(tmp_path):
    make(tmp_path / "db", 400)
    return tmp_path / "db"


def run(verb, db, *more):
    with memworker("table", verb, "--db", db, "--table", "t", *more) as process:
        return process.wait()


def test_verify_a_healthy_table(db):
    done = run("verify", db)
    assert done.code == 0 and done.err == ""
    assert done.out.startswith("table 't' is healthy: version 2, 400 of 400 rows read, 1 files")


def test_verify_a_damaged_table(db):
    (path,) = data_files(db)
    zero(path, path.stat().st_size // 10, 4096)
    done = run("verify", db)
    # Nothing of what LanceDB's threads print when they fall over a damaged page.
    assert done.code == 1 and done.err == ""
    head, *told, last = done.out.splitlines()
    assert head.startswith("table 't' is DAMAGED") and "table repair" in last
    assert all(f"data/{path.name}, column" in line and "rows (ids 'id-" in line for line in told)
    done = run("verify", db, "--json")
    assert done.code == 1 and done.report["damaged_rows"] > 10 and not done.report["healthy"]
    assert {row for damage in done.report["damages"] for row in damage["ids"]} < {
        f"id-{n}" for n in range(400)
    }


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
def test_verify_with_standard_error_closed(db):
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    with memworker("table", "verify", "--db", db, "--table", "t", prefix=closed) as process:
        done = process.wait()
    assert done.code == 0 and "healthy" in done.out


def test_verify_a_table_that_is_not_there(db):
    with memworker("table", "verify", "--db", db, "--table", "other") as process:
        done = process.wait()
    assert done.code == 1 and "no table 'other'" in done.err and "Traceback" not in done.err

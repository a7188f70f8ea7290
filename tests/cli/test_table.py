"""``memworker table`` as scripts call it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from memworker import Memory
from memworker.cli.table import app
from memworker.errors import FilterError, TableNotFound
from memworker.store import Table
from tests.store.helpers import SPACE, numbered


@pytest.fixture
def db(tmp_path):
    table = Table.open_or_create(tmp_path / "db", "notes", SPACE)
    table.append(numbered(0, 3))
    table.append(numbered(3, 5))
    return str(table.db)


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_info(db):
    shown = run("info", "--db", db, "--table", "notes")
    assert "all-MiniLM-L6-v2" in shown and "cosine" in shown
    facts = json.loads(run("info", "--db", db, "--table", "notes", "--json"))
    assert (facts["rows"], facts["dim"], facts["fragments"]) == (5, SPACE.dim, 2)


def test_count(db):
    assert run("count", "--db", db, "--table", "notes") == "5\n"
    counted = run("count", "--db", db, "--table", "notes", "--where", "id=id-3", "--json")
    assert json.loads(counted) == {"table": "notes", "rows": 1}


def test_optimize(db):
    done = json.loads(run("optimize", "--db", db, "--table", "notes", "--json"))
    assert (done["fragments_before"], done["fragments"], done["rows"]) == (2, 1, 5)
    assert "1 fragments became 1" in run("optimize", "--db", db, "--table", "notes")


def test_reembed(db):
    command = ("reembed", "--db", db, "--table", "notes", "--model", "echo", "--workers", "1")
    done = json.loads(run(*command, "--json"))
    assert (done["rows"], done["embedded"], done["switched"]) == (5, 5, True)
    facts = json.loads(run("info", "--db", db, "--table", "notes", "--json"))
    assert (facts["model"], facts["dim"], facts["rows"]) == ("echo", 384, 5)
    assert "there is nothing to do" in run(*command)


def test_errors_are_ours(db):
    with pytest.raises(TableNotFound, match="notes"):
        run("count", "--db", db, "--table", "other")
    with pytest.raises(FilterError):
        run("count", "--db", db, "--table", "notes", "--where", "nonsense")


def test_what_was_erased_leaves_the_disk_with_the_versions_that_hold_it(tmp_path):
    with Memory(tmp_path / "db", model="echo", workers=1) as memory:
        memory.add_batch(["the SECRETWORD", "another"], user_id="alice")
        memory.delete_all(user_id="alice", erase=True)
        memory.add("new", user_id="alice")
    options = ("optimize", "--db", str(tmp_path / "db"), "--table", "memories")

    def files_that_hold_it():
        files = [path for path in (tmp_path / "db").rglob("*") if path.is_file()]
        return [path for path in files if b"SECRETWORD" in path.read_bytes()]

    run(*options)
    assert files_that_hold_it()
    run(*options, "--keep-minutes", "0")
    assert not files_that_hold_it()


def test_durability_is_shown_and_changed(db):
    at = ["--db", db, "--table", "notes", "--json"]
    for more, durable in (([], True), (["--off"], False)):
        assert json.loads(run("durable", *at, *more))["durable"] is durable
        assert json.loads(run("info", *at))["durable"] is durable

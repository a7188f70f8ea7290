"""A filter on a field that no row has is said to be that, wherever it is asked."""

from __future__ import annotations

import json
import logging

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from memworker import EmbeddingPool, Memory
from memworker.cli.app import app
from memworker.store import Table
from tests.store.helpers import SPACE, batch, vector_of

ROWS = [
    {"year": 2020, "author": "ann", "metadata": {"topic": "tea"}},
    {"year": 2021, "rare": None},
]


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "db", "t", SPACE)
    users = pa.array(["u", "v"])
    metadata = pa.array(map(json.dumps, ROWS))
    rows = [("a", "one"), ("b", "two")]
    table.append(batch(rows, scopes={"user_id": users}, metadata_json=metadata))
    return table


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ({"yaer": 2020}, "no row has the metadata field 'yaer'; near it there are: year"),
        ({"Author": "ann"}, "no row has the metadata field 'Author'; near it there are: author"),
        ({"userid": "u"}, "near it there are: user_id"),
        (
            {"xyz": 1},
            "no row has the metadata field 'xyz'; there are: author, metadata, year, rare",
        ),
        ({"NOT": {"OR": [{"xyz": 1}]}}, "'xyz'"),
        ({"AND": [{"year": 1}, {"xyz": {"gt": 1}}]}, "'xyz'"),
        ({"topic": "tea"}, "'topic'; it stands inside 'metadata': ask for 'metadata.topic'"),
        ({"metadata.topic": "none"}, None),
        ({"user_id": "v", "author": "ann"}, "no row in user_id has the metadata field 'author'"),
        ({"user_id": "nobody", "author": "ann"}, None),
        ({"year": 1999}, None),
        ({"rare": 1}, None),
        ({"user_id": "x", "text": "y", "created_at": {"gt": "2020-01-01"}}, None),
        ({}, None),
        (None, None),
    ],
    ids=str,
)
def test_what_is_said_of_a_filter(table, where, note):
    assert (note in table.note_on(where)) if note else table.note_on(where) == ""


def test_a_search_that_finds_nothing_logs_it_once(table, caplog):
    with caplog.at_level(logging.WARNING, "memworker"):
        for _ in range(3):
            assert table.search(vector_of("one"), where={"yaer": 2020}) == []
        assert table.search_text("one", where={"year": 1}) == []
    (record,) = caplog.records
    assert "near it there are: year" in record.getMessage()


def test_a_field_that_comes_is_found(table, monkeypatch):
    monkeypatch.setattr("memworker.store.fieldnotes._AGAIN_S", 0.0)
    assert table.note_on({"new": 1})
    table.append(batch([("c", "three")], metadata_json=pa.array(['{"new":1}'])))
    assert table.note_on({"new": 1}) == "" and table.count({"new": 1}) == 1


def test_a_memory_says_it_within_its_own_scope(tmp_path):
    with EmbeddingPool("echo", workers=1) as pool, Memory(tmp_path / "db", pool=pool) as memory:
        memory.add("tea", user_id="ann", metadata={"topic": "tea"})
        memory.add("tax", user_id="bob", metadata={"secret": "tax"})
        where = {"user_id": "ann", "topik": "tea"}
        for mode in ("vector", "text", "hybrid"):
            found = memory.search("tea", filters=where, mode=mode)
            assert found["results"] == [] and "near it there are: topic" in found["note"]
        assert "topic" in memory.get_all(filters=where)["note"]
        # Nothing is told of what others have.
        found = memory.search("tax", filters={"user_id": "ann", "secret": "tax"})
        assert (
            "no row in user_id has the metadata field 'secret'; there are: topic" in found["note"]
        )
        assert "note" not in memory.search("tea", filters={"user_id": "ann", "topic": "coffee"})


def test_the_command_line_says_it(table, tmp_path):
    args = ["table", "count", "--db", str(tmp_path / "db"), "--table", "t", "--where", "yaer=2020"]
    done = CliRunner().invoke(app, args)
    assert (done.exit_code, done.stdout) == (0, "0\n")
    assert "near it there are: year" in done.stderr
    done = CliRunner().invoke(app, [*args, "--json"])
    assert "year" in json.loads(done.stdout)["note"]

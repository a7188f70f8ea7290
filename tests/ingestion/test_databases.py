"""Rows that a database gives for a query: streamed, read alone, resumed by their ids."""

from __future__ import annotations

import builtins
import json
import sqlite3

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import memworker
from memworker.errors import InputError, InputNotFound, UsageError
from memworker.ingestion.readers import read

ROWS = 10_000


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("db") / "notes & co.db"
    with sqlite3.connect(path) as opened:
        opened.execute("CREATE TABLE notes (id INTEGER, text TEXT, raw BLOB, year INTEGER)")
        rows = ((i, f"note {i}", bytes([i % 256]), 2000 + i % 20) for i in range(ROWS))
        opened.executemany("INSERT INTO notes VALUES (?, ?, ?, ?)", rows)
    opened.close()
    return path


def rows_of(address, sql, **options):
    return [r for batch in read([address], sql=sql, **options) for r in batch.rows.to_pylist()]


@pytest.mark.parametrize("address", ["sqlite:///{}", "sqlite:{}", "{}"])
def test_the_rows_of_a_query_are_read(database, address):
    found = rows_of(address.format(database), "SELECT * FROM notes ORDER BY id")
    assert len(found) == ROWS
    assert [row["id"] for row in found[:3]] == ["0", "1", "2"]
    assert found[1]["text"] == "note 1"
    assert json.loads(found[1]["metadata"]) == {"raw": "AQ==", "year": 2001}
    assert found[-1]["line"] == ROWS


def test_rows_come_as_they_are_asked_for(database):
    # What makes no end cannot have been gathered.
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT i AS id, 'row ' || i AS text FROM n"
    )
    assert len(rows_of(database, endless, limit=9000)) == 9000


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT nope FROM notes", "no such column: nope"),
        ("SELEC 1", "syntax error"),
        ("DELETE FROM notes", "writes nothing"),
        ("ATTACH 'other.db' AS o", "writes nothing"),
        ("PRAGMA journal_mode=WAL", "writes nothing"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT id, text, text FROM notes", "two columns 'text'"),
        ("SELECT abs(id - 9000) + text AS x FROM", "incomplete|syntax"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_in_one_line(database, sql, told):
    before = database.read_bytes()
    with pytest.raises(InputError, match=told) as raised:
        rows_of(database, sql)
    assert "\n" not in str(raised.value)
    assert database.read_bytes() == before


def test_an_error_after_the_first_rows_says_after_how_many(database):
    late = "SELECT id, text, abs(-9223372036854775808 + (id < 9000)) AS n"
    with pytest.raises(InputError, match=r"failed after 8,192 rows: integer overflow"):
        rows_of(database, f"{late} FROM notes")


def test_text_that_is_not_utf8_costs_its_row(tmp_path):
    path = tmp_path / "bad.sqlite"
    with sqlite3.connect(path) as opened:
        opened.execute("CREATE TABLE t (text TEXT)")
        opened.execute("INSERT INTO t VALUES (CAST(x'ff41' AS TEXT)), ('good'), (NULL)")
    opened.close()
    (batch,) = read([path], sql="SELECT * FROM t")
    assert batch.rows["text"].to_pylist() == ["good"]
    assert [reject.line for reject in batch.rejects] == [1, 3]


def test_what_is_no_database_is_refused(tmp_path, database):
    text = tmp_path / "in.md"
    text.write_text("no database")
    with pytest.raises(UsageError, match="no database of SQLite or DuckDB"):
        rows_of(text, "SELECT 1")
    with pytest.raises(InputError, match="file is not a database"):
        rows_of(f"sqlite:///{text}", "SELECT * FROM t")
    with pytest.raises(InputNotFound, match="no such database"):
        rows_of(tmp_path / "nope.db", "SELECT 1")
    with pytest.raises(UsageError, match="names a database on this machine"):
        rows_of("postgresql://host/db", "SELECT 1")
    with pytest.raises(UsageError, match="--sql 'SELECT"):
        list(read([f"sqlite:///{database}"]))
    with pytest.raises(InputError, match="ask it: --sql 'SELECT"):
        list(read([database], format="jsonl"))
    with pytest.raises(UsageError, match="for files"):
        memworker.ingest([{"text": "a"}], db=tmp_path / "db", table="t", sql="SELECT 1")


def test_an_absent_duckdb_is_told_with_the_command_that_brings_it(tmp_path, monkeypatch):
    path = tmp_path / "in.duckdb"
    path.write_bytes(bytes(8) + b"DUCK" + bytes(100))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "duckdb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'memworker\[sql\]'"):
        rows_of(path, "SELECT 1")


def test_a_query_is_resumed_and_a_change_of_its_database_is_noticed(tmp_path):
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as opened:
        opened.execute("PRAGMA journal_mode=WAL")
        opened.execute("CREATE TABLE notes (id INTEGER, text TEXT)")
        opened.execute("INSERT INTO notes VALUES (1, 'a'), (2, 'b')")

    def ingested():
        return memworker.ingest(
            f"sqlite:///{path}",
            sql="SELECT * FROM notes",
            db=tmp_path / "db",
            table="t",
            model="echo",
            workers=1,
        )

    first, second = ingested(), ingested()
    assert (first.written, second.written, second.duplicates) == (2, 0, 2)
    assert not second.notes
    # What is new may stand beside the database for a while.
    with opened:
        opened.execute("INSERT INTO notes VALUES (3, 'c')")
    third = ingested()
    opened.close()
    assert third.written == 1 and "was edited since" in third.notes[0]


@pytest.fixture(scope="module")
def duck(tmp_path_factory):
    path = tmp_path_factory.mktemp("duck") / "notes & co.duckdb"
    with duckdb.connect(str(path)) as opened:
        opened.execute(
            "CREATE TABLE notes AS SELECT i AS id, 'note ' || i AS text, 2000 + i % 20 AS year"
            f" FROM range({ROWS}) r(i)"
        )
    return path


@pytest.mark.parametrize("address", ["duckdb:///{}", "{}"])
def test_the_rows_of_a_duckdb_query_are_read_row_for_row(duck, address):
    found = rows_of(address.format(duck), "SELECT * FROM notes ORDER BY id")
    assert [(row["id"], row["text"]) for row in found] == [
        (str(i), f"note {i}") for i in range(ROWS)
    ]
    assert json.loads(found[-1]["metadata"]) == {"year": 2000 + (ROWS - 1) % 20}
    assert found[-1]["line"] == ROWS


def test_duckdb_is_asked_one_select_and_writes_nothing(duck):
    before = duck.read_bytes()
    for sql in (
        "DELETE FROM notes",
        "SELECT 1; SELECT 2",
        "CREATE TABLE t (i INTEGER)",
        "COPY notes TO 'out.csv'",
    ):
        with pytest.raises(UsageError, match="one SELECT"):
            rows_of(duck, sql)
    with pytest.raises(InputError, match="nope"):
        rows_of(duck, "SELECT nope FROM notes")
    # Other files are out of its reach.
    with pytest.raises(InputError, match="the query failed"):
        rows_of(duck, "SELECT * FROM read_csv('/etc/passwd')")
    assert duck.read_bytes() == before


def test_a_file_of_rows_is_asked_through_duckdb(tmp_path):
    path = tmp_path / "it's.parquet"
    rows = [{"id": i, "body": f"text {i}", "lang": "de" if i % 3 else "en"} for i in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    sql = "SELECT id, body AS text FROM input WHERE lang = 'en' ORDER BY id DESC"
    found = rows_of(path, sql)
    expected = [(str(row["id"]), row["body"]) for row in rows if row["lang"] == "en"]
    assert [(row["id"], row["text"]) for row in found] == expected[::-1]


def test_a_duckdb_query_is_ingested_once(duck, tmp_path):
    def ingested():
        return memworker.ingest(
            f"duckdb:///{duck}",
            sql="SELECT * FROM notes WHERE id < 50",
            db=tmp_path / "db",
            table="t",
            model="echo",
            workers=1,
        )

    first, second = ingested(), ingested()
    assert (first.written, second.written, second.duplicates) == (50, 0, 50)
    held = memworker.Table.open(tmp_path / "db", "t").rows().to_pylist()
    assert {(row["id"], row["text"]) for row in held} == {(str(i), f"note {i}") for i in range(50)}

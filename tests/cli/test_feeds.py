"""Searches in every mode and format, exports that come back as the same rows, groups in --help."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.main
from typer.testing import CliRunner

import memworker
from memworker.cli.app import app
from memworker.errors import MemworkerError, UsageError
from memworker.store import Table

ROWS = [
    {"id": "a", "text": "likes tea,\nwith milk", "who": "ann", "year": 2020, "kind": "x"},
    {"id": "b", "text": 'hates "nuts"; a lot', "who": "bob", "year": 2021, "kind": "y"},
    {"id": "c", "text": "naïve café", "who": "bob", "kind": "x"},
]


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    folder = tmp_path_factory.mktemp("db")
    memworker.ingest(ROWS, db=folder, table="t", scope={"user_id": "who"}, **ECHO)
    return folder


ECHO = {"model": "echo", "workers": 1}


def run(*args):
    """Run a verb; returns stdout, and raises what it raised."""
    done = CliRunner().invoke(app, list(map(str, args)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def held(folder, table="t"):
    """Return what a table holds, but for times and vectors."""
    kept = ("id", "text", "user_id", "agent_id", "run_id", "metadata")
    rows = Table.open(folder, table).rows().select(kept).to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def test_words_are_found_and_shown_in_every_format(db):
    common = ("tea milk", "--db", db, "--table", "t", "--mode", "text")
    assert "likes tea" in run("search", *common)
    (line,) = map(json.loads, run("search", *common, "--format", "jsonl").splitlines())
    assert line["id"] == "a" and line["metadata"] == {"kind": "x", "year": 2020}
    cells = list(csv.DictReader(io.StringIO(run("search", *common, "--format", "csv"))))
    assert [row["text"] for row in cells] == [ROWS[0]["text"]]
    assert json.loads(run("search", *common, "--json"))["hits"][0]["id"] == "a"


@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_search_by_vectors_embeds_the_question(db, mode):
    target = ("--db", db, "--table", "t", "--mode", mode)
    found = json.loads(run("search", ROWS[2]["text"], *target, "--json"))
    assert found["hits"][0]["id"] == "c"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--mode", "both"), "--mode must be one of vector, text, hybrid"),
        (("--format", "xml"), "--format must be one of table, jsonl, csv"),
        (("--format", "csv", "--json"), "name one of them"),
        (("--mode", "text", "--exact"), "leave it out"),
    ],
)
def test_what_a_search_cannot_do_is_refused(db, given, told):
    with pytest.raises(UsageError, match=told):
        run("search", "tea", "--db", db, "--table", "t", *given)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_search_for_nothing_says_so(db, blank):
    with pytest.raises(UsageError, match="the question is empty"):
        run("search", blank, "--db", db, "--table", "t", "--mode", "text")


def test_what_escapes_quotes_can_be_said(tmp_path):
    given = tmp_path / "in.csv"
    given.write_text('id,text\n1,"a ^"b^", c"\n')
    target = ("--db", tmp_path / "db", "--table", "t", "--model", "echo", "--workers", 1)
    run("ingest", given, *target, "--escapechar", "^")
    assert [row["text"] for row in held(tmp_path / "db")] == ['a "b", c']


def test_an_export_comes_back_as_the_same_rows(db, tmp_path):
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"out.{suffix}"
        done = memworker.export_table(db, "t", path)
        assert (done.rows, done.format) == (3, suffix)
        assert done.columns == ("id", "text", "user_id", "kind", "year")
        memworker.ingest(
            path, db=tmp_path / suffix, table="t", scope={"user_id": "user_id"}, **ECHO
        )
        assert held(tmp_path / suffix) == held(db)


def test_chunks_are_exported_with_their_parents_and_places(tmp_path):
    rows = [{"id": f"p{i}", "text": "A sentence of some words. " * 9, "n": i} for i in range(2)]
    db, places = tmp_path / "db", ("parent_id", "chunk", "char_start", "char_end", "context")
    memworker.ingest(rows, db=db, table="t", chunk=32, **ECHO)
    stored = Table.open(db, "t").rows(columns=["id", "text", *places]).to_pylist()
    assert len(stored) > 2
    for suffix in ("jsonl", "parquet", "csv"):
        path = tmp_path / f"out.{suffix}"
        done = memworker.export_table(db, "t", path)
        assert done.columns == ("id", "text", *places, "n")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    told = [{name: value for name, value in row.items() if name != "n"} for row in found]
    assert told == [{k: v for k, v in row.items() if v is not None} for row in stored]
    assert [
        {name: row[name] for name in stored[0]}
        for row in pq.read_table(tmp_path / "out.parquet").to_pylist()
    ] == stored
    memworker.ingest(tmp_path / "out.jsonl", db=tmp_path / "again", table="t", **ECHO)
    again = Table.open(tmp_path / "again", "t")
    assert again.count({"parent_id": "p1"}) * 2 == again.count() == len(stored)
    memworker.export_table(tmp_path / "again", "t", tmp_path / "more.jsonl")
    more = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert more == found


def test_metadata_called_like_a_column_is_exported_under_a_number(tmp_path):
    rows = [{"id": 7, "id_2": "u", "text": "some words", "created_at": "2020", "n": 1}]
    db = tmp_path / "db"
    memworker.ingest(rows, db=db, table="t", id_template="{n}-{id}", **ECHO)
    told = {"id": "1-7", "text": "some words", "created_at": "2020", "id_2": "u", "id_3": 7, "n": 1}
    for suffix in ("jsonl", "parquet", "csv"):
        path = tmp_path / f"out.{suffix}"
        said = CliRunner().invoke(app, ["export", "t", "--db", str(db), "--output", str(path)])
        assert "the field 'id' of the metadata is called 'id_3' in the file" in said.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text()) == told
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [told]
    done = memworker.export_table(db, "t", tmp_path / "times.csv", times=True)
    assert done.renamed == {"created_at": "created_at_2", "id": "id_3"}


def test_csv_holds_all_as_text(db, tmp_path):
    path = tmp_path / "out.csv"
    memworker.export_table(db, "t", path)
    found = list(csv.reader(io.StringIO(path.read_text(), newline="")))
    assert found[0] == ["id", "text", "user_id", "kind", "year"]
    assert sorted(found[1:])[0] == ["a", ROWS[0]["text"], "ann", "x", "2020"]
    memworker.ingest(path, db=tmp_path / "db", table="t", scope={"user_id": "user_id"}, **ECHO)
    assert [row["text"] for row in held(tmp_path / "db")] == [row["text"] for row in ROWS]


def test_rows_are_chosen_and_vectors_and_times_are_written_where_they_are_wanted(db, tmp_path):
    lines = run("export", "t", "--db", db, "--where", "kind=x", "--vectors", "--times")
    rows = {row["id"]: row for row in map(json.loads, lines.splitlines())}
    assert set(rows) == {"a", "c"} and rows["a"]["created_at"] and rows["a"]["updated_at"]
    stored = Table.open(db, "t").rows({"id": "a"})["vector"][0].as_py()
    assert np.array_equal(np.float32(rows["a"]["vector"]), np.float32(stored))
    path = tmp_path / "out.parquet"
    told = run("export", "t", "--db", db, "--output", path, "--vectors", "--json")
    assert json.loads(told)["rows"] == 3
    written = {row["id"]: row["vector"] for row in pq.read_table(path).to_pylist()}
    assert written["a"] == stored


def test_a_file_of_others_is_not_replaced_and_one_of_ours_is(db, tmp_path):
    path = tmp_path / "out.parquet"
    memworker.export_table(db, "t", path)
    assert memworker.export_table(db, "t", path, where={"kind": "y"}).rows == 1
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--overwrite"):
        memworker.export_table(db, "t", path)
    assert memworker.export_table(db, "t", path, overwrite=True).rows == 3
    with pytest.raises(UsageError, match="say as what"):
        memworker.export_table(db, "t", tmp_path / "out.xml")
    with pytest.raises(UsageError, match="name it with --output"):
        run("export", "t", "--db", db, "--to", "parquet")


def test_what_columns_do_not_hold_goes_as_lines_of_json(tmp_path):
    rows = [
        {"text": "a", "tags": ["x"], "v": 1},
        {"text": "b", "v": "one"},
        {"text": "c", "v": None},
    ]
    memworker.ingest(rows, db=tmp_path / "db", table="t", **ECHO)
    for name in ("out.csv", "out.parquet"):
        with pytest.raises(UsageError, match="--to jsonl"):
            memworker.export_table(tmp_path / "db", "t", tmp_path / name)
        assert not (tmp_path / name).exists()
    memworker.export_table(tmp_path / "db", "t", tmp_path / "out.jsonl")
    memworker.ingest(tmp_path / "out.jsonl", db=tmp_path / "again", table="t", **ECHO)
    assert held(tmp_path / "again") == held(tmp_path / "db")


def test_metadata_called_as_a_column_are_not_mixed_up_with_it(tmp_path):
    memworker.ingest([{"text": "a", "user_id": "u", "vector": "v"}], db=tmp_path, table="t", **ECHO)
    memworker.export_table(tmp_path, "t", tmp_path / "out.jsonl")
    memworker.export_table(tmp_path, "t", tmp_path / "more.jsonl", vectors=True)
    (row,) = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert (row["user_id"], row["vector_2"], len(row["vector"]) > 1) == ("u", "v", True)


def test_queries_are_embedded_as_such(tmp_path):
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    out = tmp_path / "out.npy"
    run("embed", tmp_path / "in.txt", "--out", out, "--kind", "query", "--model", "echo", "--quiet")
    assert np.load(out).shape[0] == 2
    with pytest.raises(MemworkerError, match="kind must be one of"):
        memworker.embed_to_file(tmp_path / "in.txt", out, kind="question", model="echo")


def test_a_query_without_a_database_names_the_option(tmp_path):
    with pytest.raises(UsageError, match="name it with --from"):
        run("ingest", "--sql", "SELECT 1", "--db", tmp_path, "--table", "t")


GROUPS = {"Input", "Text", "Model", "Writing", "Output"}


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_help_groups_the_options_of_every_verb_that_has_many():
    many = 0
    for name, command in commands(typer.main.get_command(app)):
        options = [each for each in command.params if each.param_type_name == "option"]
        if len(options) <= 8:
            continue
        many += 1
        loose = [each.name for each in options if not getattr(each, "rich_help_panel", None)]
        assert not loose, f"{name}: {loose}"
    assert many >= 5


def test_the_command_line_makes_templates_with_line_ends():
    from memworker.cli.options import template

    assert template(r"{a}\n{b}\t\\n") == "{a}\n{b}\t\\n"
    assert template(None) is None


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "INGEST.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    block, foretold = (each for each in blocks if "--text-template" in each)
    monkeypatch.chdir(tmp_path)
    ticket = {"title": "Refund", "body": "refused", "number": 7, "state": "open"}
    Path("tickets.jsonl").write_text(json.dumps(ticket | {"project": {"key": "P"}}) + "\n")
    Path("old.csv").write_bytes("1;café;2020\n".encode("latin-1"))
    with sqlite3.connect("notes.db") as notes:
        notes.execute("CREATE TABLE notes (id INTEGER, body TEXT, author TEXT)")
        notes.execute("INSERT INTO notes VALUES (1, 'a note', 'ann')")
    notes.close()
    told = run(*shlex.split(foretold)[1:], "--model", "echo", "--workers", "1")
    assert "rows     1, counted" in told and not Path("db").exists()
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line)[1:]
        run(*words, *(["--model", "echo", "--workers", "1"] if words[0] == "ingest" else []))
    tickets, old, notes = (held(tmp_path / "db", name) for name in ("tickets", "old", "notes"))
    assert [(row["id"], row["text"]) for row in tickets] == [("P-7", "Refund\nrefused")]
    assert json.loads(tickets[0]["metadata"]) == {"state": "open", "project.key": "P"}
    assert [(row["id"], row["text"]) for row in old] == [("1", "café")]
    assert [(row["text"], row["user_id"]) for row in notes] == [("a note", "ann")]
    assert Path("tickets.parquet").exists()

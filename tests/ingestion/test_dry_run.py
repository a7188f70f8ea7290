"""Dry runs: what they foretell holds of the run itself, and they leave nothing behind."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sqlite3
import tempfile

import duckdb
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import memworker
from memworker.cli.app import app
from memworker.errors import InputNotFound, MissingField, NoRows, TableMismatch, UsageError

ECHO = {"model": "echo", "workers": 1}
ROWS = 15_000


def row(i):
    text = f"{'note' if i % 2 else 'a much longer note'} {i} " + "word " * (i % 50)
    return {"id": f"n{i}", "text": text, "year": 2000 + i % 20} | ({"tag": "x"} if i % 4 else {})


def write_jsonl(path):
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(ROWS)))


def write_utf16(path):
    lines = "".join(json.dumps(row(i), ensure_ascii=False) + "\n" for i in range(ROWS))
    path.write_bytes(lines.encode("utf-16"))


def write_gz(path):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row(i)) + "\n" for i in range(ROWS))


def write_array(path):
    path.write_text(json.dumps([row(i) for i in range(ROWS)], indent=1))


def write_csv(path, mark=";", text=str):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(["id", "text", "year", "tag"])
        for i in range(ROWS):
            each = row(i)
            cells = each["id"], text(each["text"]), each["year"], each.get("tag", "")
            writer.writerow(cells)


def write_csv_over_lines(path):
    write_csv(path, ",", lambda text: text.replace(" ", "\n", 2))


def write_txt(path):
    path.write_text("".join(row(i)["text"] + "\n" for i in range(ROWS)))


def table_of_rows():
    return pa.Table.from_pylist([{"tag": None, **row(i)} for i in range(ROWS)])


def write_parquet(path):
    pq.write_table(table_of_rows(), path, row_group_size=2000)


def write_arrow(path):
    pyarrow.feather.write_feather(table_of_rows(), path, compression="lz4", chunksize=2000)


KINDS = {
    "in.jsonl": write_jsonl,
    "utf16.jsonl": write_utf16,
    "in.jsonl.gz": write_gz,
    "array.json": write_array,
    "in.csv": write_csv,
    "lines.csv": write_csv_over_lines,
    "in.txt": write_txt,
    "in.parquet": write_parquet,
    "in.feather": write_arrow,
}
# What tells by itself how many rows there are.
COUNTED = ("in.parquet",)


@pytest.fixture(scope="module")
def pool():
    with memworker.EmbeddingPool("echo", workers=1) as pool:
        yield pool


@pytest.fixture
def small_budget(monkeypatch):
    """Let files of some megabytes be too large to be read as a whole."""
    monkeypatch.setattr("memworker.ingestion.survey.BUDGET", 1 << 17)
    monkeypatch.setattr("memworker.ingestion.dry_run._MOST_ROWS", 300)


def tree(*folders):
    """Return all that folders hold: of files when they were written, too."""
    return sorted(
        (
            os.path.join(where, name),
            os.stat(os.path.join(where, name)).st_mtime_ns * (name in names),
        )
        for folder in folders
        for where, dirs, names in os.walk(folder)
        for name in [*dirs, *names]
    )


@pytest.mark.parametrize("name", KINDS)
def test_rows_and_fields_of_every_kind_are_foretold_and_nothing_is_written(
    name, tmp_path, pool, small_budget, monkeypatch
):
    path = tmp_path / name
    KINDS[name](path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = tree(tmp_path)
    plan = memworker.plan_ingest(path, db=tmp_path / "db", table="t", pool=pool)
    assert tree(tmp_path) == before
    assert plan.rows_counted == (name in COUNTED)
    assert plan.rows == pytest.approx(ROWS, rel=0.001 if plan.rows_counted else 0.1)
    assert plan.sampled < ROWS / 2
    assert not plan.rejected and not plan.rejects
    fields = {each.name: each for each in plan.fields}
    assert fields["text"].use == "text" and fields["text"].share == 1
    if not name.endswith(".txt"):
        assert set(fields) == {"id", "text", "year", "tag"}
        assert fields["id"].use == "id" and fields["tag"].use == "metadata"
        assert fields["tag"].share == pytest.approx(0.75, abs=0.05)
    if name == "in.csv":
        assert "';'" in plan.dialect
    if name == "utf16.jsonl":
        assert plan.encodings == ("utf-16-le",)
    assert plan.seconds > 0 and plan.bytes > ROWS * 4 * 384


def test_what_is_foretold_is_what_the_run_does(tmp_path, pool, small_budget):
    path = tmp_path / "in.jsonl"
    write_jsonl(path)
    given = {"db": tmp_path / "db", "table": "t", "pool": pool}
    plan = memworker.plan_ingest(path, **given)
    report = memworker.ingest(path, **given)
    size = sum(
        os.stat(os.path.join(where, name)).st_size
        for where, _, names in os.walk(tmp_path / "db" / "t.lance")
        for name in names
    )
    assert plan.rows == pytest.approx(report.written, rel=0.05)
    assert plan.bytes == pytest.approx(size, rel=0.1)
    assert plan.tokens.mean == pytest.approx(report.tokens / report.written, rel=0.1)
    # Again, of a table that is there now: it stays as it is.
    before = tree(tmp_path)
    memworker.plan_ingest(path, **given)
    assert tree(tmp_path) == before
    with pytest.raises(TableMismatch):
        memworker.plan_ingest(path, **given | {"pool": None}, model="echo", dim=8)


def test_chunks_and_truncated_texts_are_foretold(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"id": i, "text": "owls hunt at night. " * (4 if i % 2 else 40)} for i in range(100)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with memworker.EmbeddingPool(workers=1, max_tokens=64, precision="int8") as pool:
        given = {"db": tmp_path / "db", "table": "t", "pool": pool}
        plan = memworker.plan_ingest(path, **given)
        assert plan.tokens.limit == 64 and plan.tokens.truncated == 0.5 and plan.chunks is None
        cut = memworker.plan_ingest(path, **given, chunk="model")
        report = memworker.ingest(path, **given, chunk="model")
    assert cut.chunks == pytest.approx(report.chunks, rel=0.1)


def test_a_sample_comes_from_all_of_a_file(tmp_path, pool, small_budget):
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        for i in range(ROWS):
            text = "no object\n" if i % 100 == 99 else json.dumps(row(i)) + "\n"
            late = json.dumps(row(i) | {"late": [i]}) + "\n"
            file.write(late if i > ROWS * 0.9 and text[0] == "{" else text)
    plan = memworker.plan_ingest(path, db=tmp_path / "db", table="t", pool=pool)
    (late,) = (each for each in plan.fields if each.name == "late")
    assert late.kinds == ("an array",) and late.share == pytest.approx(0.1, abs=0.04)
    assert plan.rejected / plan.sampled == pytest.approx(0.01, abs=0.008)
    assert "malformed JSON" in plan.rejects[0].reason and plan.rejects[0].line == 0


def test_a_row_that_the_sample_cuts_off_is_none_of_the_bad_ones(tmp_path, pool, small_budget):
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([i, "a line, and another\n" * 40] for i in range(1000))
    plan = memworker.plan_ingest(path, db=tmp_path / "db", table="t", pool=pool)
    assert not plan.rejected and plan.rows == pytest.approx(1000, rel=0.05)


def test_equal_rows_count_as_new_ones(tmp_path, pool, small_budget):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row(i % 50)) + "\n" for i in range(5000)))
    plan = memworker.plan_ingest(path, db=tmp_path / "db", table="t", pool=pool)
    assert plan.bytes == pytest.approx(5000 * 4 * 384, rel=0.5)


def test_files_of_a_folder_are_sampled_and_those_left_out_are_told(tmp_path, pool):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(200):
        lines = (json.dumps({"text": f"row {i} {k}"}) for k in range(10))
        (folder / f"{i:03}.jsonl").write_text("\n".join(lines))
    (folder / "notes.bin").write_bytes(b"\0")
    plan = memworker.plan_ingest(folder, db=tmp_path / "db", table="t", pool=pool)
    assert plan.files == 200 and not plan.rows_counted
    assert plan.rows == pytest.approx(2000, rel=0.05)
    assert any("notes.bin" in note for note in plan.notes)


def test_documents_are_rows(tmp_path, pool):
    for i in range(5):
        (tmp_path / f"{i}.md").write_text(f"# Note {i}\n\nowls")
    plan = memworker.plan_ingest(tmp_path, db=tmp_path / "db", table="t", pool=pool)
    assert plan.rows == 5 and plan.formats == ("document",)


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_database_counts_the_rows_of_a_query(kind, tmp_path, pool, monkeypatch):
    monkeypatch.setattr("memworker.ingestion.survey._ROWS_OF_QUERY", 1000)
    path = tmp_path / f"in.{kind}"
    opened = (sqlite3 if kind == "sqlite" else duckdb).connect(str(path))
    opened.execute("CREATE TABLE notes (id INTEGER, text TEXT)")
    opened.execute(
        "INSERT INTO notes WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
        " WHERE i < 3000) SELECT i, 'note ' || i FROM n"
    )
    opened.commit()
    opened.close()
    given = {"db": tmp_path / "db", "table": "t", "pool": pool}
    plan = memworker.plan_ingest(f"{kind}:///{path}", sql="SELECT * FROM notes", **given)
    assert (plan.rows, plan.rows_counted, plan.sampled) == (3000, True, 1000)
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT i AS id, 'row ' || i AS text FROM n"
    )
    if kind == "sqlite":
        monkeypatch.setattr("memworker.ingestion.survey._COUNTING_S", 0.2)
        plan = memworker.plan_ingest(f"{kind}:///{path}", sql=endless, **given)
        assert plan.rows is None and plan.seconds is None and "too long" in plan.notes[0]


def test_what_cannot_be_foretold_is_refused_and_makes_nothing(tmp_path, pool):
    db = tmp_path / "db"
    given = {"db": db, "table": "t", "pool": pool}
    path = tmp_path / "in.jsonl"
    path.write_text("")
    with pytest.raises(NoRows):
        memworker.plan_ingest(path, **given)
    path.write_text('{"body": "a"}\n')
    with pytest.raises(MissingField, match="body"):
        memworker.plan_ingest(path, **given)
    with pytest.raises(InputNotFound):
        memworker.plan_ingest(tmp_path / "nope.jsonl", **given)
    with pytest.raises(UsageError, match="once only"):
        memworker.plan_ingest("-", **given)
    with pytest.raises(UsageError, match="for files"):
        memworker.plan_ingest([{"text": "a"}], **given)
    assert not db.exists()


def test_an_input_of_bad_rows_alone_is_told_row_by_row(tmp_path, pool):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": ""}\n{"text": 7}\n{"text"\n')
    plan = memworker.plan_ingest(path, db=tmp_path / "db", table="t", pool=pool)
    assert plan.rows == plan.sampled == plan.rejected == 3
    assert [each.line for each in plan.rejects] == [1, 2, 3]
    assert plan.tokens is None and plan.seconds is None and plan.bytes is None


def test_the_command_prints_a_plan_and_one_object(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(300)) + "bad\n")
    db = tmp_path / "db"
    asked = ["ingest", path, "--db", db, "--table", "t", "--model", "echo", "--dry-run"]
    done = CliRunner().invoke(app, list(map(str, asked)))
    assert done.exit_code == 0, done.output
    assert "rows     301, counted" in done.stdout and "Nothing was written" in done.stdout
    assert f"{path}:301: malformed JSON" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*map(str, asked), "--json"]).stdout)
    assert told["rows"] == 301 and told["rejected"] == 1 and told["seconds"] > 0
    assert not db.exists()

"""What of folders and globs is read, what is left out and said, what could not be read."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memworker import Table, ingest
from memworker.errors import InputError, InputNotFound, MissingField, UsageError
from memworker.ingestion.readers import found, read

LINE = '{"id": "%s", "text": "text %s"}\n'
ECHO = {"db": "db", "table": "t", "model": "echo", "workers": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        Path(f"in/{name}.jsonl").write_text(LINE % (name, name))
    return tmp_path


def names(*inputs, format=None):
    return [source.path for source in found(inputs, format).sources]


def told(*inputs):
    return found(inputs).left_out.told()


def rows_and_rejects(*inputs, **options):
    batches = list(read(inputs, **options))
    texts = [t for c in batches for t in c.rows["text"].to_pylist()]
    return texts, [reject for c in batches for reject in c.rejects]


def test_what_is_left_out_is_counted_with_its_reason_and_up_to_ten_names(here):
    for i in range(20):
        Path(f"in/{i:02}.log").write_text("x")
    for name in ("part-00000", "x.jsonl.bz2", ".hidden.jsonl", "y.jsonl~", "z.jsonl.part"):
        Path("in", name).write_text("x")
    said = told("in")
    assert "22 whose suffix names no format (in/00.log, in/01.log" in said and "…" in said
    assert "1 hidden (in/.hidden.jsonl)" in said and "2 temporary" in said
    assert said.count("in/") <= 10
    report = ingest("in", **ECHO)
    assert report.read == 2 and said in report.notes


def test_a_format_holds_for_what_a_folder_holds_as_for_a_glob(here):
    for name in ("notes.log", "part-00000", "sub/deep.log"):
        Path("in", name).write_text("words\n")
    for inputs in (["in"], ["in/**"], ["in/*"]):
        assert len(names(*inputs, format="txt")) == 5
    assert told("in/*").startswith("Left out: 3 whose suffix")


def test_nothing_that_fits_is_an_error_that_says_what_there_is(here):
    Path("docs").mkdir()
    Path("docs/a.log").write_text("x")
    with pytest.raises(InputNotFound, match=r"1 whose suffix names no format \(docs/a.log\)"):
        names("docs")
    Path("empty").mkdir()
    with pytest.raises(InputNotFound, match="There are none at all"):
        names("in", "empty")


def test_links_to_folders_are_followed_once(here):
    Path("elsewhere").mkdir()
    Path("elsewhere/c.jsonl").write_text(LINE % ("c", "c"))
    os.symlink("../elsewhere", "in/linked")
    os.symlink("..", "in/sub/back")
    os.symlink(".", "in/sub/self")
    assert names("in") == ["in/a.jsonl", "in/linked/c.jsonl", "in/sub/b.jsonl"]
    assert "read already, through another link (in/sub/back" in told("in")
    assert names("in/**") == names("in/**/*.jsonl") == names("in")


def test_what_could_not_be_read_costs_a_row_and_the_exit_code(here):
    os.symlink("nothing", "in/gone.jsonl")
    Path("in/locked").mkdir()
    report = ingest("in", **ECHO)
    assert (report.written, report.rejected) == (2, 1)
    listed = json.loads(Path(report.rejects).read_text())
    assert listed["path"] == "in/gone.jsonl" and "link to nothing" in listed["reason"]
    with pytest.raises(InputError, match=r"gone.jsonl cannot be read"):
        names("in/gone.jsonl")


DROP = """
import os
from memworker.ingestion.readers import read
list(read(["in/c.jsonl"]))  # what it needs is loaded
os.setgroups([]); os.setgid(65534); os.setuid(65534)
rejects = [r for c in read(["in"]) for r in c.rejects]
print(sorted((r.path, r.reason) for r in rejects), sum(c.rows.num_rows for c in read(["in"])))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_folders_and_files_without_permission_are_named(here):
    for path in (here, Path("in")):  # names in the working folder need no more
        path.chmod(0o755)
    Path("in/a.jsonl").chmod(0o600)
    Path("in/sub").chmod(0o700)
    Path("in/c.jsonl").write_text(LINE % ("c", "c"))
    done = subprocess.run([sys.executable, "-c", DROP], capture_output=True, text=True)
    assert "('in/a.jsonl', 'the file may not be read by this user')" in done.stdout, done.stderr
    assert "('in/sub', 'the folder cannot be read: Permission denied')" in done.stdout
    assert done.stdout.strip().endswith(" 1")
    again = DROP.replace('["in"]', '["in/**/*.jsonl"]')
    globbed = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
    assert globbed.stdout == done.stdout, globbed.stderr


def test_pipes_and_sockets_in_a_folder_are_left_alone(here):
    os.mkfifo("in/p.jsonl")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("in/s.jsonl")
        assert len(names("in")) == 2
        assert "2 no files but pipes, sockets or devices" in told("in")
        with pytest.raises(InputError, match="is a socket"):
            names("in/s.jsonl")
    with pytest.raises(InputError, match="is a device"):
        names("/dev/zero")


def test_our_own_state_is_no_input(here):
    for _ in range(3):
        report = ingest(".", db="./db", table="t", model="echo", workers=1, rejects="bad.jsonl")
        assert report.read == 2 + (Path("worse.jsonl").exists())
        Path("worse.jsonl").write_text("not json\n")
    os.rename("bad.jsonl", "in/list-of-old.jsonl")
    assert "1 lists of rejected rows (in/list-of-old.jsonl)" in ingest("in", **ECHO).notes[0]
    table = ingest("in", db="in/db", table="t", model="echo", workers=1)
    again = ingest("in", db="in/db", table="t", model="echo", workers=1)
    assert (table.read, again.read) == (2, 2)
    assert "1 tables of a database (in/db/t.lance)" in again.notes[0]
    Table.open("in/db", "t").delete({"id": "a"})
    assert list(Path("in/db/t.lance/_deletions").iterdir())
    with pytest.raises(InputNotFound, match="tables of a database"):
        names("in/**/*.arrow")
    assert len(names("in/**")) == len(names("in/*")) == 3
    with pytest.raises(InputNotFound, match="tables of a database"):
        names("in/db/t.lance")


def test_a_saved_data_set_is_read_without_its_notes(here):
    folder = Path("set/train")
    folder.mkdir(parents=True)
    Path("set/dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "dataset_info.json").write_text('{"features": {}}')
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    for name, text in (("data-00000-of-00001", "kept"), ("cache-1f", "cached")):
        table = pa.table({"text": [text]})
        with pa.ipc.new_stream(folder / f"{name}.arrow", table.schema) as writer:
            writer.write_table(table)
    assert rows_and_rejects("set") == (["kept"], [])
    assert "4 notes that another program keeps" in told("set")


@pytest.mark.parametrize("bad", ["float ids", "no text", "garbage", "wrong json", "other columns"])
def test_a_bad_file_costs_that_file_alone(here, bad):
    buffer = io.BytesIO()
    columns = {
        "float ids": {"id": [[0.5]], "text": ["x"]},
        "no text": {"id": ["x"], "text": [1]},
        "other columns": {"key": ["x"]},
    }
    path = Path("in/0.parquet") if bad in (*columns, "garbage") else Path("in/0.json")
    if bad in columns:
        pq.write_table(pa.table(columns[bad]), buffer)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_text("PAR1 no" if bad == "garbage" else '{"name": "package", "version": 1}')
    texts, (reject,) = rows_and_rejects("in")
    assert sorted(texts) == ["text a", "text sub/b"] and reject.path == str(path)
    assert rows_and_rejects(path, "in")[0] == texts


def test_a_field_that_no_file_has_is_still_an_error(here):
    with pytest.raises(MissingField, match="no field 'body'; its fields are: id, text"):
        ingest("in", text_field="body", **ECHO)
    assert not Path("db/t.lance").exists()


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    path = tmp_path / "in.parquet"
    table = pa.table(
        {"id": [str(i) for i in range(1000)], "text": [f"text {i}" for i in range(1000)]}
    )
    pq.write_table(table, path, row_group_size=100, compression="zstd", write_statistics=False)
    facts = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in (3, 9):
        column = facts.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = (
            b"\xff" * column.total_compressed_size
        )
    path.write_bytes(content)
    texts, rejects = rows_and_rejects(path, batch_rows=64)
    bad = {*range(300, 400), *range(900, 1000)}
    assert texts == [f"text {i}" for i in range(1000) if i not in bad]
    assert [r.line for r in rejects] == [i + 1 for i in sorted(bad)]
    assert "row group 4" in rejects[0].reason and "row group 10" in rejects[-1].reason


def test_a_pipe_is_read_once_and_parquet_from_it_too(here):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), buffer)
    command = [sys.executable, "-c", "from memworker.ingestion.readers import read; import sys; "]
    command[-1] += "print([t for c in read(sys.argv[1:2], format='parquet')"
    command[-1] += " for t in c.rows['text'].to_pylist()])"
    for name in ("-", "/dev/stdin", "/proc/self/fd/0"):
        done = subprocess.run([*command, name], input=buffer.getvalue(), capture_output=True)
        assert done.stdout == b"['a', 'b']\n", done.stderr
    os.mkfifo("p")
    for inputs in (["-", "-"], ["p", "p"], ["p", "./p"]):
        with pytest.raises(UsageError, match=r"twice|read once"):
            names(*inputs)


MANY = """
import sys
from memworker.ingestion.readers import read
batches = list(read(sys.argv[1:], format="json"))
print(sum(c.rows.num_rows for c in batches), sum(len(c.rejects) for c in batches))
"""


def test_no_row_of_a_process_substitution_is_lost(here):
    rows = """seq 50000 | sed 's/.*/{"id":&,"text":"t &"}/'"""
    script = f'"$0" -c "$1" <({rows}) <(echo \'[{{"text": "x"}}]\' | gzip)'
    done = subprocess.run(["bash", "-c", script, sys.executable, MANY], capture_output=True)
    assert done.stdout == b"50001 0\n", done.stderr


def test_a_pipe_that_nobody_writes_to_is_said(here):
    os.mkfifo("p")
    code = "from memworker.ingestion.readers import read; next(read(['p']))"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as child:
        try:
            assert b"waiting for the pipe p: nothing has come yet" in child.stderr.readline()
        finally:
            child.kill()


def test_names_that_are_not_utf8_are_shown_everywhere(here):
    odd = os.fsdecode(b"in/\xe9.jsonl")
    Path(odd).write_text(LINE % ("e", "e") + "bad\n")
    Path(os.fsdecode(b"in/\xe9.log")).write_text("x")
    pq.write_table(pa.table({"text": ["columns"]}), io.BytesIO())
    with open(os.fsdecode(b"in/\xff.parquet"), "wb") as file:
        pq.write_table(pa.table({"text": ["columns"]}), file)
    memworker = Path(sys.executable).with_name("memworker")
    command = [memworker, "ingest", "in", "--db", "db", "--table", "t", "--model", "echo", "--json"]
    command += ["--workers", "1", "--rejects", os.fsdecode(b"bad\xe9.jsonl")]
    done = subprocess.run(command, capture_output=True)
    report = json.loads(done.stdout.decode())
    assert (done.returncode, report["written"], report["rejected"]) == (3, 4, 1), done.stderr
    assert report["rejects"].endswith(r"bad\xe9.jsonl") and r"in/\xe9.log" in report["notes"][0]
    listed = json.loads(Path(os.fsdecode(b"bad\xe9.jsonl")).read_text())
    assert listed["path"] == r"in/\xe9.jsonl"
    again = subprocess.run(command, capture_output=True)
    assert json.loads(again.stdout)["duplicates"] == 4, again.stderr
    jobs = subprocess.run([memworker, "jobs", "--db", "db", "--json"], capture_output=True)
    assert len(json.loads(jobs.stdout)["jobs"]) == 2
    missing = subprocess.run([*command[:2], odd + "x", *command[3:]], capture_output=True)
    assert rb"no such file: in/\xe9.jsonlx" in missing.stderr


def test_the_cap_on_texts_can_be_set(here):
    Path("big.jsonl").write_text(json.dumps({"text": "x" * 2_000_000}) + "\n" + LINE % ("s", "s"))
    assert ingest("big.jsonl", **ECHO).rejected == 1
    assert "--max-text-bytes" in Path("db/.memworker/t/rejects.jsonl").read_text()
    assert ingest("big.jsonl", max_text_bytes=3_000_000, **ECHO).written == 1
    records = [{"text": "x" * 2_000_001}]
    assert ingest(records, max_text_bytes=3_000_000, **ECHO).written == 1


def test_many_small_files_share_a_batch_and_a_commit(here):
    Path("many").mkdir()
    for i in range(500):
        line = LINE % (i, i) if i % 100 else "bad\n"
        Path(f"many/{i:03}.jsonl").write_text(line)
    batches = list(read(["many"]))
    assert [batch.read for batch in batches] == [500]
    assert [r.path for r in batches[0].rejects] == [f"many/{i}00.jsonl" for i in range(5)]
    assert [r.ordinal for r in batches[0].rejects] == [0, 100, 200, 300, 400]
    report = ingest("many", **ECHO)
    assert (report.written, report.rejected) == (495, 5)
    Path("many/001.jsonl").write_text('{"id": "1", "text": "another"}\n')
    report = ingest("many", **ECHO)
    assert (report.conflicts, report.duplicates) == (1, 494)
    listed = [json.loads(line) for line in Path(report.rejects).read_text().splitlines()]
    assert "many/001.jsonl" in {row["path"] for row in listed if "bad" not in row["excerpt"]}
